"""What a simulated step's operations compute and move: all that their time depends on.

In: the operations of a simulated step, one by one. Out: `Operation` entries, counted. What a device needs
for them is asked of `roofline.py` (at least), `data_sheet.py` and `calibration.py` (about).

Views, and tensors that are made and not filled, move nothing, but the host has to issue them.
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from bench.trial.columns import Operation, Work
from bench.workload.tensors import tensors_in

_MOVE_NOTHING = {
    torch.ops.aten.empty,
    torch.ops.aten.empty_like,
    torch.ops.aten.empty_strided,
    torch.ops.aten.new_empty,
    torch.ops.aten.new_empty_strided,
}
# they read or write a few rows of a table or of a cache, not all of it
_TOUCH_A_PART = {torch.ops.aten.embedding, torch.ops.aten.index_copy_}
_PRODUCTS = {  # by the place of the first matrix in the call
    torch.ops.aten.mm: 0,
    torch.ops.aten.bmm: 0,
    torch.ops.aten.addmm: 1,
    torch.ops.aten.baddbmm: 1,
}
_FLASH = "aten::_scaled_dot_product_flash_attention_for_cpu"


def work_of(func: Any, args: Any, kwargs: dict[str, Any], result: Any, phase: str) -> Work:
    """What one operation computes and moves.

    An operation over lists of tensors gives one entry for each tensor, so that work grows evenly with the
    number of blocks, and one for itself.
    """
    name, packet = func.name().partition(".")[0], func._overloadpacket

    def entry(
        tensors: list[torch.Tensor], moved: int, flops: int = 0, shape: tuple[int, ...] = ()
    ) -> Operation:
        layout = _layout(packet, args) if shape else ""
        return Operation(name, _dtype(tensors), shape, flops, moved, phase, layout)

    inputs = list(tensors_in((*args, *kwargs.values())))
    outputs = list(tensors_in((result,)))
    if not outputs and not _writes(func):  # it asks about a tensor: its device, its layout
        return Counter()
    if _is_view(func) or packet in _MOVE_NOTHING:
        return Counter([entry(inputs, 0)])
    if packet in _TOUCH_A_PART:
        part = args[3] if packet is torch.ops.aten.index_copy_ else result
        return Counter([entry([part], 2 * part.nbytes)])
    if any(isinstance(argument, list | tuple) and _has_tensors(argument) for argument in args):
        each = (
            Operation(f"{name}[]", _dtype([t]), (), 0, _moved(t), phase)
            for t in (*inputs, *outputs, *_changed(func, args, kwargs, outputs))
        )
        return Counter([entry(inputs, 0), *each])
    moved = sum(_moved(t) for t in (*inputs, *outputs, *_changed(func, args, kwargs, outputs)))
    if packet is torch.ops.aten._grouped_mm:
        moved -= _unread_experts_bytes(*args[:2])
    return Counter([entry(inputs, moved, _flops(func, args, kwargs, result), _product(packet, args))])


def _has_tensors(argument: Any) -> bool:
    return len(argument) > 1 and any(isinstance(value, torch.Tensor) for value in argument)


@cache
def _writes(func: Any) -> bool:
    return bool(func._schema.is_mutable)


def _changed(func: Any, args: Any, kwargs: dict[str, Any], outputs: list[Any]) -> list[torch.Tensor]:
    """The tensors that it writes without returning them, as optimizers' operations do."""
    if outputs or not _writes(func):
        return []
    given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
    written = (
        given.get(argument.name)
        for argument in func._schema.arguments
        if argument.alias_info and argument.alias_info.is_write
        if argument.name != "grads"  # a fused optimizer writes them where it unscales them, too
    )
    return list(tensors_in(tuple(written)))


def _layout(packet: Any, args: Any) -> str:
    """How the two matrices of a product lie in memory: `nt` in a linear layer's forward."""
    if packet not in _PRODUCTS:
        return ""
    matrices = args[_PRODUCTS[packet] : _PRODUCTS[packet] + 2]
    return "".join("t" if m.stride(-2) == 1 and m.stride(-1) != 1 else "n" for m in matrices)


def _product(packet: Any, args: Any) -> tuple[int, ...]:
    """The batches, rows, columns and length of the sums of a product of matrices; empty for all else."""
    if packet not in _PRODUCTS:
        return ()
    left, right = args[_PRODUCTS[packet]], args[_PRODUCTS[packet] + 1]
    batches = left.shape[0] if left.dim() == 3 else 1
    return (int(batches), int(left.shape[-2]), int(right.shape[-1]), int(left.shape[-1]))


def _unread_experts_bytes(first: torch.Tensor, second: torch.Tensor) -> int:
    """Bytes of experts that no token reaches: there are as many at least as experts outnumber tokens."""
    if first.dim() == second.dim():
        return 0
    experts, rows = (second, first.shape[0]) if second.dim() == 3 else (first, second.shape[1])
    return experts.nbytes * max(0, experts.shape[0] - rows) // experts.shape[0]


def _moved(tensor: torch.Tensor) -> int:
    """Bytes that a tensor has in memory: an expanded tensor is there once."""
    return min(tensor.nbytes, tensor.untyped_storage().nbytes())


def _dtype(tensors: list[torch.Tensor]) -> str:
    """The dtype whose peak counts: that of the first tensor of floats or int8, float32 if there is none."""
    dtypes = [t.dtype for t in tensors if t.is_floating_point() or t.dtype == torch.int8]
    return str(dtypes[0]).removeprefix("torch.") if dtypes else "float32"


@cache
def _is_view(func: Any) -> bool:
    aliases = [value.alias_info for value in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


def _flops(func: Any, args: Any, kwargs: dict[str, Any], result: Any) -> int:
    name = func.name()
    if name.startswith(_FLASH):
        return _attention_flops(name, args)
    if name.startswith("bitsandbytes::int8_linear_matmul"):
        rows = args[0].numel() // args[0].shape[-1]
        return int(2 * rows * args[0].shape[-1] * args[1].shape[0])
    if func is torch.ops.aten._grouped_mm.default:
        return _grouped_flops(*args[:2])
    count = flop_registry.get(func._overloadpacket)
    return int(count(*args, **kwargs, out_val=result)) if count is not None else 0


def _grouped_flops(first: torch.Tensor, second: torch.Tensor) -> int:
    """FLOPs of experts' grouped product: each token's row meets the matrix of its own expert alone."""
    if second.dim() == 2 and first.dim() == 3:
        return 2 * second.numel() * first.shape[1]
    return 2 * first.numel() * second.shape[-1]


def _attention_flops(name: str, args: Any) -> int:
    """FLOPs of the scores and of their product with the values, or of its backward.

    Half where attention is causal: kernels leave out the blocks above the diagonal.
    """
    if name.removeprefix(_FLASH).startswith("_backward"):
        grad, query, key, value = (argument.shape for argument in args[:4])
        flops, causal = sdpa_backward_flop_count(grad, query, key, value), args[7]
    else:
        flops = sdpa_flop_count(*(argument.shape for argument in args[:3]))
        causal = args[4] if len(args) > 4 else False
    return int(flops) // (2 if causal is True else 1)


def work_at_depth(low: Work, high: Work, steps: int) -> Work:
    """The work of a model with `steps` more blocks than `low`, of which `high` has one more."""
    block = Counter({entry: high[entry] - low[entry] for entry in {*low, *high}})
    return Counter({entry: low[entry] + steps * block[entry] for entry in block})
