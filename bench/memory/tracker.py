"""Tracks every tensor storage of one step and attributes the peak to categories.

`Tracker` sees every tensor that an operation returns, counts each storage once, notes when it dies, and
says afterwards to which category it belonged. The measured peak is the allocator's own
(`machine/accelerator.py`, `cpu_allocator.py`). The difference between the two (`untracked_bytes`) is
operator workspace: what operations allocate inside themselves, where no tensor is seen.

The categories:
  parameter   weights, buffers and quantisation state this rank owns
  gradient    what becomes some parameter's .grad, from its creation on
  optimizer   the optimizer's state
  activation  made in a forward and kept for the backward, including autocast's 16-bit copies of weights
  kv_cache    keys and values of earlier tokens, in inference
  temporary   everything else, FSDP's gathered weights included (`gathered_max_bytes` tells them apart)
  input       the batches
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from bench.machine.host import cores
from bench.memory import dispatch, hidden_allocations
from bench.memory.cuda_allocator import CachingAllocator, Replay
from bench.memory.passes import mark_passes
from bench.memory.timeline import Attribution, Mark, Segment, Storage, Timeline
from bench.workload.forwards import watch_forwards
from bench.workload.state import Run, ignored
from bench.workload.tensors import (
    cache_tensors,
    gradient_tensors,
    optimizer_tensors,
    tensors_in,
    weight_tensors,
)

_FROM_VALUES = torch.ops.aten.lift_fresh.default  # torch.tensor: nobody sees it allocate
_SMALLEST_PAGED = 100_000  # elements from which bitsandbytes pages a state (Optimizer8bit.get_state_buffer)


class Tracker:
    """Watches one step of `run`; enter it, pass `enter_phase` to the step, then ask `attribution`.

    Args:
        run: a built trial; what it holds already is counted from the start.
        on_operation: called for each operation of a simulated step, with its arguments and its result.
    """

    def __init__(self, run: Run, on_operation: dispatch.OnOperation = dispatch.ignored_operation) -> None:
        self.run = run
        self._on_operation = on_operation
        self._storages: dict[int, Storage] = {}
        self._timeline = Timeline()
        self._history: list[tuple[Storage, int]] = []
        # a real accelerator's allocator counts operator workspace itself: there it stays `untracked_bytes`
        self._adds_workspace = run.is_fake or not run.platform.has_caching_allocator
        self._offloads_params = run.trial.offload.name == "params" and not run.platform.host_is_device
        self._pages_state = run.trial.optimizer.name.endswith("_paged") and run.platform.has_unified_memory
        self._step_counts_on_host = run.is_fake and run.platform.step_counts_on_host
        self._threads = run.trial.threads or max(1, len(cores()) // run.trial.world_size)
        self._phase = ""
        self._micro_step = self._inside_whole = 0
        self._regions: list[list[Storage]] = []
        self._stack = ExitStack()
        self._thread = threading.get_ident()

    def __enter__(self) -> Tracker:
        self._categorise_held()
        self.run.sent_to_host = self._put_on_host
        self._stack.callback(setattr, self.run, "sent_to_host", ignored)
        self._stack.enter_context(dispatch.watch_resizes(self._resized))
        if self.run.platform.host_is_device:
            self._stack.enter_context(
                dispatch.watch_generator_states(lambda state: self._see(state, "result"))
            )
        for _, block in self.run.named_blocks():
            self._stack.callback(watch_forwards(block, self._enter_region, self._leave_region))
        if self.run.trainer is not None:
            feed = self.run.model.register_forward_pre_hook(self._feed, with_kwargs=True)
            self._stack.callback(feed.remove)
        for (name, _), block in zip(self.run.named_blocks(), self.run.blocks, strict=True):
            stack, _, number = name.removesuffix("._checkpoint_wrapped_module").rpartition(".")
            at = int(number) if number.isdigit() else None
            mark_passes(block, partial(self._mark, stack, at), self._stack)
        self._stack.enter_context(dispatch.OperationWatch(self.watch))
        return self

    def _categorise_held(self) -> None:
        self._categorise("parameter", weight_tensors(self.run.model))
        self._categorise("parameter", iter(self.run.host_weights))
        self._categorise("gradient", gradient_tensors(self.run.model))
        self._categorise("optimizer", self._optimizer_tensors())
        self._categorise("input", (t for batch in self.run.batches for t in batch.values()))

    def _feed(self, _model: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """A loop that fetches its batches gives one to the model."""
        self._categorise("input", tensors_in((*args, *kwargs.values())))

    def begin(self) -> None:
        """Starts the step that is reported; what came before is kept for the allocator's replay only."""
        self._history += [*self._timeline.initial.items(), *self._timeline.changes]
        alive = {storage: storage.bytes for storage in self._storages.values() if storage.bytes}
        self._timeline = Timeline(initial=alive)
        self._phase, self._micro_step = "", 0
        self._categorise_held()

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def watch(self, func: Any, args: Any, kwargs: dict[str, Any], mode: TorchDispatchMode) -> Any:
        """Runs one operation; notes the storages of its arguments and results, and its workspace."""
        platform = self.run.platform
        if platform.collectives_are_gloo and threading.get_ident() != self._thread:
            return func(*args, **kwargs)  # gloo's: hidden_allocations.py counts what its collectives copy
        if self._phase == "backward":
            func = hidden_allocations.as_done_in_place(func, args)
        if self._phase == "optimizer" and ("_foreach" in func.name() or "_fused" in func.name()):
            self._mark(operation=func.name())  # all tensors at once, however many blocks they belong to
        was_decomposed, result = False, None  # bitsandbytes' Python ends in native code, seen by nobody
        is_whole = platform.bitsandbytes_in_python and func.namespace == "bitsandbytes"
        self._inside_whole += is_whole
        if self._adds_workspace:
            was_decomposed, result = hidden_allocations.run_decomposed(func, args, kwargs, platform, mode)
        if not was_decomposed:
            result = func(*args, **kwargs)
        self._inside_whole -= is_whole
        if self.is_counted() and not self._inside_whole and (is_whole or not was_decomposed):
            self._on_operation(func, args, kwargs, result)
        made_before = "result" if func is _FROM_VALUES and not self.run.is_fake else "argument"
        for tensor in tensors_in((*args, *kwargs.values())):
            self._see(tensor, made_before)
        for tensor in tensors_in((result,)):
            self._see(tensor, "result")
        workspace = 0
        if self._adds_workspace:
            workspace = hidden_allocations.workspace_bytes(func, args, result, platform, self._threads)
        if workspace:
            passing = Storage(bytes=0)
            self._timeline.changes += [(passing, workspace), (passing, -workspace)]
        return result

    def enter_phase(self, phase: str) -> None:
        """What `step` calls as each phase begins, and once at its end (`done`)."""
        self._categorise("gradient", gradient_tensors(self.run.model))
        if phase == "backward":
            self._keep(s for s, _ in self._timeline.changes)
        if phase == "done":  # the forward may have replaced quantisation state
            self._categorise("parameter", weight_tensors(self.run.model))
            self._categorise("optimizer", self._optimizer_tensors())
        self._categorise("kv_cache", cache_tensors(self.run.cache))
        self._micro_step += phase in ("forward", "prefill", "decode")
        self._phase = phase
        self._mark()

    def is_counted(self) -> bool:
        """Whether work is counted: in a simulated step; in a decoding up to the second token's."""
        later = self._phase == "passed over" or (self._phase == "decode" and self._micro_step > 2)
        return self.run.is_fake and not later

    def _optimizer_tensors(self) -> Iterator[torch.Tensor]:
        return iter(()) if self.run.trial.workload.inference else optimizer_tensors(self.run.optimizer)

    @property
    def stage(self) -> str:
        """The phase, or `recomputation` where a checkpointed block's forward runs again."""
        return "recomputation" if self._phase == "backward" and self._regions else self._phase

    @property
    def micro_step(self) -> int:
        """The number of the micro-step under way, or of the forward in inference; the first is 1."""
        return self._micro_step

    def segments(self) -> list[Segment]:
        """What each stretch of the step held, by the categories that storages have in the end."""
        return self._timeline.segments()

    def allocator(self, capacity_bytes: int | None = None) -> CachingAllocator:
        """The model of CUDA's caching allocator after the step; its peaks are those of the step."""
        replay = Replay(CachingAllocator(capacity_bytes))
        replay.through(self._history or self._timeline.initial.items())
        replay.allocator.reset_peaks()
        replay.through(self._timeline.changes)
        return replay.allocator

    def attribution(self) -> Attribution:
        """The categories at the instant of the peak, and each category's own maximum."""
        return Attribution.of(self.segments())

    def _mark(self, stack: str = "", block: int | None = None, operation: str = "") -> None:
        at = len(self._timeline.changes)
        self._timeline.marks.append(Mark(at, self._phase, self._micro_step, stack, block, operation))

    def _enter_region(self) -> None:
        self._regions.append([])

    def _leave_region(self) -> None:
        """A block's forward ended. If it was recomputed, what is still alive is kept for its backward."""
        region = self._regions.pop()
        self._keep(region if self._phase == "backward" else ())

    def _keep(self, storages: Iterable[Storage]) -> None:
        for storage in storages:
            alive = storage.bytes and storage.reference is not None and storage.reference() is not None
            if alive and storage.category == "temporary" and not storage.gathered:
                storage.category = "activation"

    def _categorise(self, category: str, tensors: Iterator[torch.Tensor]) -> None:
        for tensor in tensors:
            storage = self._see(tensor, "owned")
            if storage is None or storage.gathered:
                continue
            if storage.unmade_bytes:  # the run owns it, so it existed before the step
                storage.bytes, storage.unmade_bytes = storage.unmade_bytes, 0
                self._timeline.initial[storage] = storage.bytes
            storage.category = category
            sharded = self._offloads_params and category in ("parameter", "gradient", "optimizer")
            paged = self._pages_state and category == "optimizer" and tensor.numel() >= _SMALLEST_PAGED
            storage.on_host = sharded or paged
            if self._step_counts_on_host and category == "optimizer" and not tensor.dim():
                storage.bytes = self._timeline.initial[storage] = 0
                storage.on_host = True

    def _put_on_host(self, tensor: torch.Tensor) -> None:
        """Called by the run for a tensor that it keeps on the host: a fake one does not show it."""
        storage = self._storages.get(tensor.untyped_storage()._cdata)
        if storage is not None and not self.run.platform.host_is_device:
            storage.on_host = True

    def _see(self, tensor: torch.Tensor, how: str) -> Storage | None:
        """The record of a tensor's storage; a new one if it was never seen.

        Args:
            tensor: what was seen.
            how: `result` or `argument` of an operation, or `owned` by the run.

        Returns:
            None for a tensor that does not count: on another device, or without a storage of its own.
        """
        if tensor.device.type != self.run.device.type or isinstance(tensor, DTensor):
            return None
        try:
            untyped = tensor.untyped_storage()
        except NotImplementedError:  # sparse and others
            return None
        seen_before = self._storages.get(untyped._cdata)
        if seen_before is not None:
            return seen_before
        storage = self._register(untyped)
        storage.requested_bytes = untyped.nbytes()
        size = self.run.platform.allocated_bytes(storage.requested_bytes)
        if how == "argument":
            # It was allocated where no dispatch mode looks (gloo's thread). hidden_allocations.py adds it;
            # here it counts 0, unless the run turns out to own it.
            storage.unmade_bytes = size
            return storage
        storage.bytes = size
        storage.on_host = self._offloads_params and self._phase == "optimizer"
        if how == "owned":
            self._timeline.initial[storage] = size
            return storage
        self._timeline.changes.append((storage, size))
        for region in self._regions:
            region.append(storage)
        return storage

    def _register(self, untyped: torch.UntypedStorage) -> Storage:
        key = untyped._cdata
        storage = Storage(bytes=0)

        def died(_reference: Any) -> None:
            self._storages.pop(key, None)
            self._timeline.changes.append((storage, -storage.bytes))
            storage.bytes = 0

        storage.reference = weakref.ref(untyped, died)
        self._storages[key] = storage
        return storage

    def _resized(self, untyped: torch.UntypedStorage, size: int) -> None:
        """Notes that a storage was resized: so FSDP frees and reallocates the weights that it gathers."""
        if untyped.device.type not in (self.run.device.type, "meta"):  # a fake storage is on meta
            return
        storage = self._storages.get(untyped._cdata) or self._register(untyped)
        change = self.run.platform.allocated_bytes(size) - storage.bytes
        storage.bytes += change
        storage.requested_bytes = size or storage.requested_bytes
        storage.gathered, storage.category = True, "temporary"
        self._timeline.changes.append((storage, change))
