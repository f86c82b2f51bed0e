"""Columns that a measured and a simulated row fill the same way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch

from bench.memory.timeline import Attribution, Segment
from bench.memory.tracker import Tracker
from bench.trial.columns import Columns
from bench.workload import flops
from bench.workload.architectures import attention_of, blocks_of
from bench.workload.state import Run
from bench.workload.techniques import TECHNIQUES
from bench.workload.tensors import parameter_counts, parameter_sizes
from bench.workload.train_step import run_one_step


def size_columns(run: Run) -> Columns:
    """Columns that follow from the model alone: parameters and the arithmetic of a step."""
    total, trainable = parameter_counts(run)
    matmul, trainable_matmul, in_blocks = _matmul_params(run)
    model_flops, hardware_flops = flops.step_flops(
        run.trial,
        matmul_params=matmul,
        trainable_matmul_params=trainable_matmul,
        block_matmul_params=in_blocks,
    )
    return {
        "tokens_per_step": run.trial.tokens_per_step,
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
    inside = {p for block in blocks_of(run.model).values() for p in block.parameters()}
    looked_up = {m.weight for m in run.model.modules() if isinstance(m, torch.nn.Embedding)}
    multiplied = {
        m.weight
        for m in run.model.modules()
        if hasattr(m, "weight") and not isinstance(m, torch.nn.Embedding)
    }
    counts = [0, 0, 0]
    for parameter, size in parameter_sizes(run.model).items():
        if parameter.ndim < 2 or (parameter in looked_up and parameter not in multiplied):
            continue
        counts[0] += size
        counts[1] += size if parameter.requires_grad else 0
        counts[2] += size if parameter in inside else 0
    return counts[0], counts[1], counts[2]


def watch_steady_steps(run: Run, times: int = 1) -> tuple[dict[str, Any], Tracker]:
    """One more step, watched: that each technique was in force, and where the bytes were.

    Args:
        run: a built trial that has stepped before.
        times: steps to watch for bytes, of which the one with the lowest peak counts.

    Returns:
        The evidence, and the tracker of the step.

    Raises:
        NotInForce: a technique that the trial asked for did not happen.
    """
    seen: list[Tracker] = []
    evidence = collect_evidence(run, lambda: seen.append(_tracked(run)))
    seen += [_tracked(run) for _ in range(times - 1)]
    return evidence, min(seen, key=lambda tracker: tracker.attribution().peak)


def collect_evidence(run: Run, step: Callable[[], object]) -> dict[str, Any]:
    """What shows that each technique was in force while `step` stepped.

    Raises:
        NotInForce: one that the trial asked for did not happen.
    """
    watchers = [technique.watch(run) for technique in TECHNIQUES]
    step()
    evidence: dict[str, Any] = {}
    for watcher in watchers:
        evidence |= watcher()
    return evidence


def _tracked(run: Run) -> Tracker:
    with Tracker(run) as tracker:
        run_one_step(run, tracker.enter_phase)
    return tracker


def peak_columns(segments: list[Segment]) -> Columns:
    """Columns of a watched step's bytes: the categories at its peak, and their own maxima."""
    seen = Attribution.of(segments)
    columns: Columns = {
        "tracked_peak_bytes": seen.peak,
        "peak_phase": seen.phase,
        "gathered_max_bytes": seen.gathered,
        "host_max_bytes": seen.host,
    }
    by_name = {f"{category}_bytes": size for category, size in seen.at_peak.items()}
    by_name |= {f"{category}_max_bytes": seen.largest[category] for category in seen.at_peak}
    by_name |= {f"{phase}_tracked_peak_bytes": peak for phase, peak in seen.peak_by_phase.items()}
    return columns | cast(Columns, by_name)
