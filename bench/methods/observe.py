"""Columns that measurement and simulation fill alike: sizes, evidence, and where the bytes were.

In: a built run, or the segments of a watched step. Out: columns, and evidence that techniques were in
force.
"""

from __future__ import annotations

import json
from typing import Any, cast

import torch

from bench.memory.timeline import Attribution, Segment, stretches
from bench.memory.tracker import Tracker
from bench.trial.columns import Columns
from bench.workload import flops
from bench.workload.architectures import attention_of, blocks_of
from bench.workload.experts import active_shares
from bench.workload.loops.plan import Enter, Plan
from bench.workload.state import Run
from bench.workload.techniques import TECHNIQUES
from bench.workload.tensors import parameter_counts, parameter_sizes


def size_columns(run: Run) -> Columns:
    """Columns that follow from model and trial without a step: parameters, tokens and FLOPs of a step."""
    total, trainable = parameter_counts(run)
    shares = active_shares(run.model, run.model_config)
    active = {p: round(size * shares.get(p, 1.0)) for p, size in parameter_sizes(run.model).items()}
    matmul, trainable_matmul, block_matmul = _matmul_params(run, active)
    model_flops, hardware_flops = flops.step_flops(
        run.trial,
        matmul_params=matmul,
        trainable_matmul_params=trainable_matmul,
        block_matmul_params=block_matmul,
    )
    columns: Columns = {
        "tokens_per_step": run.trial.tokens_per_step,
        "param_count": total,
        "trainable_param_count": trainable,
        "active_param_count": sum(active.values()),
        "model_flops_per_step": model_flops,
        "hardware_flops_per_step": hardware_flops,
        "attention": attention_of(run.model_config),
    }
    if run.trainer is not None:
        columns["loop_arguments"] = json.dumps(run.trainer.arguments)
    return columns


def _matmul_params(run: Run, active: dict[torch.nn.Parameter, int]) -> tuple[int, int, int]:
    """How many parameters multiply a token's activations: all, those that train, those inside blocks.

    Matrices count, with the `active` elements of each, those that work on a token. An embedding counts only
    where it is tied to the head, which multiplies by it.
    """
    in_blocks = {p for block in blocks_of(run.model).values() for p in block.parameters()}
    looked_up = {m.weight for m in run.model.modules() if isinstance(m, torch.nn.Embedding)}
    multiplied = {
        m.weight
        for m in run.model.modules()
        if hasattr(m, "weight") and not isinstance(m, torch.nn.Embedding)
    }
    total = trainable = block = 0
    for parameter, size in active.items():
        if parameter.ndim < 2 or (parameter in looked_up and parameter not in multiplied):
            continue
        total += size
        trainable += size if parameter.requires_grad else 0
        block += size if parameter in in_blocks else 0
    return total, trainable, block


def watch_steady_steps(run: Run, times: int = 1) -> Plan[tuple[dict[str, Any], Tracker]]:
    """A plan that watches steady steps: that each technique was in force, and where the bytes were.

    Args:
        run: a built trial that has stepped before.
        times: steps to watch for bytes, of which the one with the lowest peak counts.

    Returns:
        The evidence of the first step, and the tracker of the step with the lowest peak.

    Raises:
        NotInForceError: a technique that the trial asked for did not happen.
    """
    evidence: dict[str, Any] = {}
    trackers: list[Tracker] = []
    for _ in range(times):
        with Tracker(run) as tracker:
            if run.trainer is not None:  # it holds batches that were fetched before anybody watched
                yield tracker.enter_phase
                tracker.begin()
            if trackers:
                yield tracker.enter_phase
            else:
                evidence = yield from collect_evidence(run, tracker.enter_phase)
        trackers.append(tracker)
    return evidence, min(trackers, key=lambda tracker: tracker.attribution().peak)


def collect_evidence(run: Run, enter: Enter) -> Plan[dict[str, Any]]:
    """A plan of one step, told to `enter`: what shows that each technique was in force.

    Raises:
        NotInForceError: a technique that the trial asked for did not happen.
    """
    watchers = [technique.watch(run) for technique in TECHNIQUES]
    yield enter
    evidence: dict[str, Any] = {}
    for watcher in watchers:
        evidence |= watcher()
    return evidence


def peak_columns(segments: list[Segment]) -> Columns:
    """Columns of a watched step's bytes: each category at the step's peak, and each category's maximum."""
    attribution = Attribution.of(segments)
    columns: Columns = {
        "tracked_peak_bytes": attribution.peak,
        "peak_phase": attribution.phase,
        "gathered_max_bytes": attribution.gathered,
        "host_max_bytes": attribution.host,
    }
    if attribution.peak_by_phase.keys() <= {"forward", "backward", "optimizer"}:
        columns["timeline"] = stretches(segments)
    by_name = {f"{category}_bytes": size for category, size in attribution.at_peak.items()}
    by_name |= {f"{category}_max_bytes": attribution.largest[category] for category in attribution.at_peak}
    by_name |= {f"{phase}_tracked_peak_bytes": peak for phase, peak in attribution.peak_by_phase.items()}
    return columns | cast(Columns, by_name)
