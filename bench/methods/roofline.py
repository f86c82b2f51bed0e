"""The roofline: a lower bound on a step's time.

In: the operations of a simulated step, one by one. Out: their work (what they compute and move).
`least_time.py` says how long a card takes for it at least.

An operation takes at least its FLOPs over the device's dense peak, and at least its bytes over the
memory's bandwidth: inputs read and outputs written once (Williams 2009). Launches, imperfect kernels,
communication between ranks and traffic with the host are left out, so a real step is slower, a small one
several times; tensors that stay in the device's cache may beat the bandwidth. Good for ranking, not for
planning hours.
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from bench.trial.columns import Work
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
_FLASH = "aten::_scaled_dot_product_flash_attention_for_cpu"


def work_of(func: Any, args: Any, kwargs: dict[str, Any], result: Any) -> Work:
    """What one operation computes and moves; nothing for a view.

    An operation over lists of tensors gives one entry for each tensor, so that work grows evenly with the
    number of blocks.
    """
    if _is_view(func):
        return Counter()
    packet = func._overloadpacket
    if packet in _MOVE_NOTHING:
        return Counter()
    if packet in _TOUCH_A_PART:
        part = args[3] if packet is torch.ops.aten.index_copy_ else result
        return Counter([(_dtype([part]), 0, 2 * part.nbytes)])
    inputs = list(tensors_in((*args, *kwargs.values())))
    outputs = list(tensors_in((result,)))
    if any(isinstance(argument, list | tuple) and len(argument) > 1 for argument in args):
        return Counter((_dtype([t]), 0, _moved(t)) for t in (*inputs, *outputs))
    if not outputs:  # it asks about a tensor: its device, its layout
        return Counter()
    moved = sum(_moved(t) for t in (*inputs, *outputs))
    if packet is torch.ops.aten._grouped_mm:
        moved -= _unread_experts_bytes(*args[:2])
    return Counter([(_dtype(inputs), _flops(func, args, kwargs, result), moved)])


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
