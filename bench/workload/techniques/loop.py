"""Whose loop runs the steps, and what a loop adds to the plain step: clipped gradients, outputs kept.

The loop itself does all of it (`train_step.py`, `trainer.py`); here it is watched.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from typing import Any

from bench.workload.state import NotInForceError, Run


def apply(run: Run) -> None:
    """Nothing: the step asks the trial."""


def watch(run: Run) -> Callable[[], dict[str, Any]]:
    """Whether gradients were clipped, bytes of the logits that were kept through a backward, and whose loop
    ran the step."""
    trial = run.trial
    trainer_evidence = _watch_trainer(run) if trial.loop.is_trainer else dict
    run.gradient_norm, run.kept_logits_bytes = None, 0

    def evidence() -> dict[str, Any]:
        found: dict[str, Any] = {**trainer_evidence()}
        if trial.max_grad_norm is not None:
            if run.gradient_norm is None:
                raise NotInForceError("max_grad_norm: no norm of the gradients was computed")
            found["gradients_clipped"] = True
        if trial.keep_outputs:
            if not run.kept_logits_bytes:
                raise NotInForceError("keep_outputs: no logits were kept through the backward")
            found["kept_logits_bytes"] = run.kept_logits_bytes
        return found

    return evidence


def _watch_trainer(run: Run) -> Callable[[], dict[str, Any]]:
    """The Trainer's class, its optimizer's origin, and what accelerate made of the model's outputs."""
    loop = run.trainer
    before = 0 if loop is None else loop.steps
    logits: list[str] = []

    def look(_module: Any, _args: Any, output: Any) -> None:
        if "logits" in output:
            logits.append(str(output["logits"].dtype).removeprefix("torch."))

    hook = run.model.register_forward_hook(look)

    def evidence() -> dict[str, Any]:
        hook.remove()
        if loop is None or loop.steps != before + 1:
            raise NotInForceError(f"loop={run.trial.loop.name}: the Trainer did not run the step")
        if run.trial.loop.is_sft and logits:
            raise NotInForceError("loop=sft: the model returned logits, which TRL's loss does without")
        library = {"trl_version": metadata.version("trl")} if run.trial.loop.is_sft else {}
        return library | {
            "loop_class": type(loop.trainer).__name__,
            "optimizer_passed": loop.optimizer_passed,
            "outputs_copied_to_float32": loop.copies_outputs,
            "logits_dtypes": sorted(set(logits)),
        }

    return evidence
