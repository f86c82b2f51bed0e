"""CUDA semantics for a simulated step that runs on the CPU: which operations autocast casts.

CUDA's autocast has lists of its own, and libraries ask whether it is on. `cuda_semantics` makes torch
answer, for as long as it is entered, as it would on a GPU. Owns the patches of torch that
this takes; what CUDA's kernels allocate is in `memory/cuda_kernels.py`.
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

from bench.memory.cuda_kernels import NARROW
from bench.trial.platform import Platform
from bench.trial.spec import Trial

_IN_FLOAT32 = (
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


_TO_FLOAT32 = ("softmax.int", "log_softmax.int", "sum", "sum.dim_IntList", "cumsum")  # if no dtype is given
# In the CPU's float32 list, not in CUDA's: falls through, so that its parts (log_softmax, nll_loss) decide.
_NOT_AUTOCAST_ON_CUDA = ("cross_entropy_loss",)


def _operation(name: str) -> Any:
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), overload or "default")


def _below_autocast(name: str) -> Callable[..., Any]:
    """The operation by its name, on what it is given."""
    op = _operation(name)
    autocast = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)

    def run(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(autocast):
            return op(*args, **kwargs)

    return run


def _is_narrow(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype in NARROW


def _widened(name: str) -> Callable[..., Any]:
    """The operation on operands widened to float32, as CUDA's autocast runs it."""
    op = _below_autocast(name)

    def widen(value: Any) -> Any:
        return value.float() if _is_narrow(value) else value

    return lambda *args, **kwargs: op(*tree_map(widen, args), **tree_map(widen, kwargs))


def _into_float32(name: str) -> Callable[..., Any]:
    """The operation with a float32 result unless a dtype was asked for, as CUDA's autocast runs it."""
    op = _below_autocast(name)
    place = [argument.name for argument in _operation(name)._schema.arguments].index("dtype")

    def run(*args: Any, **kwargs: Any) -> Any:
        asked = args[place] if len(args) > place else kwargs.get("dtype")
        if asked is None and _is_narrow(args[0]):
            return op(*args[:place], **kwargs | {"dtype": torch.float32})
        return op(*args, **kwargs)

    return run


@contextmanager
def _autocast_list() -> Iterator[None]:
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():  # that a kernel is replaced
        warnings.simplefilter("ignore")
        for name in _IN_FLOAT32:
            library.impl(name, _widened(name), "AutocastCPU")
        for name in _TO_FLOAT32:
            library.impl(name, _into_float32(name), "AutocastCPU")
        for name in _NOT_AUTOCAST_ON_CUDA:
            library.impl(name, torch.library.fallthrough_kernel, "AutocastCPU")
    try:
        yield
    finally:
        library._destroy()


_ask_autocast = torch.is_autocast_enabled


def _is_autocast_enabled(device_type: str = "cpu") -> bool:
    return _ask_autocast(device_type)


@contextmanager
def cuda_semantics(trial: Trial, platform: Platform) -> Iterator[None]:
    """Inside, a simulated step over CPU tensors takes the path that it takes on `platform`.

    Args:
        trial: what is simulated.
        platform: its facts say which parts of CUDA's path the step takes: none on a CPU.
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
        if platform.autocast_widens:
            enter(_autocast_list())
        yield
