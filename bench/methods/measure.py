"""method=measure: a trial's real steps, timed, counted and attributed.

In: a trial, a device, this process' rank. Out: the columns of this rank. Three passes in one process, so
that none disturbs another:
  1. timed         warm-up (its cold peak is kept apart), counters reset, then blocks of steps with one
                   synchronisation at each end. Only the clock and, on an accelerator, the allocator's own
                   counters watch.
  2. attributed    one more step of the same run under `Tracker` (memory/tracker.py), with every
                   technique's watcher. With gloo several, see `_steps_to_watch`.
  3. allocator     on a CPU only, whose allocator keeps no counters: the run is deleted and built again
                   inside a recording of every allocation.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from bench.machine import accelerator
from bench.machine.host import process_bytes
from bench.machine.nvml import Health, Sensors
from bench.memory.cpu_allocator import CpuRecorder
from bench.memory.tracker import Tracker
from bench.methods import observe
from bench.methods.timed_steps import as_rank_0, timed, warm_up
from bench.trial.columns import Columns
from bench.trial.spec import Trial
from bench.workload.build import build
from bench.workload.loops.plan import Plan, unwatched
from bench.workload.loops.train_step import carry_out
from bench.workload.state import Run

_WATCHED_STEPS, _WATCHED_SLOW_STEPS, _SLOW_SECONDS = 12, 4, 0.5
Report = Callable[[str], None]


def measure(trial: Trial, device: torch.device, rank: int, columns: Columns, report: Report) -> None:
    """Measures this rank's part of the row: memory, time and evidence.

    Args:
        trial: what to measure.
        device: where this rank trains.
        rank: this process among the trial's ranks.
        columns: filled as values become known, so that a trial that dies half-way leaves those it had.
        report: called with the name of each stage as it begins.

    Raises:
        NonFiniteLossError: a loss was not finite.
        NotInForceError: a technique that the trial asked for did not happen.
        RuntimeError: anything else the libraries raise, running out of memory included.
    """
    idle_rss_bytes = process_bytes("VmRSS")
    sensors = Sensors(accelerator.nvml_uuid(device))
    before = sensors.read()

    def passes(run: Run, started: float) -> Plan[tuple[dict[str, Any], Tracker, int]]:
        yield from _timed_pass(run, started, columns, report)
        columns.update(_driver_columns(device, before, sensors.read()))
        columns["peak_host_rss_bytes"] = _grown_to(idle_rss_bytes)
        report("attribution")
        steps = _steps_to_watch(device, columns["step_seconds"])
        return *(yield from observe.watch_steady_steps(run, steps)), steps

    try:
        report("build")
        started = time.perf_counter()
        run = build(trial, device, rank)
        columns["evidence"], tracker, steps = carry_out(run, passes(run, started))
        columns |= observe.peak_columns(tracker.segments())
        if device.type == "cpu":
            report("allocator")
            del run, tracker
            columns |= allocator_pass(trial, device, rank, steps)
        allocated, tracked = columns["peak_allocated_bytes"], columns["tracked_peak_bytes"]
        assert allocated is not None and tracked is not None, "both passes have ended"
        columns["untracked_bytes"] = allocated - tracked
    finally:  # a trial that ran out of memory has a peak too
        columns.setdefault("peak_host_rss_bytes", _grown_to(idle_rss_bytes))


def _grown_to(idle_rss_bytes: int | None) -> int | None:
    """The high-water mark of resident memory over the idle process; None where the system does not say."""
    peak = process_bytes("VmHWM")
    return None if peak is None or idle_rss_bytes is None else max(0, peak - idle_rss_bytes)


def _timed_pass(run: Run, started: float, columns: Columns, report: Report) -> Plan[None]:
    """Pass 1: warms the run up and times its steps. The peak of each part is kept apart.

    Args:
        run: what is measured.
        started: when its building began.
        columns: filled as values become known.
        report: called with the name of each stage as it begins.
    """
    device = run.device
    accelerator.synchronize(device)
    columns["build_seconds"] = time.perf_counter() - started
    columns |= observe.size_columns(run)
    built = accelerator.counters(device)
    if built is not None:
        columns["build_peak_allocated_bytes"] = built.peak_allocated
        columns["build_peak_reserved_bytes"] = built.peak_reserved

    report("warm-up")
    accelerator.release_cached(device)  # a step must not start with what building reserved
    accelerator.reset_peaks(device)
    warm_columns, warm_losses = yield from warm_up(run)
    columns |= warm_columns
    cold = accelerator.counters(device)
    if cold is not None:
        columns["cold_peak_allocated_bytes"] = cold.peak_allocated
        columns["cold_peak_reserved_bytes"] = cold.peak_reserved

    report("timed steps")
    accelerator.reset_peaks(device)
    timed_columns, timed_losses = yield from timed(run, run.trial.timing)
    columns |= timed_columns
    columns["losses"] = warm_losses + timed_losses
    steady = accelerator.counters(device)
    if steady is not None:  # else pass 3 finds the peak
        columns["peak_allocated_bytes"] = steady.peak_allocated
        columns["peak_reserved_bytes"] = steady.peak_reserved


def _steps_to_watch(device: torch.device, step_seconds: list[float]) -> int:
    """How many steady steps to watch: as many on every rank. The step with the lowest peak counts.

    A step repeats itself to the byte, except with gloo: its threads free what they reduced and gathered in
    no fixed order, and up to every third step holds a copy for longer than it needs it.
    """
    if device.type != "cpu" or not dist.is_initialized():
        return 1
    slow = statistics.median(step_seconds) > _SLOW_SECONDS
    return int(as_rank_0(_WATCHED_SLOW_STEPS if slow else _WATCHED_STEPS, device))


def _driver_columns(device: torch.device, before: Health, after: Health) -> Columns:
    """The driver's view of the device, read while the allocator still holds all that it took for the peak.

    `context_bytes` is what the driver counts for this process and the allocator does not know: CUDA
    context, loaded kernels, library workspaces. None where the driver cannot tell this process from others.
    """
    counters = accelerator.counters(device)
    if counters is None:
        return {}
    process_bytes_used = after.own_bytes
    return {
        "peak_device_used_bytes": process_bytes_used,
        "context_bytes": None if process_bytes_used is None else process_bytes_used - counters.reserved,
        "device_throttled": after.throttled,
        "device_shared": None if after.other_processes is None else after.other_processes > 0,
        "clock_mhz_before": before.clock_mhz,
        "clock_mhz_after": after.clock_mhz,
        "temperature_celsius_before": before.temperature_celsius,
        "temperature_celsius_after": after.temperature_celsius,
        "power_watts_before": before.power_watts,
        "power_watts_after": after.power_watts,
    }


def allocator_pass(trial: Trial, device: torch.device, rank: int, steps: int) -> Columns:
    """Pass 3: builds and steps again while torch's CPU allocator reports every allocation."""
    with CpuRecorder() as recorder:
        with recorder.span("build"):
            run = build(trial, device, rank)
        carry_out(run, _recorded(recorder, trial.timing.warmup_steps, steps))
    allocations = recorder.allocations()
    return {
        "build_peak_allocated_bytes": allocations.peak("build"),
        "cold_peak_allocated_bytes": allocations.peak("cold"),
        "peak_allocated_bytes": allocations.least_peak("steady/"),
    }


def _recorded(recorder: CpuRecorder, cold_steps: int, steps: int) -> Plan[None]:
    """A plan of cold steps, and of steady ones that are recorded one by one."""
    with recorder.span("cold"):
        for _ in range(cold_steps):
            yield unwatched
    for index in range(steps):
        with recorder.span(f"steady/{index}"):
            yield unwatched
