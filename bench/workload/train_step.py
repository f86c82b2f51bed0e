"""One training step: measurement times it, simulation runs it on fake tensors, the tracker watches it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from bench.workload.generate import generate
from bench.workload.state import Run


def _unwatched(_phase: str) -> None:
    pass


def run_one_step(run: Run, enter: Callable[[str], None] = _unwatched) -> torch.Tensor:
    """One training step or, if the workload is inference, one generation."""
    return generate(run, enter) if run.trial.workload.inference else step(run, enter)


def step(run: Run, enter: Callable[[str], None] = _unwatched) -> torch.Tensor:
    """One optimizer update over `grad_accum_steps` micro-steps.

    Args:
        run: a built trial.
        enter: called with the phase that begins (forward, backward, optimizer, done); for watchers only, a
            timed step passes nothing.

    Returns:
        The mean loss over the micro-steps, a scalar on the device: reading it would synchronise.
    """
    count, batches = len(run.batches), run.micro_batches
    total = torch.zeros((), device=run.device)
    for batch in batches:
        enter("forward")
        with run.gradient_sync(run.model, batch is batches[-1]):
            with run.autocast(), run.saved_tensors():
                # .loss alone: holding the whole output would keep the logits alive through backward
                loss = run.model(**batch).loss / count
            enter("backward")
            run.scaler.scale(loss).backward()
        total += loss.detach()
        del loss
    enter("optimizer")
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    enter("done")
    return total
