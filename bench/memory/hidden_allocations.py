"""What operations allocate inside themselves, where a dispatch mode sees no tensor.

On a CPU five kinds can be predicted; the rest is `untracked_bytes`. For CUDA's see `cuda_kernels.py`.
  bitsandbytes   its CPU kernels are Python: run by `run_decomposed`, everything they make is seen. The
                 native code that they call at the end works in place.
  mixed dtypes   an elementwise kernel first copies the operands that are not in the common dtype
                 (TensorIteratorBase::build in ATen/TensorIterator.cpp; the GPU converts on the fly)
  bmm            oneDNN's, for 16-bit types, first copies operands that are neither contiguous nor
                 transposed: the output head's weight once for each sequence, where logits are made of the
                 last position alone (mkldnn_matmul in ATen/native/mkldnn/Matmul.cpp)
  attention      flash attention gives each thread buffers for the scores of one tile, in float32 and in the
                 inputs' type, and its backward copies a gradient that does not lie as its result will
                 (cpu_flash_attention and its backward in ATen/native/cpu/FlashAttentionKernel.cpp)
  collectives    gloo reduce-scatters a copy of its input and gathers into a copy of its output
                 (ProcessGroupGloo::reduce_scatter_tensor_coalesced, AsyncAllgatherWork)
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cache, reduce
from typing import Any

import torch

from bench.machine import cpu_kernels
from bench.memory import cuda_kernels
from bench.trial.platform import Platform
from bench.workload.tensors import tensors_in

_ADD = torch.ops.aten.add.Tensor
_IN_PLACE = {
    _ADD: torch.ops.aten.add_.Tensor,
    torch.ops.aten.scatter_add.default: torch.ops.aten.scatter_add_.default,
    torch.ops.aten.index_put.default: torch.ops.aten.index_put_.default,
    torch.ops.aten.index_add.default: torch.ops.aten.index_add_.default,
}
_ACCUMULATES_WIDE = (
    torch.ops.aten.scatter_add.default,
    torch.ops.aten.scatter_add_.default,
    torch.ops.aten.scatter_reduce.two,
    torch.ops.aten.scatter_reduce_.two,
)
_TENSOR_REFERENCES, _STORAGE_REFERENCES = 4, 2
_FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default
_COPIED_ARGUMENT = {  # by its place in the call
    torch.ops.c10d._reduce_scatter_base_.default: 1,
    torch.ops.c10d._allgather_base_.default: 0,
}


def as_done_in_place(func: Any, args: Any) -> Any:
    """The operation that autograd would have called if no dispatch mode were active.

    The engine adds a second gradient in place if it holds the last reference to the first one, and the
    backward of a look-up (gather, index, index_select) fills its new zeros in place. With a mode active
    neither does (can_accumulate_inplace in torch/csrc/autograd/input_buffer.cpp, gather_backward and others
    ask isTensorSubclassLike). Seen from inside a mode, a tensor of which they hold the last reference has
    `_TENSOR_REFERENCES` and `_STORAGE_REFERENCES`: theirs, the call's and Python's.
    """
    in_place = _IN_PLACE.get(func)
    if in_place is None or torch.is_grad_enabled():
        return func
    first, second = args[:2]
    is_last_reference = (
        first._use_count() == _TENSOR_REFERENCES
        and torch._C._storage_Use_Count(first.untyped_storage()._cdata) == _STORAGE_REFERENCES
    )
    if func is _ADD and not _are_alike(first, second):
        return func
    return in_place if is_last_reference else func


def _are_alike(first: torch.Tensor, second: Any) -> bool:
    same_shape = isinstance(second, torch.Tensor) and second.shape == first.shape
    return same_shape and second.dtype == first.dtype


@cache
def _python_kernel(func: Any, platform: Platform) -> torch._C.DispatchKey | None:
    """The dispatch key of the operation's body if that is Python over other operations; else None."""
    keys = torch._C.DispatchKey
    if func.namespace == "bitsandbytes" and not platform.bitsandbytes_in_python:
        return keys.CompositeExplicitAutograd if cuda_kernels.is_composed(func) else None
    if func.namespace == "bitsandbytes":
        return keys.CPU if func.has_kernel_for_dispatch_key(keys.CPU) else keys.CompositeExplicitAutograd
    if func.namespace != "aten":
        return None
    if func.has_kernel_for_dispatch_key(keys.CPU):
        return None
    composite = func.has_kernel_for_dispatch_key(keys.CompositeImplicitAutograd)
    return keys.CompositeImplicitAutograd if composite else None


def run_decomposed(
    func: Any, args: Any, kwargs: dict[str, Any], platform: Platform, watching: AbstractContextManager[Any]
) -> tuple[bool, Any]:
    """Runs an operation that consists of other operations, so that `watching` sees each of them.

    Args:
        func: the operation.
        args: its positional arguments.
        kwargs: its keyword arguments.
        platform: what it runs on, or would; decides whether it consists of others.
        watching: the dispatch mode to enter meanwhile.

    Returns:
        Whether it was such an operation, and its result.
    """
    body = _python_kernel(func, platform)
    if body is None:
        return False, None
    with watching, torch.no_grad():
        return True, func._op_dk(body, *args, **kwargs)


def workspace_bytes(func: Any, args: Any, result: Any, platform: Platform, threads: int) -> int:
    """Bytes that live only while the operation runs, on top of its operands and its result.

    Args:
        func: the operation.
        args: its positional arguments.
        result: what it returned.
        platform: what it runs on, or would.
        threads: how many threads share the work on a CPU.
    """
    if platform.runs_cuda_kernels:
        return cuda_kernels.workspace_bytes(func, args)
    if func is _FLASH:
        return threads * _tile_bytes(args[0], args[1])
    if func is _FLASH_BACKWARD:
        grad, query, key = args[:3]
        copied = 0 if grad.transpose(1, 2).is_contiguous() else grad.nbytes
        return int(copied) + threads * _tile_backward_bytes(query, key)
    if func is torch.ops.aten.bmm.default:
        return _rearranged_bytes(*args) if platform.bmm_copies_operands else 0
    if func in _ACCUMULATES_WIDE:
        # a 16-bit sum is built in a copy in 32 bits: create_acc_buffer in
        # ATen/native/cpu/ScatterGatherKernel.cpp
        total = args[0]
        return total.numel() * 4 if total.is_floating_point() and total.itemsize == 2 else 0
    if platform.collectives_are_gloo and func in _COPIED_ARGUMENT:
        return int(args[_COPIED_ARGUMENT[func]].untyped_storage().nbytes())
    if not platform.elementwise_copies_operands or torch.Tag.pointwise not in func.tags:
        return 0
    shaped = [t for t in tensors_in(args) if t.dim() and t.dtype != torch.bool]  # masks are not copied
    if len({t.dtype for t in shaped}) < 2 or not any(t.is_floating_point() for t in shaped):
        return 0
    common_dtype = reduce(torch.promote_types, (t.dtype for t in shaped))
    outputs = [t for t in tensors_in((result,)) if t.is_floating_point()]
    converted = [t for t in (*shaped, *outputs) if t.dtype != common_dtype]
    return sum(t.numel() * common_dtype.itemsize for t in converted)


_ONEDNN_LEAST = 16 * 16 * 16  # products of more multiplications than this go to oneDNN


def _rearranged_bytes(first: torch.Tensor, second: torch.Tensor) -> int:
    """Bytes that oneDNN copies before it multiplies [b, m, k] by [b, k, n] on this CPU."""
    if first.numel() * second.shape[2] <= _ONEDNN_LEAST:
        return 0
    if not cpu_kernels.onednn_multiplies(str(first.dtype).removeprefix("torch.")):
        return 0
    return sum(t.numel() * t.itemsize for t in (first, second) if not _is_taken_as_it_is(t))


def _is_taken_as_it_is(tensor: torch.Tensor) -> bool:
    _, rows, columns = tensor.shape
    return tensor.is_contiguous() or tensor.stride() == (rows * columns, 1, rows)


def _tile(query: torch.Tensor, key: torch.Tensor) -> tuple[int, int, int]:
    """Rows and columns of the tile of scores that a thread holds, and bytes of a 16-bit score, if any."""
    length = query.shape[2]
    rows = 256 if length >= 768 else 64 if length >= 192 else 32
    return min(rows, length), min(512, key.shape[2]), 2 if query.itemsize == 2 else 0


def _tile_bytes(query: torch.Tensor, key: torch.Tensor) -> int:
    """A thread's buffers in the forward: a tile's scores, their maxima and sums, and its output."""
    rows, columns, narrow = _tile(query, key)
    return 4 * (rows * columns + 2 * rows + rows * query.shape[3]) + narrow * rows * columns


def _tile_backward_bytes(query: torch.Tensor, key: torch.Tensor) -> int:
    """A thread's buffers in the backward: a tile's scores and their gradient, and its row sums."""
    rows, columns, narrow = _tile(query, key)
    return 2 * (4 + narrow) * rows * columns + 4 * rows
