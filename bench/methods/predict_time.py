"""The time columns of a simulated trial, for the device that its `gpu` names.

In: a trial and its simulation. Out: columns. Must not import torch: bench/plan.py asks for times, and
starts at once where earlier simulations answer.
"""

from __future__ import annotations

from bench.machine import gpu_catalogue
from bench.machine.host import cores
from bench.timing import devices
from bench.timing.calibration import Calibration
from bench.timing.step_time import StepTime, step_time
from bench.trial.columns import Columns, Simulation
from bench.trial.spec import Trial


def predicted_step(trial: Trial, simulation: Simulation) -> StepTime:
    """The time of a simulated step on the device that `trial.gpu` names.

    Raises:
        DeviceError: there is no such device.
    """
    assert trial.gpu is not None, "the trial names a device"
    return step_time(simulation.work, trial, simulation.columns, devices.named(trial.gpu))


def time_columns(trial: Trial, simulation: Simulation) -> Columns:
    """The row's columns of time; `evidence` says what they rest on.

    Raises:
        DeviceError: there is no such device, or it was calibrated with another number of threads.
    """
    _require_threads(trial)
    columns = simulation.columns
    tokens = columns.get("tokens_per_step") or trial.tokens_per_step
    times = predicted_step(trial, simulation).columns(trial, tokens)
    times["evidence"] = columns["evidence"] | {"time_from": _source(trial)}
    return times


def _require_threads(trial: Trial) -> None:
    """A CPU's calibration holds for as many threads as it was made with."""
    assert trial.gpu is not None
    device = devices.named(trial.gpu)
    threads = trial.threads or max(1, len(cores()) // trial.world_size)
    if isinstance(device, Calibration) and device.host_is_device and device.threads != threads:
        raise devices.DeviceError(
            f"gpu={trial.gpu}: calibrated with {device.threads} threads, and the trial has {threads}: say "
            f"threads={device.threads}, or calibrate again"
        )


def _source(trial: Trial) -> str:
    assert trial.gpu is not None
    device = devices.named(trial.gpu)
    if not isinstance(device, Calibration):
        return f"the data sheet of {device.name}"
    made = device.made_with
    threads = f", {device.threads} threads" if device.host_is_device else ""
    return f"a calibration of {device.device_name} (torch {made.get('torch')}, {made.get('at')}{threads})"


def peak_flops_per_sec(gpu: str | None, dtype: str) -> float | None:
    """The dense peak of the device that `gpu=` names; None if it is no card of the catalogue."""
    if gpu is None:
        return None
    card = gpu_catalogue.catalogue().get(gpu)
    return None if card is None else card.peak_flops_per_sec.get(dtype)
