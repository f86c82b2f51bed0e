"""How a step on CUDA differs from one on a CPU, for simulating the first where there is only the second.

Fake tensors on a CUDA device need a CUDA build and a driver, so a step meant for CUDA is simulated over
fake CPU tensors, and takes CUDA's path where the two part. Graded on an H100 (results/reference/).

  optimizers     torch's default is the foreach implementation on CUDA, the loop on a CPU
                 (_get_foreach_kernels_supported_devices)
  autocast       CUDA's list of operations in float32 is another one (torch.amp's operator reference):
                 layer_norm and pow widen the activations of OPT and GPT-2, a sum and a softmax only what
                 nobody gave a dtype, and cross_entropy_loss nothing by itself (autocast_mode.h)
  is it on       torch.is_autocast_enabled() without a device asks about CUDA: peft's adapters do
  int8           bitsandbytes multiplies in int8 (MatMul8bitLt), on a CPU it dequantises (MatMul8bitFp); its
                 CUDA kernels are Python in part (bitsandbytes/backends/cuda/ops.py)
  paged state    unified memory, which torch's allocator does not count (memory.py)
  attention      flash attention's backward accumulates dq in float32 (mha_bwd in flash_api.cpp)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_NARROW = (torch.float16, torch.bfloat16)
_COMPOSED = ("int8_mixed_scaled_mm", "int8_scaled_mm", "gemm_4bit")  # of other operations, on CUDA too
_FLASH_BACKWARD = "aten::_scaled_dot_product_flash_attention_for_cpu_backward"


def _kernel(func: Any) -> str:
    """What bitsandbytes calls the operation, if it is one of its own."""
    return str(func.name()).removeprefix("bitsandbytes::").split(".")[0]


def is_composed(func: Any) -> bool:
    """Whether the bitsandbytes operation is Python over other operations on CUDA (its default kernels)."""
    return _kernel(func) in _COMPOSED


def _by_rows(args: Any) -> int:
    """Where outliers are looked for: absolute values in float16, and whether each is one."""
    elements: int = args[0].numel()
    return 3 * elements if _looks_for_outliers(args) else 0


def _by_rows_and_columns(args: Any) -> int:
    """The quotient by the columns' scales in float32, and rounded; with outliers, where they are and a copy
    without them. The columns' int8, which is among the results, comes after that."""
    elements: int = args[0].numel()
    return (10 if _looks_for_outliers(args) else 7) * elements


def _looks_for_outliers(args: Any) -> bool:
    return len(args) > 1 and bool(args[1] > 0)


def _dequantised(args: Any) -> int:
    """The kernel writes float16; another dtype is a copy of that."""
    other = len(args) > 3 and args[3] not in (None, torch.float16)
    return int(2 * args[0].numel()) if other else 0


_INT8_BETWEEN: dict[str, Callable[[Any], int]] = {
    "int8_vectorwise_quant": _by_rows,
    "int8_double_quant": _by_rows_and_columns,
    "int8_mm_dequant": _dequantised,
}


def workspace_bytes(func: Any, args: Any) -> int:
    """Bytes that live on the device only while the operation runs.

    Flash attention's backward: dq in float32 and the softmax statistics, sequence rounded up to 128 and
    head dimension to 32; it runs in 16 bits only. And what is between the lines of bitsandbytes' kernels.
    """
    if between := _INT8_BETWEEN.get(_kernel(func)):
        return between(args)
    if func.name() != _FLASH_BACKWARD or args[1].dtype not in _NARROW:
        return 0
    batch, heads, seq, head_dim = args[1].shape
    rows: int = batch * heads * (-(-seq // 128) * 128)
    return int(rows * (-(-head_dim // 32) * 32) * 4 + rows * 4)
