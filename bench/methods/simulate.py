"""method=simulate: the measured step over fake tensors: shapes without data, no device, no memory.

The same `build` and `step` run among imagined data and ranks, and the tracker that attributes a measured
step says what the allocator would have held. Blocks repeat, so the step of a deep model is extended from
those of two shallow ones (`timeline.at_depth`), or simulated whole where its blocks do not repeat exactly.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from typing import Any

import torch

from bench.memory.timeline import Segment
from bench.memory.tracker import Tracker
from bench.methods import observe, roofline
from bench.methods.depth import extrapolate, segments_at_depth, shallow_depths
from bench.methods.fake_execution import fake_execution
from bench.trial.platform import Platform
from bench.trial.spec import Trial
from bench.workload.build import build
from bench.workload.train_step import run_one_step


def simulate(trial: Trial, columns: dict[str, Any], platform: Platform) -> None:
    """The columns that a steady step of `trial` determines without running it.

    Args:
        trial: what to predict.
        columns: filled as facts become known.
        platform: what it would run on: CPU or CUDA.
    """
    started = time.perf_counter()
    found = None if trial.whole else _extended(trial, platform)
    columns |= found or _whole(trial, platform)
    columns.setdefault("peak_allocated_bytes", columns["tracked_peak_bytes"])
    columns["simulation_seconds"] = time.perf_counter() - started


def _watched(trial: Trial, platform: Platform) -> tuple[dict[str, Any], list[Segment]]:
    """Sizes and evidence, and the segments of a steady step."""
    with fake_execution(trial, platform):
        run = build(trial, torch.device("cpu"), platform=platform)
        columns = observe.size_columns(run)
        work: roofline.Work = Counter()
        with Tracker(run, lambda *operation: work.update(roofline.work_of(*operation))) as tracker:
            run_one_step(run, tracker.enter_phase)  # the optimizer's state appears in it
            tracker.begin()
            work.clear()
            columns["evidence"] = observe.collect_evidence(
                run, lambda: run_one_step(run, tracker.enter_phase)
            )
    columns["work"] = work
    if platform.has_caching_allocator:
        allocator = tracker.allocator()
        columns["peak_allocated_bytes"] = allocator.peak_bytes
        columns["peak_reserved_bytes"] = allocator.reserved_bytes
    return columns, tracker.segments()


def _whole(trial: Trial, platform: Platform) -> dict[str, Any]:
    columns, segments = _watched(trial, platform)
    return columns | observe.peak_columns(segments)


def _extended(trial: Trial, platform: Platform) -> dict[str, Any] | None:
    """The deep model's columns from two shallow models'; None where that is not exact, or no saving.

    What the caching allocator makes of it is left out: its segments do not grow by the same bytes a block.
    """
    peculiar = 2 if trial.fsdp.shards else 1  # FSDP gathers one block ahead
    less, more = shallow_depths(peculiar)
    depth = trial.model.layers
    if trial.model.pretrained or depth <= less + more:
        return None
    low, few = _watched(_with_layers(trial, less), platform)
    high, many = _watched(_with_layers(trial, more), platform)
    segments = segments_at_depth(few, many, depth, peculiar)
    if segments is None:
        return None
    work = roofline.work_at_depth(low.pop("work"), high.pop("work"), depth - less)
    for name in ("peak_allocated_bytes", "peak_reserved_bytes"):
        low.pop(name, None)
    columns: dict[str, Any] = extrapolate(low, high, depth - less) | {"work": work}
    fraction = columns["trainable_param_count"] / columns["param_count"]
    columns["evidence"]["trainable_fraction"] = fraction  # the only number that is not linear in depth
    return columns | observe.peak_columns(segments)


def _with_layers(trial: Trial, layers: int) -> Trial:
    return replace(trial, model=replace(trial.model, layers=layers))
