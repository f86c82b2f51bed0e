"""method=simulate: the measured step over fake tensors: shapes without data, no device, no memory.

In: a trial and its platform. Out: a `Simulation`: columns, and the work of the step's operations. `build`
and `run_one_step` run as they do in a measurement, inside `fake_execution`, and the tracker that
attributes a measured step says what the allocator would have held. Blocks repeat, so the step of a deep
model is extrapolated from those of two shallow ones (`depth.segments_at_depth`), or the whole model is
simulated where its blocks do not repeat exactly.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from bench.memory.timeline import Segment
from bench.memory.tracker import Tracker
from bench.methods import observe, roofline
from bench.methods.depth import extrapolate, segments_at_depth, shallow_depths
from bench.methods.fake_execution import fake_execution, without_real_tensors
from bench.trial.columns import Columns, Simulation, Work
from bench.trial.platform import Platform
from bench.trial.spec import Trial
from bench.workload.build import build
from bench.workload.state import CannotExistError
from bench.workload.train_step import run_one_step


def simulate(trial: Trial, platform: Platform) -> Simulation:
    """Predicts a steady step of `trial` without running it: its columns and its work.

    Args:
        trial: what to predict.
        platform: what it would run on: CPU or CUDA.

    Raises:
        CannotExistError: the architecture's code makes tensors whose sizes depend on data.
    """
    started = time.perf_counter()
    try:
        simulation = (None if trial.whole else _extrapolated(trial, platform)) or _whole(trial, platform)
    except (DynamicOutputShapeException, DataDependentOutputException) as error:
        raise CannotExistError(
            f"method=simulate has no data, and in {trial.model.label} the size of a tensor depends on data "
            f"({error.func}): measure it"
        ) from error
    columns = simulation.columns
    columns.setdefault("peak_allocated_bytes", columns["tracked_peak_bytes"])
    columns["simulation_seconds"] = time.perf_counter() - started
    return simulation


def _simulate_step(trial: Trial, platform: Platform) -> tuple[Simulation, list[Segment]]:
    """A steady step's sizes, evidence and work, and its segments."""
    with fake_execution(trial, platform):
        run = build(trial, torch.device("cpu"), platform=platform)
        without_real_tensors(run.model)
        columns = observe.size_columns(run)
        work: Work = Counter()
        with Tracker(run, lambda *operation: work.update(roofline.work_of(*operation))) as tracker:
            run_one_step(run, tracker.enter_phase)  # makes the optimizer's state
            tracker.begin()
            work.clear()
            columns["evidence"] = observe.collect_evidence(
                run, lambda: run_one_step(run, tracker.enter_phase)
            )
    if platform.has_caching_allocator:
        allocator = tracker.allocator()
        columns["peak_allocated_bytes"] = allocator.peak_bytes
        columns["peak_reserved_bytes"] = allocator.reserved_bytes
    return Simulation(columns, work), tracker.segments()


def _whole(trial: Trial, platform: Platform) -> Simulation:
    """Simulates every block."""
    simulation, segments = _simulate_step(trial, platform)
    return replace(simulation, columns=simulation.columns | observe.peak_columns(segments))


def _extrapolated(trial: Trial, platform: Platform) -> Simulation | None:
    """The deep model's step from two shallow ones; None where that is not exact, or saves nothing.

    Leaves out the caching allocator's columns: its segments do not grow by equal bytes with every block.
    """
    peculiar = 2 if trial.fsdp.shards else 1  # FSDP gathers one block ahead
    shallow_depth, deeper_depth = shallow_depths(peculiar)
    depth = trial.model.layers
    if trial.model.pretrained or depth <= shallow_depth + deeper_depth:
        return None
    shallow, shallow_segments = _simulate_step(_with_layers(trial, shallow_depth), platform)
    deeper, deeper_segments = _simulate_step(_with_layers(trial, deeper_depth), platform)
    segments = segments_at_depth(shallow_segments, deeper_segments, depth, peculiar)
    if segments is None:
        return None
    work = roofline.work_at_depth(shallow.work, deeper.work, depth - shallow_depth)
    columns: Columns = extrapolate(shallow.columns, deeper.columns, depth - shallow_depth)
    columns.pop("peak_allocated_bytes", None)
    columns.pop("peak_reserved_bytes", None)
    fraction = columns["trainable_param_count"] / columns["param_count"]
    columns["evidence"]["trainable_fraction"] = fraction  # the only number that is not linear in depth
    return Simulation(columns | observe.peak_columns(segments), work)


def _with_layers(trial: Trial, layers: int) -> Trial:
    return replace(trial, model=replace(trial.model, layers=layers))
