"""What a training loop adds to the plain step: gradients clipped to a norm, outputs kept.

The step itself does both (`train_step.py`); here they are watched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.workload.state import NotInForceError, Run


def apply(run: Run) -> None:
    """Nothing: the step asks the trial."""


def watch(run: Run) -> Callable[[], dict[str, Any]]:
    """Whether gradients were clipped, and bytes of the logits that were kept through a backward."""
    trial = run.trial
    run.gradient_norm, run.kept_logits_bytes = None, 0

    def evidence() -> dict[str, Any]:
        found: dict[str, Any] = {}
        if trial.max_grad_norm is not None:
            if run.gradient_norm is None:
                raise NotInForceError("max_grad_norm: no norm of the gradients was computed")
            found["gradients_clipped"] = True
        if trial.keep_outputs:
            if not run.kept_logits_bytes:
                raise NotInForceError("keep_outputs: no logits were kept through the backward")
            found["kept_logits_bytes"] = run.kept_logits_bytes
        return found

    return evidence
