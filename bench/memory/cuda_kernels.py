"""What CUDA's kernels allocate inside themselves, and how a step on CUDA differs from one on a CPU.

Fake tensors on a CUDA device need a CUDA build and a driver. So a step meant for CUDA is simulated over
fake CPU tensors and takes CUDA's path where the two differ; which path that is, `methods/cuda_path.py`
decides. Graded on an H100 (results/reference/). The differences:

  optimizers     torch's default is the foreach implementation on CUDA, the loop on a CPU
                 (_get_foreach_kernels_supported_devices)
  autocast       CUDA has its own list of float32 operations (torch.amp's operator reference): layer_norm
                 and pow widen the activations of OPT and GPT-2; sum and softmax widen only where no dtype
                 is given; cross_entropy_loss is left to its parts (autocast_mode.h)
  is it on       torch.is_autocast_enabled() without a device asks about CUDA; peft's adapters call it so
  int8           bitsandbytes multiplies in int8 (MatMul8bitLt); on a CPU it dequantises (MatMul8bitFp).
                 Its CUDA kernels are partly Python (bitsandbytes/backends/cuda/ops.py)
  paged state    lies in unified memory, which torch's allocator does not count (`memory/tracker.py`)
  attention      flash attention's backward accumulates dq in float32 (mha_bwd in flash_api.cpp)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

NARROW = (torch.float16, torch.bfloat16)
_COMPOSED = ("int8_mixed_scaled_mm", "int8_scaled_mm", "gemm_4bit")  # Python over other operations
_FLASH_BACKWARD = "aten::_scaled_dot_product_flash_attention_for_cpu_backward"


def _kernel(func: Any) -> str:
    """The operation's name without the namespace `bitsandbytes` and the overload."""
    return str(func.name()).removeprefix("bitsandbytes::").split(".")[0]


def is_composed(func: Any) -> bool:
    """Whether the bitsandbytes operation is Python over other operations on CUDA (its default kernels)."""
    return _kernel(func) in _COMPOSED


def _by_rows(args: Any) -> int:
    """Where outliers are looked for: absolute values in float16, and a mask of the outliers."""
    elements: int = args[0].numel()
    return 3 * elements if _looks_for_outliers(args) else 0


def _by_rows_and_columns(args: Any) -> int:
    """The quotient by the columns' scales, in float32 and rounded; with outliers, their mask and a copy
    without them. The columns' int8 values, which are a result, are made after that."""
    elements: int = args[0].numel()
    return (10 if _looks_for_outliers(args) else 7) * elements


def _looks_for_outliers(args: Any) -> bool:
    return len(args) > 1 and bool(args[1] > 0)


def _dequantised(args: Any) -> int:
    """The kernel writes float16; for another dtype the float16 result is copied."""
    copied = len(args) > 3 and args[3] not in (None, torch.float16)
    return int(2 * args[0].numel()) if copied else 0


_INT8_WORKSPACES: dict[str, Callable[[Any], int]] = {
    "int8_vectorwise_quant": _by_rows,
    "int8_double_quant": _by_rows_and_columns,
    "int8_mm_dequant": _dequantised,
}


def workspace_bytes(func: Any, args: Any) -> int:
    """Bytes that live on the device only while the operation runs.

    Flash attention's backward, which runs in 16 bits only, holds dq in float32 and the softmax statistics;
    the sequence is rounded up to 128 and the head dimension to 32. bitsandbytes' int8 kernels hold the
    intermediate tensors of their Python part.
    """
    if workspace := _INT8_WORKSPACES.get(_kernel(func)):
        return workspace(args)
    if func.name() != _FLASH_BACKWARD or args[1].dtype not in NARROW:
        return 0
    batch, heads, seq, head_dim = args[1].shape
    rows: int = batch * heads * (-(-seq // 128) * 128)
    return int(rows * (-(-head_dim // 32) * 32) * 4 + rows * 4)
