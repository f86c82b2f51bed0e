"""Which tensors a thing holds: an operation's arguments, a model, an optimizer, a cache.

`tensors_in` runs for each operation of a step: a plain walk over lists and tuples is several times faster
than torch's general one for trees (`tree_leaves`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

import bitsandbytes as bnb
import torch
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.distributed.tensor import DTensor
from transformers.pytorch_utils import Conv1D

from bench.workload.experts import quantised_experts
from bench.workload.state import Run


def tensors_in(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    """The tensors of `values` and of the lists and tuples among them, in order."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The part of `tensor` that this rank holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def quantised_linears(model: nn.Module) -> list[nn.Module]:
    """bitsandbytes' int8 and 4-bit linears."""
    return [m for m in model.modules() if isinstance(m, bnb.nn.Linear8bitLt | bnb.nn.Linear4bit)]


def computes_as_linear(module: nn.Module) -> bool:
    """Whether a module is a linear: nn.Linear, transformers' Conv1D, or a subclass that computes the same.

    Falcon's subclass of nn.Linear does; a router that also chooses experts does not.
    """
    return type(module) in (nn.Linear, Conv1D) or (
        isinstance(module, nn.Linear) and _multiplies_alone(type(module).forward)
    )


@cache
def _multiplies_alone(forward: Callable[..., Any]) -> bool:
    """Whether the forward of a subclass of nn.Linear, called on a plain one, gives what that gives."""
    with unset_fake_temporarily(), torch.no_grad(), torch.device("cpu"):
        plain, vectors = nn.Linear(2, 3), torch.ones(4, 2)
        try:
            found = forward(plain, vectors)
        except (AttributeError, TypeError, RuntimeError):  # it needs more than weight and bias
            return False
        expected = plain(vectors)
    same = isinstance(found, torch.Tensor) and found.shape == expected.shape
    return same and torch.allclose(found, expected)


def weight_tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    """Parameters, buffers and quantisation state that this rank holds."""
    yield from (local(parameter) for parameter in model.parameters())
    yield from (local(buffer) for buffer in model.buffers())
    for module in quantised_linears(model):
        if isinstance(module, bnb.nn.Linear8bitLt):
            for owner in (module.weight, module.state):
                for name in ("CB", "SCB"):
                    tensor = getattr(owner, name, None)
                    if isinstance(tensor, torch.Tensor):
                        yield tensor
        else:
            yield from _quantisation_state(module.quant_state)
    for experts in quantised_experts(model):
        yield from _quantisation_state(experts.state)


def _quantisation_state(state: Any) -> Iterator[torch.Tensor]:
    for value in vars(state).values():
        if isinstance(value, torch.Tensor):
            yield value
    if state.state2 is not None:
        yield from _quantisation_state(state.state2)


def gradient_tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    """Gradients that exist right now, and the buckets in which a simulated DDP reduces them."""
    yield from (local(p.grad) for p in model.parameters() if p.grad is not None)
    yield from getattr(model, "buckets", ())


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    """The optimizer's state, and the quantisation maps that bitsandbytes keeps beside it."""
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, torch.Tensor):
                yield local(value)
    for value in getattr(optimizer, "name2qmap", {}).values():
        yield value


def cache_tensors(cache: Any) -> Iterator[torch.Tensor]:
    """Keys and values that a cache holds right now; nothing if there is none."""
    for layer in cache.layers if cache is not None else ():
        for tensor in (layer.keys, layer.values):
            if isinstance(tensor, torch.Tensor) and tensor.numel():
                yield tensor


def parameter_sizes(model: nn.Module) -> dict[nn.Parameter, int]:
    """Elements of each parameter, unsharded and unpacked: a 4-bit weight counts two elements a byte."""
    sizes = {parameter: parameter.numel() for parameter in model.parameters()}
    for module in quantised_linears(model):
        weight, rows, columns = module.weight, module.out_features, module.in_features
        sizes[weight] = rows * columns  # type: ignore[index,operator,assignment]
    sizes |= {experts.packed: experts.elements for experts in quantised_experts(model)}
    return sizes


def parameter_counts(run: Run) -> tuple[int, int]:
    """All parameters and those that train, counted unsharded and unpacked (4-bit: two elements a byte)."""
    sizes = parameter_sizes(run.model)
    return sum(sizes.values()), sum(n for p, n in sizes.items() if p.requires_grad)
