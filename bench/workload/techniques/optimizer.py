"""Optimizers by implementation: the same update, with very different state and temporaries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import bitsandbytes as bnb
import torch

from bench.trial.spec import Trial
from bench.workload.state import Run
from bench.workload.tensors import optimizer_tensors

_EPS = 1e-8
_EPS_FP16 = 1e-4  # 1e-8 rounds to zero in fp16 and the first update divides by it


def make(trial: Trial, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The trial's optimizer over `parameters`."""
    chosen = trial.optimizer
    fp16_weights = any(p.dtype == torch.float16 for p in parameters)
    eps = chosen.eps if chosen.eps is not None else (_EPS_FP16 if fp16_weights else _EPS)
    adam: dict[str, Any] = {"lr": chosen.lr, "eps": eps, "weight_decay": chosen.weight_decay}
    match chosen.name:
        case "adamw":
            return torch.optim.AdamW(parameters, **adam)
        case "adamw_fused":
            return torch.optim.AdamW(parameters, fused=True, **adam)
        case "adamw_foreach":
            return torch.optim.AdamW(parameters, foreach=True, **adam)
        case "adamw_8bit":
            return bnb.optim.AdamW8bit(parameters, **adam)  # type: ignore[no-any-return]
        case "adamw_8bit_paged":
            return bnb.optim.PagedAdamW8bit(parameters, **adam)  # type: ignore[no-any-return]
        case "sgd":
            return torch.optim.SGD(
                parameters,
                lr=chosen.lr,
                momentum=chosen.momentum,
                weight_decay=chosen.weight_decay,
            )
        case "adafactor":
            return torch.optim.Adafactor(parameters, lr=chosen.lr, weight_decay=chosen.weight_decay)
        case _:
            raise AssertionError(f"optimizer {chosen.name} passed validation but is unknown here")


def apply(run: Run) -> None:
    """Makes the optimizer over what trains; its state appears in the first step."""
    if run.trial.workload.inference:
        return
    run.optimizer = make(run.trial, [p for p in run.model.parameters() if p.requires_grad])


def _implementation(optimizer: torch.optim.Optimizer) -> str:
    """Which of torch's implementations a step runs: foreach, fused or loop."""
    group = optimizer.param_groups[0]
    if group.get("fused"):
        return "fused"
    foreach = group.get("foreach")
    if foreach is None and "foreach" in group:
        from torch.optim.optimizer import _default_to_fused_or_foreach

        differentiable = bool(group.get("differentiable", False))
        _, foreach = _default_to_fused_or_foreach(group["params"], differentiable, use_fused=False)
    return "foreach" if foreach else "loop"


def watch(run: Run) -> Callable[[], dict[str, Any]]:
    """The optimizer's class, its implementation, and the dtypes of its state."""

    if run.trial.workload.inference:
        return dict

    def evidence() -> dict[str, Any]:
        found: dict[str, Any] = {"optimizer_class": type(run.optimizer).__name__}
        if type(run.optimizer).__module__.startswith("torch."):
            found["optimizer_implementation"] = _implementation(run.optimizer)
        dtypes = {str(t.dtype).removeprefix("torch.") for t in optimizer_tensors(run.optimizer)}
        found["optimizer_state_dtypes"] = sorted(dtypes)
        return found

    return evidence
