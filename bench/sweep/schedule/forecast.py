"""What to expect of a trial before it runs: its peak, whether the device can hold it, how long it takes.

The peak is simulated for this machine's device, with cuBLAS' workspaces. If it is more than the device has,
the trial cannot fit. If it is less, the trial may still not fit: the driver's own bytes and fragmentation
come on top. Times are those of earlier rows (`budget.Durations`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from bench import formatting
from bench.machine import gpu_catalogue, host, nvml
from bench.methods.estimate.closed_form import closed_form
from bench.processes import isolate
from bench.processes.simulation_pool import Simulator, result_of
from bench.trial.columns import NotSimulated, Simulation
from bench.trial.platform import CPU, CUDA, Platform
from bench.trial.skip_rules import skip_reason
from bench.trial.spec import Trial

T = TypeVar("T")

_DOUBTFUL_SHARE = 0.3  # of the memory: beyond it the closed form, which may be too low, is not trusted


@dataclass(frozen=True)
class Forecast:
    """What is expected of one trial; bytes and seconds, None where unknown.

    `status` and `reason` are the simulation's, which may find that the trial cannot exist.
    """

    status: str
    reason: str | None
    peak_bytes: int | None
    capacity_bytes: int
    wall_seconds: float

    @property
    def fits(self) -> bool:
        """Whether the device is large enough for the tensors alone."""
        return self.peak_bytes is None or self.peak_bytes <= self.capacity_bytes

    def refusal(self) -> str:
        """Why a trial that does not fit is skipped, in one sentence."""
        assert self.peak_bytes is not None
        return (
            f"predicted not to fit: the simulated peak is {formatting.format_bytes(self.peak_bytes)}, "
            f"the device has {formatting.format_bytes(self.capacity_bytes)} (skip_predicted_oom=true)"
        )

    def host_refusal(self) -> str:
        """Why a trial that would fill this machine's memory is not tried, in one sentence."""
        assert self.peak_bytes is not None
        return (
            f"not tried: the simulated peak is {formatting.format_bytes(self.peak_bytes)}, "
            f"this machine has {formatting.format_bytes(self.capacity_bytes)}"
        )


def forecast_trial(trial: Trial, log: Path, timeout_seconds: float) -> Forecast:
    """Simulates a trial that would be measured on this machine.

    Args:
        trial: what would be measured.
        log: the file that takes what the libraries print.
        timeout_seconds: after which the simulation is ended.
    """
    simulation = replace(trial, method="simulate")
    outcome = isolate.run_isolated(simulation, log=log, timeout_seconds=timeout_seconds)
    peak = None
    if outcome.status == "ok":
        peak = _peak_bytes(trial, outcome.ranks[0]["peak_allocated_bytes"] or 0)
    return Forecast(outcome.status, outcome.reason, peak, capacity_bytes(trial), outcome.wall_seconds)


def _peak_bytes(trial: Trial, tensor_bytes: int) -> int:
    """What the device that the trial would use here holds at the peak, from one rank's tensors."""
    device_name = next(iter(_of_its_gpus(trial, nvml.gpu_names)), "")
    ranks = 1 if device_name else trial.processes  # on a CPU all ranks are in the same memory
    return ranks * tensor_bytes + gpu_catalogue.workspaces_bytes(device_name, trial)


def may_fill_host(trial: Trial) -> bool:
    """Whether the trial would be measured on this machine's CPU, and could fill its memory: nothing refuses
    it there, until the kernel kills. True only where a simulation should tell.
    """
    if trial.method != "measure" or trial.memory_limit_bytes is not None:
        return False
    kind = trial.device.partition(":")[0]
    if kind not in ("auto", "cpu") or (kind == "auto" and host.accelerator_in_sight()):
        return False
    if trial.model.by_config:  # its numbers are in a file, which torch's libraries read
        return True
    estimated = closed_form(trial, CPU)["peak_allocated_bytes"] or 0
    return trial.processes * estimated > _DOUBTFUL_SHARE * host.usable_memory_bytes()


def _of_its_gpus(trial: Trial, ask: Callable[[], list[T]]) -> list[T]:
    """What `ask` answers for the GPUs from the trial's first one on; nothing if it would run on no GPU."""
    kind, _, index = trial.device.partition(":")
    return ask()[int(index or 0) :] if kind in ("auto", "cuda") else []


def capacity_bytes(trial: Trial) -> int:
    """Memory of the device that the trial would use here, at most its memory_limit_bytes."""
    memory = min(_of_its_gpus(trial, nvml.gpu_memory_bytes) or [host.usable_memory_bytes()])
    return memory if trial.memory_limit_bytes is None else min(memory, trial.memory_limit_bytes)


@dataclass(frozen=True)
class Planned:
    """A trial of a dry run: its words and its model and shape, what stands for it, what is expected."""

    label: str
    subject: str
    done: str | None
    forecast: Forecast | None
    seconds: float | None

    @property
    def verdict(self) -> str:
        """What would happen, in a word or two."""
        if self.done:
            return f"done ({self.done})"
        if self.forecast is None:
            return "runs"
        if self.forecast.status != "ok":
            return self.forecast.status
        return "fits" if self.forecast.fits else "does not fit"


def plan_trial(
    trial: Trial, label: str, earlier: dict[str, Any] | None, seconds: float | None, simulator: Simulator
) -> Pending:
    """Starts to find out what a dry run says of a trial, and returns at once; only what would be measured,
    and has no row yet, is simulated. `seconds` is how long it is expected to take, if that is known."""
    if earlier:
        return Pending(Planned(label, trial.subject, earlier["status"], None, 0.0))
    plan = Planned(label, trial.subject, None, None, seconds)
    if trial.method != "measure":
        return Pending(plan)
    platform = _platform_here(trial)
    if platform is None:  # only torch knows it
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            return Pending(_with(plan, forecast_trial(trial, Path(folder) / "log", 600.0)))
    reason = skip_reason(trial, platform, max(trial.world_size, len(nvml.gpu_names())))
    if reason:
        return Pending(_with(plan, Forecast("skipped", reason, None, capacity_bytes(trial), 0.0)))
    return Pending(plan, trial, simulator.begin(replace(trial, method="simulate"), platform))


def _platform_here(trial: Trial) -> Platform | None:
    """The platform that the trial would run on here, as far as it can be known without torch."""
    kind = trial.device.partition(":")[0]
    if kind == "cpu" or (kind == "auto" and not host.accelerator_in_sight()):
        return CPU
    return CUDA if kind in ("auto", "cuda") and nvml.gpu_names() else None


def _with(plan: Planned, forecast: Forecast) -> Planned:
    seconds = 0.0 if forecast.status == "skipped" else plan.seconds
    return replace(plan, forecast=forecast, seconds=seconds)


@dataclass(frozen=True)
class Pending:
    """What a dry run will say of a trial, as soon as its simulation has ended."""

    plan: Planned
    trial: Trial | None = None
    simulation: Future[Simulation] | None = None

    def planned(self) -> Planned:
        """Waits for the simulation, if there is one."""
        if self.simulation is None or self.trial is None:
            return self.plan
        found = result_of(self.simulation)
        capacity = capacity_bytes(self.trial)
        if isinstance(found, NotSimulated):
            return _with(self.plan, Forecast("error", found.reason, None, capacity, 0.0))
        peak = _peak_bytes(self.trial, found.peak_bytes)
        return _with(self.plan, Forecast("ok", None, peak, capacity, 0.0))
