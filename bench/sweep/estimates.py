"""method=estimate, answered in the job's own process: arithmetic needs no lease, no worker and no torch."""

from __future__ import annotations

import time
import traceback

from bench.machine.host import accelerator_in_sight
from bench.methods.estimate.formulas import estimate
from bench.trial.columns import Hardware
from bench.trial.outcome import Outcome, in_one_line
from bench.trial.platform import platform_of
from bench.trial.skip_rules import skip_reason
from bench.trial.spec import Trial


def estimate_here(trial: Trial) -> Outcome:
    """The outcome of a trial with method=estimate; an error in a formula is an outcome, too."""
    started = time.perf_counter()
    try:
        platform = platform_of(_device_type(trial))
        reason = skip_reason(trial, platform, device_count=0)
        if reason:
            return Outcome("skipped", reason)
        columns = estimate(trial, platform)
    except Exception as error:
        return Outcome("error", in_one_line(error), traceback.format_exc())
    seconds = time.perf_counter() - started
    columns["working_seconds"] = seconds
    hardware: Hardware = {"device_name": f"estimated {platform.device_type}"}
    return Outcome("ok", None, None, [columns], hardware, seconds)


def _device_type(trial: Trial) -> str:
    """The type of device that the trial is about; for device=auto, the one that it would run on here."""
    kind = trial.device.partition(":")[0]
    if kind != "auto":
        return kind
    if not accelerator_in_sight():
        return "cpu"
    from bench.machine.accelerator import resolve  # imports torch, which knows whether it can use it

    return resolve("auto").type
