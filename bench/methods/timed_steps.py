"""The timed pass of a measurement: warm-up, then blocks of steps until the interval is narrow enough.

In: a built run. Out: seconds of every step, losses, and the reason why it stopped. Only the clock watches a
timed step. With several ranks, rank 0 decides when to stop. A loss that is not finite ends the trial.
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
from bench.workload.loops.generate import generate
from bench.workload.loops.plan import Plan, unwatched
from bench.workload.state import Run

_BLOCK_STEPS = 5


class NonFiniteLossError(RuntimeError):
    """The training diverged, so what was measured is not a representative training step."""


def warm_up(run: Run) -> Plan[tuple[Columns, list[float]]]:
    """A plan of the warm-up steps, of which the first makes the optimizer's state.

    Returns:
        The time of the first step as columns, and the losses; inference has none.

    Raises:
        NonFiniteLossError: a loss, or the first step's logits, were not finite.
    """
    count = run.trial.timing.warmup_steps
    if run.trial.workload.inference:
        started = time.perf_counter()
        generate(run, look=_require_finite_logits)
        cold_step_seconds = time.perf_counter() - started
        for _ in range(count - 1):
            generate(run)
        return {"cold_step_seconds": cold_step_seconds}, []
    started = time.perf_counter()
    losses = [(yield unwatched).item()]
    cold_step_seconds = time.perf_counter() - started
    for _ in range(count - 1):
        losses.append((yield unwatched).item())
    _require_finite(losses)
    return {"cold_step_seconds": cold_step_seconds}, losses


def timed(run: Run, timing: Timing) -> Plan[tuple[Columns, list[float]]]:
    """A plan that times blocks of steps until the interval is narrow enough or a budget is spent.

    It drops no step.

    Returns:
        The columns of time, and the losses; inference has none.

    Raises:
        NonFiniteLossError: a loss was not finite.
    """
    time_block = _time_generation if run.trial.workload.name == "decode" else _time_steps
    samples = Timed()
    reason = ""
    while not reason:
        _line_up(run.device)
        yield from time_block(run, timing.max_steps - len(samples.seconds), samples)
        _require_finite(samples.losses)
        reason = _agree(run.device, _stop_reason(samples.seconds, samples.block_seconds, timing))
    columns: Columns = {
        "step_seconds": samples.seconds,
        "block_seconds": samples.block_seconds,
        "stop_reason": reason,
    }
    if samples.first_seconds:
        columns["first_token_seconds"] = statistics.median(samples.first_seconds)
    return columns, samples.losses


@dataclass
class Timed:
    """What the blocks of steps have given so far; `first_seconds` are from a prompt to its first token."""

    seconds: list[float] = field(default_factory=list)
    first_seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    block_seconds: float = 0.0


def _time_steps(run: Run, left: int, samples: Timed) -> Plan[None]:
    """Times a block of at most `left` steps, or prompts, with one synchronisation at each end."""
    inference = run.trial.workload.inference
    stopwatch = accelerator.Stopwatch(run.device)
    results: list[torch.Tensor] = []
    started = time.perf_counter()
    stopwatch.mark()
    for _ in range(min(_BLOCK_STEPS, left)):
        results.append((yield unwatched))
        stopwatch.mark()
    accelerator.synchronize(run.device)
    samples.block_seconds += time.perf_counter() - started
    laps = stopwatch.seconds()
    samples.seconds += laps
    if inference:
        samples.first_seconds += laps
    else:
        samples.losses += [loss.item() for loss in results]


def _time_generation(run: Run, _left: int, samples: Timed) -> Plan[None]:
    """Times one generation: the first token is kept apart, and each further token is a step.

    It steps itself, and so asks nobody for a step: only it can mark the tokens.
    """
    yield from ()
    stopwatch = accelerator.Stopwatch(run.device)
    stopwatch.mark()
    generate(run, mark=stopwatch.mark)
    accelerator.synchronize(run.device)
    first, *others = stopwatch.seconds()
    samples.first_seconds.append(first)
    samples.seconds += others
    samples.block_seconds += sum(others)


def _stop_reason(seconds: list[float], spent: float, timing: Timing) -> str:
    """Why the timed steps end here; empty where they go on. `spent` are the seconds of all blocks."""
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
    """Rank 0's reason to stop, on every rank: ranks that disagree would wait for each other for ever."""
    return str(as_rank_0(reason, device)) if dist.is_initialized() else reason


def as_rank_0(decision: Any, device: torch.device) -> Any:
    """Rank 0's decision, on every rank; needs a process group."""
    decisions = [decision]
    dist.broadcast_object_list(decisions, src=0, device=device)
    return decisions[0]
