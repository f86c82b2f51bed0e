"""The timed pass of a measurement: warm-up, then blocks of steps until the interval is narrow enough.

In: a built run. Out: seconds of every step, losses, and why it stopped. Nothing watches a timed step but
the clock. With several ranks, rank 0 decides when to stop; a loss that is not finite ends the trial.
"""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from bench.machine import accelerator
from bench.methods.step_statistics import relative_width
from bench.trial.axes import Timing
from bench.trial.columns import Columns
from bench.workload.generate import generate
from bench.workload.state import Run
from bench.workload.train_step import step

_BLOCK_STEPS = 5


class NonFiniteLossError(RuntimeError):  # reads as what happened
    """The training diverged; what was measured is not a training step."""


def warm_up(run: Run) -> tuple[Columns, list[float]]:
    """The steps nobody times, the first of which makes the optimizer's state: columns, and the losses."""
    count = run.trial.timing.warmup_steps
    if run.trial.workload.inference:
        started = time.perf_counter()
        generate(run, look=_require_finite_logits)
        cold_step_seconds = time.perf_counter() - started
        for _ in range(count - 1):
            generate(run)
        return {"cold_step_seconds": cold_step_seconds}, []
    started = time.perf_counter()
    losses = [step(run).item()]
    cold_step_seconds = time.perf_counter() - started
    losses += [step(run).item() for _ in range(count - 1)]
    _require_finite(losses)
    return {"cold_step_seconds": cold_step_seconds}, losses


def timed(run: Run, timing: Timing) -> tuple[Columns, list[float]]:
    """Blocks of steps until the interval is narrow enough or a budget is spent; no step is dropped.

    Returns:
        Columns, and the losses.

    Raises:
        NonFiniteLossError: a loss was not finite.
    """
    block = _decoded if run.trial.workload.name == "decode" else _stepped
    found = Timed()
    reason = ""
    while not reason:
        _line_up(run.device)
        block(run, timing.max_steps - len(found.seconds), found)
        _require_finite(found.losses)
        reason = _agree(run.device, _stop_reason(found.seconds, found.block_seconds, timing))
    columns: Columns = {
        "step_seconds": found.seconds,
        "block_seconds": found.block_seconds,
        "stop_reason": reason,
    }
    if found.first_seconds:
        columns["first_token_seconds"] = statistics.median(found.first_seconds)
    return columns, found.losses


@dataclass
class Timed:
    """What blocks of steps have shown so far; `first_seconds` are from a prompt to its first token."""

    seconds: list[float] = field(default_factory=list)
    first_seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    block_seconds: float = 0.0


def _stepped(run: Run, left: int, found: Timed) -> None:
    """A block of steps, or of prompts, with one synchronisation at each end."""
    inference = run.trial.workload.inference
    stopwatch = accelerator.Stopwatch(run.device)
    results: list[torch.Tensor] = []
    started = time.perf_counter()
    stopwatch.mark()
    for _ in range(min(_BLOCK_STEPS, left)):
        results.append(generate(run) if inference else step(run))
        stopwatch.mark()
    accelerator.synchronize(run.device)
    found.block_seconds += time.perf_counter() - started
    laps = stopwatch.seconds()
    found.seconds += laps
    if inference:
        found.first_seconds += laps
    else:
        found.losses += [loss.item() for loss in results]


def _decoded(run: Run, _left: int, found: Timed) -> None:
    """One generation: the time to the first token apart, then each further token is a step."""
    stopwatch = accelerator.Stopwatch(run.device)
    stopwatch.mark()
    generate(run, mark=stopwatch.mark)
    accelerator.synchronize(run.device)
    first, *others = stopwatch.seconds()
    found.first_seconds.append(first)
    found.seconds += others
    found.block_seconds += sum(others)


def _stop_reason(seconds: list[float], spent: float, timing: Timing) -> str:
    if len(seconds) < timing.min_steps:
        return ""
    if relative_width(seconds) <= timing.relative_ci:
        return "converged"
    if len(seconds) >= timing.max_steps:
        return "max_steps"
    return "budget_seconds" if spent >= timing.budget_seconds else ""


def _require_finite(losses: list[float]) -> None:
    if not all(math.isfinite(loss) for loss in losses):
        raise NonFiniteLossError(
            f"the loss became {losses[-1]}: the training diverged, and its steps are not representative; "
            f"try a smaller optimizer.lr, a larger optimizer.eps, or precision=bf16"
        )


def _require_finite_logits(logits: torch.Tensor) -> None:
    if not torch.isfinite(logits).all():
        raise NonFiniteLossError(
            "the logits are not finite: the model's arithmetic overflowed; try precision=bf16_pure"
        )


def _line_up(device: torch.device) -> None:
    """All ranks start a block together, with nothing pending on the device."""
    accelerator.synchronize(device)
    if dist.is_initialized():
        dist.barrier()
        accelerator.synchronize(device)


def _agree(device: torch.device, reason: str) -> str:
    """The first rank's decision: ranks that disagreed would wait for each other for ever."""
    return str(as_rank_0(reason, device)) if dist.is_initialized() else reason


def as_rank_0(decision: Any, device: torch.device) -> Any:
    """What rank 0 decided, on every rank."""
    decisions = [decision]
    dist.broadcast_object_list(decisions, src=0, device=device)
    return decisions[0]
