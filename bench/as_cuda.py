"""How a step on CUDA differs from one on a CPU, for simulating the first where there is only the second.

Fake tensors on a CUDA device need a CUDA build and a driver, so a step meant for CUDA is simulated over
fake CPU tensors, and takes CUDA's path where the two part. None of it has been graded on a GPU yet.

  optimizers     torch's default is the foreach implementation on CUDA, the loop on a CPU
                 (_get_foreach_kernels_supported_devices)
  autocast       CUDA's list of operations in float32 is longer (torch.amp's operator reference): layer_norm
                 and pow widen the activations of OPT and GPT-2
  int8           bitsandbytes multiplies in int8 (MatMul8bitLt), on a CPU it dequantises (MatMul8bitFp)
  paged state    unified memory, which torch's allocator does not count (memory.py)
  attention      flash attention's backward accumulates dq in float32 (mha_bwd in flash_api.cpp)
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from bitsandbytes.autograd import _functions as bnb_autograd
from torch._subclasses.fake_tensor import FakeTensor
from torch.optim import optimizer as torch_optimizer
from torch.utils._foreach_utils import _get_foreach_kernels_supported_devices
from torch.utils._pytree import tree_map

from bench.trial import Trial

_NARROW = (torch.float16, torch.bfloat16)
_IN_FLOAT32 = (
    "layer_norm",
    "pow.Tensor_Scalar",
    "pow.Tensor_Tensor",
    "rsqrt",
    "reciprocal",
    "exp",
    "log",
    "softplus",
    "softmax.int",
    "log_softmax.int",
    "sum.dim_IntList",
    "cumsum",
)
_COMPOSED = ("int8_mixed_scaled_mm", "int8_scaled_mm", "gemm_4bit")  # of other operations, on CUDA too
_FLASH_BACKWARD = "aten::_scaled_dot_product_flash_attention_for_cpu_backward"


def composed(func: Any) -> bool:
    """Whether the bitsandbytes operation is Python over other operations on CUDA (its default kernels)."""
    return func.name().removeprefix("bitsandbytes::").split(".")[0] in _COMPOSED


def passing_bytes(func: Any, args: Any) -> int:
    """Bytes that live on the device only while the operation runs.

    Flash attention's backward: dq in float32 and the softmax statistics, sequence rounded up to 128 and
    head dimension to 32; it runs in 16 bits only.
    """
    if func.name() != _FLASH_BACKWARD or args[1].dtype not in _NARROW:
        return 0
    batch, heads, seq, head_dim = args[1].shape
    rows = batch * heads * (-(-seq // 128) * 128)
    return int(rows * (-(-head_dim // 32) * 32) * 4 + rows * 4)


def _widened(name: str) -> Callable[..., Any]:
    """The operation on operands widened to float32, as CUDA's autocast runs it."""
    packet, _, overload = name.partition(".")
    op = getattr(getattr(torch.ops.aten, packet), overload or "default")
    autocast = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)

    def widen(value: Any) -> Any:
        return value.float() if isinstance(value, torch.Tensor) and value.dtype in _NARROW else value

    def run(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(autocast):
            return op(*tree_map(widen, args), **tree_map(widen, kwargs))

    return run


@contextmanager
def _autocast_list() -> Iterator[None]:
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():  # that a kernel is replaced
        warnings.simplefilter("ignore")
        for name in _IN_FLOAT32:
            library.impl(name, _widened(name), "AutocastCPU")
    try:
        yield
    finally:
        library._destroy()


@contextmanager
def as_cuda(trial: Trial) -> Iterator[None]:
    """Inside, a simulated step over CPU tensors takes the path of one on CUDA."""
    with ExitStack() as stack:
        enter = stack.enter_context
        if trial.offload.name != "params":  # there the optimizer does run on the CPU
            devices = [*_get_foreach_kernels_supported_devices(), "cpu"]
            types = [*torch_optimizer._foreach_supported_types, FakeTensor]
            enter(
                mock.patch.object(
                    torch_optimizer, "_get_foreach_kernels_supported_devices", lambda: devices
                )
            )
            enter(mock.patch.object(torch_optimizer, "_foreach_supported_types", types))
        enter(mock.patch.object(bnb_autograd, "MatMul8bitFp", bnb_autograd.MatMul8bitLt))
        enter(_autocast_list())
        yield
