"""Fake execution: tensors with shapes and no data, and a process group of which one rank exists.

In: a trial and its platform. Out: a context, `fake_execution`, and the patches of torch, transformers and
bitsandbytes that it takes. Fake tensors have no values, so code that reads a value gets the one that a
steady step would find, and takes the measured step's path. Who reads values: transformers' masking_utils
asks whether tokens are packed or padded (they never are), and treats fake tensors as tracing; torch's
GradScaler asks whether a gradient overflowed, and the Trainer whether a loss did (not in a steady step);
Adafactor reads its step count; some
mixtures of experts read how many tokens each expert gets (equally many here: balanced routing).
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
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp._fully_shard import _fully_shard as fully_shard_module
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import masking_utils

from bench.memory import hidden_allocations
from bench.methods.cuda_path import cuda_semantics
from bench.methods.fake_routing import BalancedRouting, are_real_numbers
from bench.trial.platform import CUDA, Platform
from bench.trial.spec import Trial
from bench.workload.techniques import fsdp

_LESS_THAN = torch.ops.aten.lt.Scalar  # OPT asks whether a random number is below its layerdrop of 0
_ARE_FALSE = (torch.ops.aten.any.default, torch.ops.aten.isnan.default, torch.ops.aten.isinf.default)


class _ScalarValues(TorchDispatchMode):
    """Gives code that reads a fake scalar the value that a steady step would find there."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # scalars that are False: whether there is an outlier, an overflow, a layer to drop
        self._false_ids: set[int] = set()
        self._routing = BalancedRouting()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # as in bench/memory/dispatch.py

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.prim.device.default:  # half of all operations
            return args[0].device
        if _is_arithmetic_of_sizes(func, args) or are_real_numbers(func, args):
            with unset_fake_temporarily():
                return func(*args, **(kwargs or {}))
        if func is torch.ops.aten._local_scalar_dense.default:
            dtype = args[0].dtype
            if dtype == torch.bool:
                return id(args[0]) not in self._false_ids
            return 1.0 if dtype.is_floating_point else 1
        if func is torch.ops.bitsandbytes.int8_mixed_scaled_mm.default:
            return hidden_allocations.run_decomposed(func, args, kwargs or {}, CUDA, self)[1]
        if func is torch.ops.bitsandbytes.int8_vectorwise_quant.default:
            return (*func(args[0])[:2], torch.empty(0, dtype=torch.int64))
        if func is torch.ops.bitsandbytes.int8_double_quant.default:
            return _double_quantised(args[0])
        if func is torch.ops.aten._grouped_mm.default:
            return _grouped_product(args[0], args[1], args[2] if len(args) > 2 else None)
        if func is torch.ops.aten.split_with_sizes.default:
            args = (args[0], _sizes_that_fit(*args), *args[2:])
        if (found := self._routing.nonzero(func, args)) is not None:
            return found
        result = func(*args, **(kwargs or {}))
        self._routing.follow(func, args, result)
        if func in _ARE_FALSE or (func is _LESS_THAN and args[1] <= 0):
            self._false_ids.add(id(result))
            weakref.finalize(result, self._false_ids.discard, id(result))
        return result


class FakeReplicas(DistributedDataParallel):
    """DistributedDataParallel's memory without its reducer.

    The reducer is C++ and reads memory, which fake tensors do not have. It holds one flat buffer for each
    dtype from construction on, and every finished gradient is copied into it. Where gradients are views of
    it, their own storage is freed then.
    Source: Reducer::mark_variable_ready_dense in torch/csrc/distributed/c10d.
    """

    def __init__(self, module: nn.Module, *, gradient_as_bucket_view: bool = False, **_: Any) -> None:
        nn.Module.__init__(self)
        self.module = module
        self.require_backward_grad_sync = True
        self._are_views = gradient_as_bucket_view
        offsets: dict[torch.dtype, int] = {}
        starts: list[tuple[nn.Parameter, int]] = []  # each parameter, and where its gradient begins
        for parameter in module.parameters():
            if parameter.requires_grad:
                start = offsets.get(parameter.dtype, 0)
                starts.append((parameter, start))
                offsets[parameter.dtype] = start + parameter.numel()
        self.buckets = [torch.empty(size, dtype=dtype) for dtype, size in offsets.items()]
        by_dtype = dict(zip(offsets, self.buckets, strict=True))
        for parameter, start in starts:
            bucket = by_dtype[parameter.dtype]
            view = bucket[start : start + parameter.numel()].view_as(parameter)
            parameter.register_post_accumulate_grad_hook(self._move_into(view))

    def _move_into(self, view: torch.Tensor) -> Any:
        """A hook that moves a finished gradient into its part of the bucket."""

        def move(parameter: torch.Tensor) -> None:
            if self.require_backward_grad_sync and parameter.grad is not None:
                view.copy_(parameter.grad)
                if self._are_views:
                    parameter.grad = view

        return move

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own forward."""
        return self.module(*args, **kwargs)


def _double_quantised(matrix: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """`matrix` in int8 by rows and by columns, the scales of both, and no outlier columns."""
    rows, columns = matrix.shape
    int8 = [torch.empty_like(matrix, dtype=torch.int8) for _ in range(2)]
    return (*int8, torch.empty(rows), torch.empty(columns), torch.empty(0, dtype=torch.int64))


def _grouped_product(first: torch.Tensor, second: torch.Tensor, ends: torch.Tensor | None) -> torch.Tensor:
    """The result of experts' grouped product, of any dtype; torch's own fake kernel takes bfloat16 alone.

    Rows begin at multiples of 16 bytes. Source: create_grouped_gemm_output_tensor in
    ATen/native/GroupedMMUtils.h. On a CPU each group is multiplied into its part of the result.
    """
    groups: list[int] = []
    if first.dim() == second.dim():
        groups = [ends.shape[0] if ends is not None else first.shape[0]]
    rows, columns = first.shape[-2], second.shape[-1]
    step = 16 // first.itemsize
    padded = -(-columns // step) * step
    strides = [rows * padded, padded, 1][-len(groups) - 2 :]
    return torch.empty_strided([*groups, rows, columns], strides, dtype=first.dtype, device=first.device)


def _is_arithmetic_of_sizes(func: Any, args: Any) -> bool:
    """Whether an operation on tensors got whole numbers alone: torch.div of two sizes, read as a size."""
    if not args or isinstance(args[0], FakeTensor) or str(func._schema.arguments[0].type) != "Tensor":
        return False
    return all(isinstance(value, int) or _is_real_number(value) for value in args)


def _is_real_number(value: Any) -> bool:
    is_real = isinstance(value, torch.Tensor) and not isinstance(value, FakeTensor)
    return is_real and value.device.type == "cpu" and not value.dim() and value.dtype == torch.int64


def _sizes_that_fit(whole: torch.Tensor, sizes: list[int], dim: int = 0) -> list[int]:
    """Sizes that were read from fake data do not sum to the whole: then all parts are equal, as they are
    where a router is balanced."""
    total, count = whole.shape[dim], len(sizes)
    if sum(sizes) == total or not count:
        return sizes
    return [total // count + (part < total % count) for part in range(count)]


def without_real_tensors(model: nn.Module) -> None:
    """Makes buffers, and tensors that modules keep as plain attributes, fake.

    A real one becomes fake anew wherever an operation meets it, and would be counted there once more.
    """
    mode = detect_fake_mode()
    assert mode is not None, "inside `fake_execution`"
    for module in model.modules():
        for held in (module._buffers, module.__dict__):
            for name, value in held.items():
                if isinstance(value, torch.Tensor) and not isinstance(value, FakeTensor):
                    held[name] = mode.from_tensor(value)


class _NoNativeCode:
    """Stands for bitsandbytes' native library, which would write where fake tensors have no memory."""

    def __getattr__(self, _name: str) -> Callable[..., None]:
        return lambda *_: None


def _give_quant_state(module: Any) -> None:
    """Gives a gathered 4-bit weight its quantisation state: a fake one cannot become a Params4bit."""
    module.weight.quant_state = module.quant_state


_move = nn.Module.to


def _stay_or_move(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    """nn.Module.to, which a Trainer calls for a model that is on its device: fake weights cannot move."""
    if any(isinstance(parameter, FakeTensor) for parameter in module.parameters()):
        return module
    return _move(module, *args, **kwargs)


def _step_without_overflow_check(
    _scaler: Any, optimizer: torch.optim.Optimizer, _state: Any, *args: Any, **kwargs: Any
) -> Any:
    """GradScaler._maybe_opt_step for gradients that never overflow."""
    return optimizer.step(*args, **kwargs)


@contextmanager
def _fake_ranks(trial: Trial) -> Iterator[None]:
    """A process group of as many ranks as the trial has, none if it has no FSDP; nothing is ever sent."""
    if trial.fsdp.name == "off":
        yield
        return
    store = FakeStore()
    dist.init_process_group("fake", store=store, rank=0, world_size=trial.world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _whole_mesh(*_: Any) -> DeviceMesh:
    """What fully_shard shards over if nobody says: all ranks. Computing on their numbers takes data."""
    with unset_fake_temporarily():
        return init_device_mesh("cpu", (dist.get_world_size(),))


def _as_it_is(tensor: torch.Tensor, *_: Any) -> torch.Tensor:
    """In place of Tensor.pin_memory."""
    return tensor


def _address(tensor: torch.Tensor) -> int:
    """In place of the address, which fake tensors lack: by it accelerate tells parameters apart."""
    return int(tensor.untyped_storage()._cdata)


@contextmanager
def fake_execution(trial: Trial, platform: Platform) -> Iterator[None]:
    """Inside, `trial` can be built and stepped with no memory, no device and no other rank.

    Args:
        trial: what will be built.
        platform: whose code path the step takes: CPU or CUDA.
    """
    with ExitStack() as stack:
        enter = stack.enter_context
        enter(_fake_ranks(trial))
        enter(mock.patch.object(masking_utils, "is_tracing", lambda *_: False))
        enter(mock.patch.object(torch.amp.GradScaler, "_maybe_opt_step", _step_without_overflow_check))
        enter(mock.patch.object(nn.Module, "to", _stay_or_move))
        enter(mock.patch.object(FakeTensor, "data_ptr", _address))
        enter(mock.patch.object(FakeTensor, "pin_memory", _as_it_is))
        enter(mock.patch.object(fully_shard_module, "_init_default_mesh", _whole_mesh))
        enter(mock.patch.object(fsdp, "DistributedDataParallel", FakeReplicas))
        enter(mock.patch.object(torch.nn.parallel, "DistributedDataParallel", FakeReplicas))
        enter(mock.patch.object(bnb_kernels, "lib", _NoNativeCode()))
        enter(mock.patch.object(bnb_kernels, "get_ptr", lambda _tensor: None))
        enter(mock.patch.object(bnb_modules, "fix_4bit_weight_quant_state_from_module", _give_quant_state))
        # no fake tensor may stay in a cache after its mode has ended
        for cache in (bnb.functional.name2qmap, bnb_utils._code_4bit_cache):
            enter(mock.patch.dict(cache, clear=True))
        enter(cuda_semantics(trial, platform))
        enter(FakeTensorMode(allow_non_fake_inputs=True))
        enter(_ScalarValues())
        yield
