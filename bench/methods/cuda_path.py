"""CUDA semantics for a simulated step over CPU tensors: it takes the code path that it takes on a GPU.

In: a trial and its platform. Out: a context, `cuda_semantics`, and the patches of torch and bitsandbytes
that it takes: CUDA's lists of operations that autocast casts (autocast_mode.h), foreach optimizers by
default, int8 matmuls in autograd, fp16 under accelerate, and whether libraries see that autocast is on.
What CUDA's kernels allocate is in `memory/cuda_kernels.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from accelerate import Accelerator, DistributedType, PartialState
from bitsandbytes.autograd import _functions as bnb_autograd
from torch._subclasses.fake_tensor import FakeTensor
from torch.optim import optimizer as torch_optimizer
from torch.utils._foreach_utils import _get_foreach_kernels_supported_devices
from torch.utils._pytree import tree_map

from bench.memory.cuda_kernels import NARROW
from bench.trial.platform import Platform
from bench.trial.spec import Trial

# CUDA's autocast widens their operands to float32
_OPERANDS_IN_FLOAT32 = (
    "layer_norm",
    "pow.Tensor_Scalar",
    "pow.Tensor_Tensor",
    "rsqrt",
    "reciprocal",
    "exp",
    "log",
    "softplus",
    "nll_loss",
)
# CUDA's autocast gives their results in float32, if no dtype is asked for
_RESULT_IN_FLOAT32 = ("softmax.int", "log_softmax.int", "sum", "sum.dim_IntList", "cumsum")
# In the float32 list of the CPU's autocast, but not of CUDA's: these fall through, so that the lists decide
# about their parts (log_softmax, nll_loss).
_NOT_AUTOCAST_ON_CUDA = ("cross_entropy_loss",)


def _operation(name: str) -> Any:
    """aten's operation by its name, with its overload after a dot."""
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), overload or "default")


def _below_autocast(name: str) -> Callable[..., Any]:
    """The operation by its name, with the CPU's autocast passed over: no argument is cast."""
    op = _operation(name)
    autocast = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)

    def run(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(autocast):
            return op(*args, **kwargs)

    return run


def _is_16_bit(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype in NARROW


def _with_float32_operands(name: str) -> Callable[..., Any]:
    """The operation on operands widened to float32, as CUDA's autocast runs it."""
    op = _below_autocast(name)

    def widen(value: Any) -> Any:
        return value.float() if _is_16_bit(value) else value

    return lambda *args, **kwargs: op(*tree_map(widen, args), **tree_map(widen, kwargs))


def _with_float32_result(name: str) -> Callable[..., Any]:
    """The operation with a float32 result unless a dtype was asked for, as CUDA's autocast runs it."""
    op = _below_autocast(name)
    dtype_index = [argument.name for argument in _operation(name)._schema.arguments].index("dtype")

    def run(*args: Any, **kwargs: Any) -> Any:
        requested = args[dtype_index] if len(args) > dtype_index else kwargs.get("dtype")
        if requested is None and _is_16_bit(args[0]):
            return op(*args[:dtype_index], **kwargs | {"dtype": torch.float32})
        return op(*args, **kwargs)

    return run


@contextmanager
def _cuda_autocast_lists() -> Iterator[None]:
    """Inside, the CPU's autocast casts what CUDA's does."""
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():  # torch warns that a kernel is replaced
        warnings.simplefilter("ignore")
        for name in _OPERANDS_IN_FLOAT32:
            library.impl(name, _with_float32_operands(name), "AutocastCPU")
        for name in _RESULT_IN_FLOAT32:
            library.impl(name, _with_float32_result(name), "AutocastCPU")
        for name in _NOT_AUTOCAST_ON_CUDA:
            library.impl(name, torch.library.fallthrough_kernel, "AutocastCPU")
    try:
        yield
    finally:
        library._destroy()


_torch_is_autocast_enabled = torch.is_autocast_enabled


def _is_autocast_enabled(device_type: str = "cpu") -> bool:
    """torch.is_autocast_enabled, which without an argument asks about CUDA, here about the CPU."""
    return _torch_is_autocast_enabled(device_type)


_make_accelerator = Accelerator.__init__


def _make_accelerator_with_fp16(accelerator: Any, *args: Any, **kwargs: Any) -> None:
    """Accelerator.__init__, which heeds fp16 on a GPU alone."""
    _make_accelerator(accelerator, *args, **kwargs)
    if accelerator.mixed_precision == "fp16":
        accelerator.native_amp = True
        accelerator.scaler = torch.amp.GradScaler(accelerator.device.type)


@contextmanager
def cuda_semantics(trial: Trial, platform: Platform) -> Iterator[None]:
    """Inside, a simulated step over CPU tensors takes the code path that it takes on `platform`.

    Args:
        trial: what is simulated.
        platform: its facts say which patches are made: none for a CPU.
    """
    with ExitStack() as stack:
        enter = stack.enter_context
        updates_on_host = trial.offload.name == "params"
        if platform.foreach_by_default and not updates_on_host:
            devices = [*_get_foreach_kernels_supported_devices(), "cpu"]
            types = [*torch_optimizer._foreach_supported_types, FakeTensor]
            enter(
                mock.patch.object(
                    torch_optimizer, "_get_foreach_kernels_supported_devices", lambda: devices
                )
            )
            enter(mock.patch.object(torch_optimizer, "_foreach_supported_types", types))
        if platform.multiplies_int8:
            enter(mock.patch.object(bnb_autograd, "MatMul8bitFp", bnb_autograd.MatMul8bitLt))
        if platform.peft_sees_autocast:
            enter(mock.patch.object(torch, "is_autocast_enabled", _is_autocast_enabled))
        if platform.accelerate_shards and trial.fsdp.name != "off":
            gpus = ("fake", DistributedType.MULTI_GPU)
            enter(mock.patch.object(PartialState, "_prepare_backend", lambda *_: gpus))
        if platform.accelerate_runs_fp16:
            enter(mock.patch.object(Accelerator, "__init__", _make_accelerator_with_fp16))
        if platform.autocast_widens:
            enter(_cuda_autocast_lists())
        yield
