"""What is to be expected of trials before they run: peak, whether the device can hold it, how long it
takes.

The peak is simulated for this machine's device, cuBLAS' workspaces on it included. It can be more than the
device has (then the trial cannot fit) without the reverse being certain: the driver's own bytes and
fragmentation come on top. Times are those of earlier rows of the same folder.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from bench import formatting
from bench.machine import gpu_catalogue, host, nvml
from bench.processes import isolate
from bench.results import store
from bench.trial.spec import Trial

T = TypeVar("T")


@dataclass(frozen=True)
class Forecast:
    """What is expected of one trial; bytes and seconds, None where nobody knows.

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
        """Why it is left out, in one sentence."""
        assert self.peak_bytes is not None
        return (
            f"predicted not to fit: the simulated peak is {formatting.format_bytes(self.peak_bytes)}, "
            f"the device has {formatting.format_bytes(self.capacity_bytes)} (skip_predicted_oom=true)"
        )


def forecast_trial(trial: Trial, log: Path, timeout_seconds: float) -> Forecast:
    """Simulates a trial that would be measured on this machine.

    Args:
        trial: what would be measured.
        log: where the libraries' remarks go.
        timeout_seconds: after which the simulation is given up.
    """
    imagined = replace(trial, method="simulate")
    outcome = isolate.run_isolated(imagined, log=log, timeout_seconds=timeout_seconds)
    peak = None
    if outcome.status == "ok":
        device_name = next(iter(_of_its_gpus(trial, nvml.gpu_names)), "")
        simulated = outcome.ranks[0]["peak_allocated_bytes"] or 0
        peak = simulated + gpu_catalogue.workspaces_bytes(device_name, trial)
    return Forecast(outcome.status, outcome.reason, peak, capacity_bytes(trial), outcome.wall_seconds)


def _of_its_gpus(trial: Trial, ask: Callable[[], list[T]]) -> list[T]:
    """What is answered for the GPUs that the trial would use here, the first of them first."""
    kind, _, index = trial.device.partition(":")
    return ask()[int(index or 0) :] if kind in ("auto", "cuda") else []


def capacity_bytes(trial: Trial) -> int:
    """Memory of the device that the trial would use here, or what it pretends to have."""
    here = min(_of_its_gpus(trial, nvml.gpu_memory_bytes) or [host.host_memory_bytes()])
    return here if trial.memory_limit_bytes is None else min(here, trial.memory_limit_bytes)


def expected_seconds(trial: Trial, results_dir: Path) -> float | None:
    """Median of what this trial took before; of its model's trials, if it has no row; None without any."""
    same_id, same_model = _times(results_dir)
    known = same_id.get(trial.trial_id) or same_model.get((trial.model.label, trial.method))
    return statistics.median(known) if known else None


@cache
def _times(results_dir: Path) -> tuple[dict[str, list[float]], dict[tuple[str, str], list[float]]]:
    by_id: dict[str, list[float]] = {}
    by_model: dict[tuple[str, str], list[float]] = {}
    columns = ("trial_id", "started_at", "model", "method", "status", "wall_seconds")
    for row in store.records(results_dir, columns=columns):
        if row["status"] in ("ok", "oom"):
            by_id.setdefault(row["trial_id"], []).append(row["wall_seconds"])
            by_model.setdefault((row["model"], row["method"]), []).append(row["wall_seconds"])
    return by_id, by_model


@dataclass(frozen=True)
class Planned:
    """A trial of a dry run: its words, what stands for it already, and what is expected of it."""

    label: str
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


def plan_trial(trial: Trial, label: str, earlier: dict[str, Any] | None, results_dir: Path) -> Planned:
    """One line of a dry run; what is only predicted, or has a row, is not simulated for it."""
    if earlier:
        return Planned(label, earlier["status"], None, 0.0)
    seconds = expected_seconds(trial, results_dir)
    if trial.method != "measure":
        return Planned(label, None, None, seconds)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        found = forecast_trial(trial, Path(folder) / "log", 600.0)
    return Planned(label, None, found, 0.0 if found.status == "skipped" else seconds)
