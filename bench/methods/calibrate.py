"""Calibration of the device that is present: its operations, and what the host needs to issue them.

In: trials of small models that between them call the operations of every technique, and trials of minute
ones. Out: a `Calibration`. The operations are those that simulation sees, so that a new technique is
calibrated as it is simulated; `timing/replay.py` executes them.
"""

from __future__ import annotations

import platform as machine
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import pairwise
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from bench.machine import accelerator
from bench.machine.host import cores
from bench.memory.dispatch import OperationWatch
from bench.methods.simulate import observe_operations
from bench.timing import collectives
from bench.timing.calibration import Calibration, style_of
from bench.timing.operations import work_of
from bench.timing.replay import (
    Seen,
    copy_samples,
    fresh_memory_seconds_per_byte,
    product_samples,
    samples,
)
from bench.timing.samples import HostSample
from bench.trial.outcome import CannotExistError
from bench.trial.platform import platform_of
from bench.trial.spec import Trial
from bench.workload.build import build
from bench.workload.loops.train_step import run_one_step
from bench.workload.state import Run

_STEPS, _WARM_UP_STEPS = 15, 3
_CPU_GRID = ((1, 16, 128, 1024), (16, 128, 1024), (16, 128, 1024))
_ACCELERATOR_GRID = ((1, 16, 128, 1024, 8192), (16, 256, 1024, 4096, 16384), (16, 256, 1024, 4096, 16384))
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
Report = Callable[[str], object]


def calibrate(
    name: str,
    device: torch.device,
    threads: int,
    small: list[Trial],
    minute: list[Trial],
    report: Report,
    grid: tuple[tuple[int, ...], ...] | None = None,
) -> Calibration:
    """Times operations and the host on a device that nobody else uses.

    Args:
        name: what the calibration will be called.
        device: what to calibrate.
        threads: of a CPU.
        small: trials whose operations are timed.
        minute: trials whose arithmetic takes no time, so that their steps show what the host needs.
        report: called with what is done, as it begins.
        grid: rows, columns and inner lengths of the products; as fits the device if nothing is said.
    """
    torch.set_num_threads(threads)
    platform = platform_of(device.type)
    before = _reference_seconds(device)
    seen = Seen()
    for number, trial in enumerate(small, 1):
        report(f"operations of {number} of {len(small)} small steps")
        try:
            observe_operations(trial, platform, lambda *operation: seen(*operation))
        except CannotExistError:
            continue
    failed: dict[str, str] = {}
    report(f"{len(seen)} operations")
    operations = list(samples(seen, device, failed))
    grid = grid or (_CPU_GRID if device.type == "cpu" else _ACCELERATOR_GRID)
    if any(trial.fsdp.name != "off" for trial in minute):
        report("collectives")
        ranks = min(2, len(cores())) if device.type == "cpu" else accelerator.count(device.type)
        operations += collectives.measured(device.type, ranks, max(1, threads // ranks))
    report("products of matrices")
    products = list(product_samples(device, grid, _DTYPES))
    host: list[HostSample] = []
    for number, trial in enumerate(minute, 1):
        report(f"host: {number} of {len(minute)} minute steps")
        try:
            host += _host_samples(trial, device)
        except CannotExistError:
            continue
    copies = list(copy_samples(device))
    after = _reference_seconds(device)
    hardware = accelerator.hardware(device)
    return Calibration(
        name=name,
        device_name=hardware["device_name"],
        host_is_device=platform.host_is_device,
        threads=threads,
        made_with={
            "torch": torch.__version__,
            "driver": hardware.get("driver_version"),
            "python": machine.python_version(),
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "drift": max(before, after) / min(before, after) - 1,
        },
        operations=operations,
        products=products,
        host=host,
        copies=copies,
        failed=failed,
        fresh_memory_seconds_per_byte=fresh_memory_seconds_per_byte(device),
    )


def _reference_seconds(device: torch.device) -> float:
    """Seconds of a fixed product: a device that is shared, or grows hot, changes it."""
    size = 512 if device.type == "cpu" else 4096
    samples_by_layout = product_samples(device, ((size,), (size,), (size,)), (torch.float32,))
    return next(samples_by_layout).seconds


def _host_samples(trial: Trial, device: torch.device) -> Iterator[HostSample]:
    """What the host needs for each phase of a step of the trial; of FSDP, with one rank."""
    with _one_rank(trial, device):
        yield from list(_phases(trial, device))


@contextmanager
def _one_rank(trial: Trial, device: torch.device) -> Iterator[None]:
    """A process group of this process alone, where the trial needs one."""
    if trial.fsdp.name == "off":
        yield
        return
    backend = dist.get_default_backend_for_device(device)
    store = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _phases(trial: Trial, device: torch.device) -> Iterator[HostSample]:
    run = build(trial, device)
    for _ in range(_WARM_UP_STEPS):
        run_one_step(run)
    seconds = _phase_seconds(run)
    counted = _operations_by_phase(run)
    style = style_of(trial)
    recomputes = trial.checkpointing.name != "off"
    for phase, measured in seconds.items():
        if not counted[phase] or (phase == "backward" and recomputes):
            continue  # a backward that recomputes is of two kinds: other trials tell them apart
        yield HostSample(style, phase, counted[phase], measured)
    if recomputes:  # as the forward that it repeats
        yield HostSample(style, "recomputation", counted["forward"], seconds["forward"])


def _phase_seconds(run: Run) -> dict[str, float]:
    """The median seconds of each phase over some steps, with a synchronisation at each phase's end."""
    steps: dict[str, list[float]] = defaultdict(list)
    for _ in range(_STEPS):
        marks: list[tuple[str, float]] = []

        def enter(phase: str, marks: list[tuple[str, float]] = marks) -> None:
            accelerator.synchronize(run.device)
            marks.append((phase, time.perf_counter()))

        run_one_step(run, enter)
        enter("end")
        step: defaultdict[str, float] = defaultdict(float)
        for (phase, began), (_, ended) in pairwise(marks):
            step[phase] += ended - began
        for phase, taken in step.items():
            steps[phase].append(taken)
    return {phase: median(taken) for phase, taken in steps.items()}


def _operations_by_phase(run: Run) -> Counter[str]:
    """How many operations the host issues in each phase of a step."""
    counted: Counter[str] = Counter()
    phases = [""]

    def execute(func: Any, args: Any, kwargs: dict[str, Any], _mode: object) -> Any:
        result = func(*args, **kwargs)
        entries = work_of(func, args, kwargs, result, "")
        counted[phases[-1]] += sum(not entry.name.endswith("[]") for entry in entries)
        return result

    with OperationWatch(execute):
        run_one_step(run, phases.append)
    return counted
