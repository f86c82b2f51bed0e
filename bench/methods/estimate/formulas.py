"""method=estimate: a trial in, its outcome out, by the formula that the trial names.

Answered in the job's own process: arithmetic needs no lease, no worker and no torch (which is imported only
to ask whether an accelerator that the system shows can be used).
"""

from __future__ import annotations

import time
import traceback

from bench.machine.host import accelerator_in_sight
from bench.methods.estimate.closed_form import closed_form
from bench.methods.estimate.rule_of_thumb import rule_of_thumb
from bench.trial.columns import Hardware
from bench.trial.outcome import Outcome, in_one_line
from bench.trial.platform import platform_of
from bench.trial.skip_rules import skip_reason
from bench.trial.spec import Trial


def estimate(trial: Trial) -> Outcome:
    """What comes of a trial with method=estimate; an error in a formula is an outcome, too."""
    started = time.perf_counter()
    try:
        platform = platform_of(_device_type(trial))
        reason = skip_reason(trial, platform, device_count=0)
        if reason:
            return Outcome("skipped", reason)
        columns = rule_of_thumb(trial) if trial.formula == "rule_of_thumb" else closed_form(trial, platform)
    except Exception as error:
        return Outcome("error", in_one_line(error), traceback.format_exc())
    seconds = time.perf_counter() - started
    columns["working_seconds"] = seconds
    hardware: Hardware = {"device_name": f"estimated {platform.device_type}"}
    return Outcome("ok", None, None, [columns], hardware, seconds)


def _device_type(trial: Trial) -> str:
    """The type of device that the trial would run on."""
    kind = trial.device.partition(":")[0]
    if kind != "auto":
        return kind
    if not accelerator_in_sight():
        return "cpu"
    from bench.machine.accelerator import resolve  # imports torch, which knows whether it can use it

    return resolve("auto").type
