"""method=simulate: the measured step over fake tensors: shapes without data, no device, no memory.

In: a trial and its platform. Out: a `Simulation`: columns, and the work of the step's operations. `build`
and `carry_out` run as they do in a measurement, inside `fake_execution`, and the tracker that
attributes a measured step says what the allocator would have held. Blocks repeat, so the step of a deep
model is extrapolated from those of two models of some of its blocks (`depth.segments_at_depth`), or the
whole model is simulated where its blocks do not repeat exactly. Micro-steps repeat, too
(`Run.micro_batches`).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.nn.modules.module import register_module_forward_pre_hook

from bench.machine.gpu_catalogue import catalogue
from bench.memory.dispatch import OnOperation, ignored_operation
from bench.memory.timeline import Segment
from bench.memory.tracker import Tracker
from bench.methods import observe
from bench.methods.depth import extrapolate, repetition_of, segments_at_depth
from bench.methods.fake_execution import fake_execution, without_real_tensors
from bench.timing import operations
from bench.trial.columns import Columns, Operation, Simulation, Work
from bench.trial.outcome import CannotExistError
from bench.trial.platform import Platform
from bench.trial.spec import Trial
from bench.workload.architectures import on_meta
from bench.workload.build import build
from bench.workload.loops.plan import Plan
from bench.workload.loops.train_step import carry_out
from bench.workload.shortened import block_kinds, shortened
from bench.workload.state import REPEATED


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


def observe_operations(trial: Trial, platform: Platform, seen: OnOperation) -> None:
    """Simulates a step of the whole model and calls `seen` with each of its operations."""
    _simulate_step(replace(trial, whole=True), platform, seen)


def _simulate_step(
    trial: Trial, platform: Platform, seen: OnOperation = ignored_operation
) -> tuple[Simulation, list[Segment]]:
    """A steady step's sizes, evidence and work, and its segments; calls `seen` with each operation."""
    work: Work = Counter()
    is_steady = False
    with fake_execution(trial, platform):
        run = build(trial, torch.device("cpu"), platform=platform)
        without_real_tensors(run.model)
        columns = observe.size_columns(run)

        def count(func: Any, args: Any, kwargs: dict[str, Any], result: Any) -> None:
            if not is_steady:
                return
            seen(func, args, kwargs, result)
            times = 1 + (run.passed_over if tracker.micro_step == REPEATED else 0)
            for entry, number in operations.work_of(func, args, kwargs, result, tracker.stage).items():
                work[entry] += times * number

        def count_module(_module: Any, _args: Any) -> None:
            if not is_steady or not tracker.is_counted():
                return
            times = 1 + (run.passed_over if tracker.micro_step == REPEATED else 0)
            work[Operation("module", "", (), 0, 0, tracker.stage)] += times

        tracker = Tracker(run, count)

        def plan() -> Plan[None]:
            nonlocal is_steady
            with tracker, _called_for_each_module(count_module):
                yield tracker.enter_phase  # makes the optimizer's state
                tracker.begin()
                is_steady = True
                columns["evidence"] = yield from observe.collect_evidence(run, tracker.enter_phase)

        carry_out(run, plan())
    segments = tracker.segments()
    if run.passed_over and not _micro_steps_repeat(segments):
        return _simulate_step(replace(trial, whole=True), platform)
    if platform.has_caching_allocator:
        allocator = tracker.allocator(_capacity_bytes(trial))
        columns["peak_allocated_bytes"] = allocator.peak_bytes
        # What it reserves depends on all that came before, and on the streams on which FSDP gathers.
        if not (run.passed_over or trial.fsdp.shards or allocator.overflowed):
            columns["peak_reserved_bytes"] = allocator.peak_reserved_bytes
    return Simulation(columns, work), segments


def _capacity_bytes(trial: Trial) -> int | None:
    """What the driver can give to the tensors of a trial: what the card that `gpu` names leaves, at most
    memory_limit_bytes, which torch keeps; None where nothing says it."""
    card = None if trial.gpu is None else catalogue().get(trial.gpu)
    if card is None:
        return trial.memory_limit_bytes
    left = card.memory_bytes - sum(card.hardware_bytes(trial).values())
    return left if trial.memory_limit_bytes is None else min(left, trial.memory_limit_bytes)


@contextmanager
def _called_for_each_module(seen: Callable[[Any, Any], None]) -> Iterator[None]:
    """Calls `seen` as each module's forward begins: its Python costs the host time."""
    handle = register_module_forward_pre_hook(seen)
    try:
        yield
    finally:
        handle.remove()


def _micro_steps_repeat(segments: list[Segment]) -> bool:
    """Whether the micro-step that stands for those passed over holds what the one before it holds."""
    before, repeated = (
        [
            (s.mark.phase, s.mark.stack, s.mark.block, s.peak, s.at_peak, s.changes)
            for s in segments
            if s.mark.micro_step == number
        ]
        for number in (REPEATED - 1, REPEATED)
    )
    return before == repeated


def _whole(trial: Trial, platform: Platform) -> Simulation:
    """Simulates every block."""
    simulation, segments = _simulate_step(trial, platform)
    return replace(simulation, columns=simulation.columns | observe.peak_columns(segments))


def _extrapolated(trial: Trial, platform: Platform) -> Simulation | None:
    """The step of a deep model from those of two models of some of its blocks.

    Returns None where that is not exact, or saves nothing.

    Leaves out the caching allocator's columns: its segments do not grow by equal bytes with every block.
    """
    peculiar = 2 if trial.fsdp.shards else 1  # FSDP gathers one block ahead
    kinds = _block_kinds(trial)
    repetition = repetition_of(kinds, peculiar) if kinds else None
    if kinds is None or repetition is None:
        return None
    simulated = []
    for kept in (repetition.shallow, repetition.deeper):
        part = replace(trial, model=shortened(trial.model, kept))
        if _block_kinds(part) != [kinds[number] for number in kept]:
            return None
        simulated.append(_simulate_step(part, platform))
    (shallow, shallow_segments), (deeper, deeper_segments) = simulated
    segments = segments_at_depth(shallow_segments, deeper_segments, repetition)
    if segments is None:
        return None
    work = operations.work_at_depth(shallow.work, deeper.work, repetition.steps)
    columns: Columns = extrapolate(shallow.columns, deeper.columns, repetition.steps)
    columns.pop("peak_allocated_bytes", None)
    columns.pop("peak_reserved_bytes", None)
    fraction = columns["trainable_param_count"] / columns["param_count"]
    columns["evidence"]["trainable_fraction"] = fraction
    _extrapolate_share(columns["evidence"], shallow.columns, deeper.columns, repetition.steps)
    return Simulation(columns | observe.peak_columns(segments), work)


def _extrapolate_share(evidence: dict[str, Any], low: Columns, high: Columns, steps: int) -> None:
    """Corrects the share of quantised weights: a quotient of two numbers that are linear in depth."""
    if "quantised_share" not in evidence:
        return
    quantised, total = (
        extrapolate(low["evidence"][name], high["evidence"][name], steps)
        for name in ("quantised_params", "base_params")
    )
    evidence["quantised_share"] = quantised / total


def _block_kinds(trial: Trial) -> list[Any] | None:
    """What each block of the model consists of; of a family that is given by numbers all are alike."""
    if not trial.model.by_config:
        return [None] * trial.model.layers
    return block_kinds(on_meta(trial))
