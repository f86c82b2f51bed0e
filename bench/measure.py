"""method=measure: a built trial's real steps, timed, counted and attributed.

Three passes in one process, so that none disturbs another:
  1. timed         warm-up (its cold peak kept apart), counters reset, then blocks of steps with one
                   synchronisation at each end; nothing watches but the clock and, on an accelerator, the
                   allocator's own counters.
  2. attributed    one more step of the same run under `memory.Tracker`, with every technique's watcher.
  3. allocator     on a CPU only, where nobody counts for free: the run is thrown away and built again
                   inside a recording of every allocation.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from bench import device as accelerator
from bench import flops
from bench.build import build
from bench.machine import Health, Sensors
from bench.memory import PHASES, Attribution, CpuRecorder, Tracker
from bench.models import attention_of, blocks_of
from bench.state import Run, parameter_counts, quantised_linears
from bench.step import step
from bench.techniques import TECHNIQUES
from bench.trial import Timing, Trial

_BLOCK_STEPS = 5
_RECORDED_STEPS = 2
_CONFIDENCE = 0.95
_RESAMPLES = 2000

Report = Callable[[str], None]


class NonFiniteLoss(RuntimeError):  # noqa: N818  # reads as what happened
    """The training diverged; what was measured is not a training step."""


@dataclass(frozen=True)
class Timed:
    """The timed pass: one entry of `seconds` for each timed step, none dropped."""

    seconds: list[float]
    block_seconds: float
    losses: list[float]
    stop_reason: str
    cold_seconds: float


def measure(
    trial: Trial, device: torch.device, rank: int, idle_rss_bytes: int, report: Report
) -> dict[str, Any]:
    """This rank's part of the row: memory, time and proof columns.

    Args:
        trial: what to measure.
        device: where this rank trains.
        rank: this process among the trial's ranks.
        idle_rss_bytes: the process's resident memory before anything was built.
        report: told what begins, for whoever watches from outside.

    Raises:
        NonFiniteLoss: a loss was not finite.
        NotInForce: a technique that the trial asked for did not happen.
        RuntimeError: anything else the libraries raise, running out of memory included.
    """
    report("build")
    sensors = Sensors(device)
    before = sensors.read()
    started = time.perf_counter()
    run = build(trial, device, rank)
    accelerator.synchronize(device)
    columns: dict[str, Any] = {"build_seconds": time.perf_counter() - started}
    columns |= _size_columns(run)
    columns |= _prefixed("build_", _peaks(device))

    report("warm-up")
    accelerator.reset_peaks(device)
    warmup, cold_seconds = _warm_up(run)
    columns |= _prefixed("cold_", _peaks(device))

    report("timed steps")
    accelerator.reset_peaks(device)
    timed = _timed(run, trial.timing, warmup, cold_seconds)
    columns |= _peaks(device)
    columns |= _time_columns(trial, timed)
    columns |= _driver_columns(device, before, sensors.read())
    columns["peak_host_rss_bytes"] = max(0, _peak_rss_bytes() - idle_rss_bytes)

    report("attribution")
    attribution, evidence = _attribute(run)
    columns |= _attribution_columns(attribution)
    columns["evidence"] = evidence

    if device.type == "cpu":
        report("allocator")
        del run
        gc.collect()
        columns |= _cpu_allocator(trial, device, rank)
    columns["untracked_bytes"] = columns["peak_allocated_bytes"] - attribution.peak
    return columns


def _warm_up(run: Run) -> tuple[list[float], float]:
    """Runs the steps nobody times; their losses, and the seconds of the very first one."""
    started = time.perf_counter()
    losses = [step(run).item()]
    cold_seconds = time.perf_counter() - started
    losses += [step(run).item() for _ in range(run.trial.timing.warmup_steps - 1)]
    return losses, cold_seconds


def _timed(run: Run, timing: Timing, warmup: list[float], cold_seconds: float) -> Timed:
    """Blocks of steps until the interval is narrow enough or a budget is spent."""
    seconds: list[float] = []
    losses = list(warmup)
    block_seconds = 0.0
    while True:
        count = min(_BLOCK_STEPS, timing.max_steps - len(seconds))
        stopwatch = accelerator.Stopwatch(run.device)
        results = []
        _line_up(run.device)
        started = time.perf_counter()
        stopwatch.mark()
        for _ in range(count):
            results.append(step(run))
            stopwatch.mark()
        accelerator.synchronize(run.device)
        block_seconds += time.perf_counter() - started
        seconds += stopwatch.seconds()
        losses += [loss.item() for loss in results]
        if not all(math.isfinite(loss) for loss in losses):
            raise NonFiniteLoss(
                f"the loss is not finite after {len(losses)} steps; try a smaller optimizer.lr, a larger "
                f"optimizer.eps, or precision=bf16"
            )
        reason = _agree(run.device, _stop_reason(seconds, block_seconds, timing))
        if reason:
            return Timed(seconds, block_seconds, losses, reason, cold_seconds)


def _stop_reason(seconds: list[float], spent: float, timing: Timing) -> str:
    if len(seconds) < timing.min_steps:
        return ""
    low, high = confidence_interval(seconds)
    if (high - low) / float(np.median(seconds)) <= timing.relative_ci:
        return "converged"
    if len(seconds) >= timing.max_steps:
        return "max_steps"
    return "budget_seconds" if spent >= timing.budget_seconds else ""


def confidence_interval(samples: list[float]) -> tuple[float, float]:
    """The 95 % bootstrap interval of the median (percentile method, Efron 1979), resampled from a
    fixed seed: the same samples give the same interval.

    A single sample says nothing about its spread: the interval is then infinite.
    """
    if len(samples) < 2:
        return -math.inf, math.inf
    values = np.asarray(samples)
    picks = np.random.default_rng(0).integers(len(values), size=(_RESAMPLES, len(values)))
    medians = np.median(values[picks], axis=1)
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(medians, [tail, 1 - tail])
    return float(low), float(high)


def _line_up(device: torch.device) -> None:
    """All ranks start a block together, with nothing pending on the device."""
    accelerator.synchronize(device)
    if dist.is_initialized():
        dist.barrier()
        accelerator.synchronize(device)


def _agree(device: torch.device, reason: str) -> str:
    """The first rank's decision: ranks that disagreed would wait for each other for ever."""
    if not dist.is_initialized():
        return reason
    decision = [reason]
    dist.broadcast_object_list(decision, src=0, device=device)
    return str(decision[0])


def _time_columns(trial: Trial, timed: Timed) -> dict[str, Any]:
    median = float(np.median(timed.seconds))
    low, high = confidence_interval(timed.seconds)
    quartiles = np.quantile(timed.seconds, [0.25, 0.75])
    fence = 1.5 * (quartiles[1] - quartiles[0])
    outside = (np.asarray(timed.seconds) < quartiles[0] - fence) | (
        np.asarray(timed.seconds) > quartiles[1] + fence
    )
    tokens = trial.tokens_per_step
    return {
        "step_seconds": timed.seconds,
        "step_seconds_median": median,
        "step_seconds_iqr": float(quartiles[1] - quartiles[0]),
        "step_outliers": int(outside.sum()),
        "block_seconds": timed.block_seconds,
        "cold_step_seconds": timed.cold_seconds,
        "stop_reason": timed.stop_reason,
        "losses": timed.losses,
        "tokens_per_step": tokens,
        "tokens_per_sec_per_device": tokens / median,
        "tokens_per_sec_per_device_ci_low": tokens / high,
        "tokens_per_sec_per_device_ci_high": tokens / low if low > 0 else math.inf,
    }


def _size_columns(run: Run) -> dict[str, Any]:
    total, trainable = parameter_counts(run)
    matmul, trainable_matmul, in_blocks = _matmul_params(run)
    model_flops, hardware_flops = flops.step_flops(
        run.trial,
        matmul_params=matmul,
        trainable_matmul_params=trainable_matmul,
        block_matmul_params=in_blocks,
    )
    return {
        "param_count": total,
        "trainable_param_count": trainable,
        "model_flops_per_step": model_flops,
        "hardware_flops_per_step": hardware_flops,
        "attention": attention_of(run.model_config),
    }


def _matmul_params(run: Run) -> tuple[int, int, int]:
    """Parameters that multiply activations: all, those that train, those inside blocks.

    Matrices count, embeddings do not unless they are tied to the head and multiply there.
    """
    quantised = {m.weight: m.in_features * m.out_features for m in quantised_linears(run.model)}
    inside = {p for block in blocks_of(run.model).values() for p in block.parameters()}
    looked_up = {m.weight for m in run.model.modules() if isinstance(m, torch.nn.Embedding)}
    multiplied = {
        m.weight
        for m in run.model.modules()
        if hasattr(m, "weight") and not isinstance(m, torch.nn.Embedding)
    }
    counts = [0, 0, 0]
    for parameter in run.model.parameters():
        if parameter.ndim < 2 or (parameter in looked_up and parameter not in multiplied):
            continue
        size = quantised.get(parameter, parameter.numel())
        counts[0] += size
        counts[1] += size if parameter.requires_grad else 0
        counts[2] += size if parameter in inside else 0
    return counts[0], counts[1], counts[2]


def _peaks(device: torch.device) -> dict[str, Any]:
    """The allocator's peaks since the last reset; empty on a CPU, where pass 3 finds them."""
    found = accelerator.counters(device)
    if found is None:
        return {}
    return {
        "peak_allocated_bytes": found.peak_allocated,
        "peak_reserved_bytes": found.peak_reserved,
    }


def _prefixed(prefix: str, columns: dict[str, Any]) -> dict[str, Any]:
    return {prefix + name: value for name, value in columns.items()}


def _driver_columns(device: torch.device, before: Health, after: Health) -> dict[str, Any]:
    """The driver's view, read while the allocator still holds all that it took for the peak.

    The context is what the driver counts as ours and the allocator does not know: CUDA context, loaded
    kernels, library workspaces. Where the driver names no process, everything that was added to the
    device since we came is taken for ours.
    """
    counters = accelerator.counters(device)
    if counters is None:
        return {}
    own = after.own_bytes
    if own is None and after.used_bytes is not None and before.used_bytes is not None:
        own = after.used_bytes - before.used_bytes
    return {
        "peak_device_used_bytes": own,
        "context_bytes": None if own is None else own - counters.reserved,
        "device_throttled": after.throttled,
        "device_shared": None if after.other_processes is None else after.other_processes > 0,
        "clock_mhz_before": before.clock_mhz,
        "clock_mhz_after": after.clock_mhz,
        "temperature_celsius_before": before.temperature_celsius,
        "temperature_celsius_after": after.temperature_celsius,
        "power_watts_before": before.power_watts,
        "power_watts_after": after.power_watts,
    }


def _attribute(run: Run) -> tuple[Attribution, dict[str, Any]]:
    """One more step, watched: where the bytes are, and whether each technique was in force."""
    watchers = [technique.watch(run) for technique in TECHNIQUES]
    tracker = Tracker(run)
    with tracker:
        step(run, tracker.enter_phase)
    evidence: dict[str, Any] = {}
    for watcher in watchers:
        evidence |= watcher()
    return tracker.attribution(), evidence


def _attribution_columns(attribution: Attribution) -> dict[str, Any]:
    columns: dict[str, Any] = {
        "tracked_peak_bytes": attribution.peak,
        "peak_phase": attribution.phase,
        "gathered_max_bytes": attribution.gathered,
    }
    for category, held in attribution.at_peak.items():
        columns[f"{category}_bytes"] = held
        columns[f"{category}_max_bytes"] = attribution.largest[category]
    for phase, peak in attribution.peak_by_phase.items():
        columns[f"{phase}_tracked_peak_bytes"] = peak
    return columns


def _cpu_allocator(trial: Trial, device: torch.device, rank: int) -> dict[str, Any]:
    """Pass 3: build and step again while torch's CPU allocator tells of every allocation."""
    with CpuRecorder() as recorder:
        with recorder.span("build"):
            run = build(trial, device, rank)
        with recorder.span("cold"):
            for _ in range(trial.timing.warmup_steps):
                step(run)
        for index in range(_RECORDED_STEPS):
            with recorder.span(f"steady/{index}"):
                step(run)
    allocations = recorder.allocations()
    return {
        "build_peak_allocated_bytes": allocations.peak("build"),
        "cold_peak_allocated_bytes": allocations.peak("cold"),
        "peak_allocated_bytes": allocations.peak("steady/"),
    }


def _peak_rss_bytes() -> int:
    """The process's high-water mark of resident memory, its own and not its parent's."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0


__all__ = ["PHASES", "NonFiniteLoss", "Timed", "confidence_interval", "measure"]
