"""method=estimate: a trial in, the row's columns out, by the formula that the trial names.

Must not import torch.
"""

from __future__ import annotations

from bench.methods.estimate.closed_form import closed_form
from bench.methods.estimate.rule_of_thumb import rule_of_thumb
from bench.trial.columns import Columns
from bench.trial.platform import Platform
from bench.trial.spec import Trial


def estimate(trial: Trial, platform: Platform) -> Columns:
    """The row's memory columns, in bytes, by the trial's formula.

    Args:
        trial: what to estimate.
        platform: what it would run on: CPU or CUDA.
    """
    return rule_of_thumb(trial) if trial.formula == "rule_of_thumb" else closed_form(trial, platform)
