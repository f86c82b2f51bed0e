"""Fake tensors and fake ranks, in which a step runs with shapes only.

Inside `fake_execution` new tensors have shapes only, a process group has any number of ranks of which one
exists, and code that looks at data is given the answer that a training step would find, so that it takes
the measured step's path. Sources of what is answered: transformers' masking_utils asks whether tokens are
packed or padded (never, here) and treats fake tensors as tracing; torch's GradScaler asks whether any
gradient overflowed (not in a step that counts); Adafactor reads its step count.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import bitsandbytes as bnb
import torch
import torch.distributed as dist
from bitsandbytes.backends import utils as bnb_utils
from bitsandbytes.backends.cpu import ops as bnb_kernels
from bitsandbytes.nn import modules as bnb_modules
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import masking_utils

from bench.memory import hidden_allocations
from bench.methods.cuda_path import cuda_semantics
from bench.trial.platform import CUDA, Platform
from bench.trial.spec import Trial
from bench.workload.techniques import fsdp

_BELOW = torch.ops.aten.lt.Scalar  # OPT's layerdrop of 0 asks it of a random number


class _Answers(TorchDispatchMode):
    """Gives code that reads a fake scalar the value that a training step would find there."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._untrue: set[int] = set()  # whether any is an outlier, or overflowed; a layer dropped

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            dtype = args[0].dtype
            if dtype == torch.bool:
                return id(args[0]) not in self._untrue
            return 1.0 if dtype.is_floating_point else 1
        if func is torch.ops.bitsandbytes.int8_mixed_scaled_mm.default:
            return hidden_allocations.run_decomposed(func, args, kwargs or {}, CUDA, self)[1]
        if func is torch.ops.bitsandbytes.int8_vectorwise_quant.default:
            return (*func(args[0])[:2], torch.empty(0, dtype=torch.int64))
        if func is torch.ops.bitsandbytes.int8_double_quant.default:
            return _double_quantised(args[0])
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.any.default or (func is _BELOW and args[1] <= 0):
            self._untrue.add(id(result))
            weakref.finalize(result, self._untrue.discard, id(result))
        return result


class FakeReplicas(DistributedDataParallel):
    """What DistributedDataParallel holds with gradients as views of its buckets, without its reducer.

    The reducer is C++ and reads memory, which fake tensors do not have. What it holds is simple: one flat
    buffer for each dtype, from construction on, into which every finished gradient is copied before its
    own storage is freed. Source: Reducer::mark_variable_ready_dense in torch/csrc/distributed/c10d.
    """

    def __init__(self, module: nn.Module, **_options: Any) -> None:
        nn.Module.__init__(self)
        self.module = module
        self.require_backward_grad_sync = True
        offsets: dict[torch.dtype, int] = {}
        places: list[tuple[nn.Parameter, int]] = []
        for parameter in module.parameters():
            if parameter.requires_grad:
                places.append((parameter, offsets.get(parameter.dtype, 0)))
                offsets[parameter.dtype] = places[-1][1] + parameter.numel()
        self._buckets = {dtype: torch.empty(size, dtype=dtype) for dtype, size in offsets.items()}
        for parameter, offset in places:
            bucket = self._buckets[parameter.dtype]
            view = bucket[offset : offset + parameter.numel()].view_as(parameter)
            parameter.register_post_accumulate_grad_hook(self._into(view))

    def _into(self, view: torch.Tensor) -> Any:
        def move(parameter: torch.Tensor) -> None:
            if self.require_backward_grad_sync and parameter.grad is not None:
                parameter.grad = view.copy_(parameter.grad)

        return move

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own forward."""
        return self.module(*args, **kwargs)


def _double_quantised(wide: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """int8 by rows and by columns, with the scales of both and no outlier columns."""
    rows, columns = wide.shape
    int8 = [torch.empty_like(wide, dtype=torch.int8) for _ in range(2)]
    return (*int8, torch.empty(rows), torch.empty(columns), torch.empty(0, dtype=torch.int64))


class _Nothing:
    """Native functions that would write where fake tensors have no memory."""

    def __getattr__(self, _name: str) -> Callable[..., None]:
        return lambda *_: None


def _give_quant_state(module: Any) -> None:
    """A gathered 4-bit weight gets its state back; a fake one cannot become a Params4bit for it."""
    module.weight.quant_state = module.quant_state


def _step_regardless(
    _scaler: Any, optimizer: torch.optim.Optimizer, _state: Any, *args: Any, **kwargs: Any
) -> Any:
    return optimizer.step(*args, **kwargs)


@contextmanager
def _ranks(trial: Trial) -> Iterator[None]:
    """A process group of as many ranks as the trial has; nothing is ever sent."""
    if trial.fsdp.name == "off":
        yield
        return
    store = FakeStore()
    dist.init_process_group("fake", store=store, rank=0, world_size=trial.world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def fake_execution(trial: Trial, platform: Platform) -> Iterator[None]:
    """Inside, `trial` can be built and stepped with no memory, no device and no other rank.

    Args:
        trial: what will be built.
        platform: whose path the step takes: CPU or CUDA.
    """
    with ExitStack() as stack:
        enter = stack.enter_context
        enter(_ranks(trial))
        enter(mock.patch.object(masking_utils, "is_tracing", lambda *_: False))
        enter(mock.patch.object(torch.amp.GradScaler, "_maybe_opt_step", _step_regardless))
        enter(mock.patch.object(fsdp, "DistributedDataParallel", FakeReplicas))
        enter(mock.patch.object(bnb_kernels, "lib", _Nothing()))
        enter(mock.patch.object(bnb_kernels, "get_ptr", lambda _tensor: None))
        enter(mock.patch.object(bnb_modules, "fix_4bit_weight_quant_state_from_module", _give_quant_state))
        for kept in (bnb.functional.name2qmap, bnb_utils._code_4bit_cache):  # no fake may outlive its mode
            enter(mock.patch.dict(kept, clear=True))
        enter(cuda_semantics(trial, platform))
        enter(FakeTensorMode(allow_non_fake_inputs=True))
        enter(_Answers())
        yield
