"""Optimizers by implementation: the same update, with very different state and temporaries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import bitsandbytes as bnb
import torch

from bench.trial.spec import Trial
from bench.workload.state import NotInForceError, Run
from bench.workload.tensors import optimizer_tensors

_EPS = 1e-8
_EPS_FP16 = 1e-4  # 1e-8 rounds to zero in fp16 and the first update divides by it


def epsilon(trial: Trial, parameters: list[torch.nn.Parameter]) -> float:
    """What Adam adds to its denominators."""
    if trial.optimizer.eps is not None:
        return trial.optimizer.eps
    return _EPS_FP16 if any(p.dtype == torch.float16 for p in parameters) else _EPS


def make(trial: Trial, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The trial's optimizer over `parameters`."""
    chosen = trial.optimizer
    eps = epsilon(trial, parameters)
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


class InBackward(torch.optim.Optimizer):
    """An optimizer for each parameter, which updates it in the backward and frees its gradient.

    So never more than a few gradients exist at once. Its own step only collects the states.
    """

    def __init__(self, trial: Trial, parameters: list[torch.nn.Parameter]) -> None:
        super().__init__(parameters, {"lr": trial.optimizer.lr})
        self.optimizers = {parameter: make(trial, [parameter]) for parameter in parameters}
        self.updates = 0  # since it was set to 0
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(self._update)

    def _update(self, parameter: torch.nn.Parameter) -> None:
        self.optimizers[parameter].step()
        parameter.grad = None
        self.updates += 1

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Collects the states for who counts them: the backward has updated every parameter."""
        for optimizer in self.optimizers.values():
            self.state.update(optimizer.state)

    @property
    def name2qmap(self) -> dict[str, torch.Tensor]:
        """bitsandbytes' quantisation maps, which its optimizers share."""
        maps = (getattr(optimizer, "name2qmap", {}) for optimizer in self.optimizers.values())
        return {name: value for each in maps for name, value in each.items()}


def apply(run: Run) -> None:
    """Makes the optimizer over what trains; its state appears in the first step."""
    if run.trial.workload.inference:
        return
    if run.trial.loop.is_trainer:  # which makes it once it has prepared the model
        return
    run.optimizer = made(run.trial, [p for p in run.model.parameters() if p.requires_grad])


def made(trial: Trial, trained: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The trial's optimizer, or one for each parameter where it updates in the backward."""
    return InBackward(trial, trained) if trial.optimizer.in_backward else make(trial, trained)


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
    optimizer = run.optimizer
    if isinstance(optimizer, InBackward):
        optimizer.updates = 0

    def evidence() -> dict[str, Any]:
        one = next(iter(optimizer.optimizers.values())) if isinstance(optimizer, InBackward) else optimizer
        found: dict[str, Any] = {"optimizer_class": type(one).__name__}
        if type(one).__module__.startswith("torch."):
            found["optimizer_implementation"] = _implementation(one)
        if isinstance(optimizer, InBackward):
            found["updates_in_backward"] = optimizer.updates
            if optimizer.updates != len(optimizer.optimizers):
                raise NotInForceError(
                    f"optimizer.in_backward: {optimizer.updates} of {len(optimizer.optimizers)} parameters "
                    "were updated in the backward"
                )
        dtypes = {str(t.dtype).removeprefix("torch.") for t in optimizer_tensors(run.optimizer)}
        found["optimizer_state_dtypes"] = sorted(dtypes)
        return found

    return evidence
