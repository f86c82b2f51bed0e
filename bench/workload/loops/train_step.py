"""One training step: measurement times it, simulation runs it on fake tensors, the tracker watches it.

This is the loop `bare`; `carry_out` runs the steps of a plan in whichever loop the trial asks for.
"""

from __future__ import annotations

import torch

from bench.workload.loops.generate import generate
from bench.workload.loops.plan import Conductor, Enter, Plan, T, unwatched
from bench.workload.state import Run


def carry_out(run: Run, plan: Plan[T]) -> T:
    """Runs steps as `plan` asks for them; returns what it returns, and raises what it or a step raises."""
    with Conductor(plan) as conductor:
        if run.trainer is not None:
            run.trainer.train(conductor)
            return conductor.result
        enter = conductor.first()
        while enter is not None:
            enter = conductor.next(run_one_step(run, enter))
        return conductor.result


def run_one_step(run: Run, enter: Enter = unwatched) -> torch.Tensor:
    """One training step or, if the workload is inference, one generation."""
    return generate(run, enter) if run.trial.workload.inference else step(run, enter)


def _clip(run: Run) -> None:
    """Scales gradients down to the norm that the trial asks for, if their norm is larger."""
    if run.trial.max_grad_norm is None:
        return
    run.scaler.unscale_(run.optimizer)
    trained = [parameter for group in run.optimizer.param_groups for parameter in group["params"]]
    run.gradient_norm = torch.nn.utils.clip_grad_norm_(trained, run.trial.max_grad_norm)


def step(run: Run, enter: Enter = unwatched) -> torch.Tensor:
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
                output = run.model(**batch)
                loss = output.loss / count
            if run.trial.keep_outputs:
                run.kept_logits_bytes = output.logits.nbytes
            else:
                del output  # it would keep the logits alive through the backward
            enter("backward")
            run.scaler.scale(loss).backward()
        total += loss.detach()
        output = None
        del loss
    enter("optimizer")
    _clip(run)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    enter("done")
    return total
