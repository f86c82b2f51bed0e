"""Where the bytes are: the witness.

`Tracker` is a dispatch mode that sees every tensor an operation returns, counts each storage once, notes
when it dies, and says afterwards what it was. It decides nothing about a measured peak: that is the
allocator's word (`device.py` on an accelerator, `allocator.py` on a CPU). The difference between the two
(`untracked_bytes`) is what operations allocate inside themselves, where no tensor is seen.

What the categories mean:
  parameter   weights, buffers and quantisation state this rank owns
  gradient    what becomes some parameter's .grad, from its birth on
  optimizer   the optimizer's state
  activation  born in a forward and kept for the backward, autocast's 16-bit copies of weights included
  kv_cache    keys and values of earlier tokens, where a model infers
  temporary   everything else, FSDP's gathered weights included (`gathered_max_bytes` tells them apart)
  input       the batches
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.memory import hidden_allocations
from bench.memory.cuda_allocator import CachingAllocator, Replay
from bench.memory.dispatch import OperationWatch, watch_resizes
from bench.memory.timeline import Attribution, Mark, Segment, Storage, Timeline
from bench.workload.state import Run, ignored
from bench.workload.tensors import (
    cache_tensors,
    gradient_tensors,
    optimizer_tensors,
    tensors_in,
    weight_tensors,
)

_FIRST_DECODED = 2  # forwards: the prompt's makes a token too
_SMALLEST_PAGED = 100_000  # elements from which bitsandbytes pages a state (Optimizer8bit.get_state_buffer)
OnOperation = Callable[[Any, Any, dict[str, Any], Any], None]  # operation, arguments, keywords, result


def _ignored_operation(_func: Any, _args: Any, _kwargs: dict[str, Any], _result: Any) -> None:
    """What a tracker tells while nobody counts operations."""


class Tracker:
    """Watches one step of `run`; enter it, pass `enter_phase` to the step, then ask `attribution`.

    Args:
        run: a built trial; what it holds already is counted from the start.
        on_operation: told of each operation of a simulated step, with its arguments and its result.
    """

    def __init__(self, run: Run, on_operation: OnOperation = _ignored_operation) -> None:
        self.run = run
        self._on_operation = on_operation
        self._storages: dict[int, Storage] = {}
        self._timeline = Timeline()
        self._history: list[tuple[Storage, int]] = []
        # on a real accelerator the allocator's counters tell; what is inside stays `untracked_bytes`
        self._sees_inside = run.imagined or not run.platform.has_caching_allocator
        self._offloads_params = run.trial.offload.name == "params" and not run.platform.host_is_device
        self._pages_state = run.trial.optimizer.name.endswith("_paged") and run.platform.has_unified_memory
        self._step_counts_leave = run.imagined and run.platform.step_counts_on_host
        self._phase = ""
        self._micro_step = 0
        self._regions: list[list[Storage]] = []
        self._stack = ExitStack()
        self._thread = threading.get_ident()

    def __enter__(self) -> Tracker:
        self._know_what_is_there()
        self.run.sent_to_host = self._on_host
        self._stack.callback(setattr, self.run, "sent_to_host", ignored)
        self._stack.enter_context(watch_resizes(self._resized))
        for _, block in self.run.named_blocks():
            before = block.register_forward_pre_hook(lambda _m, _a: self._regions.append([]))
            after = block.register_forward_hook(self._leave_region, always_call=True)
            self._stack.callback(before.remove)
            self._stack.callback(after.remove)
        for (name, _), block in zip(self.run.named_blocks(), self.run.blocks, strict=True):
            stack, _, number = name.removesuffix("._checkpoint_wrapped_module").rpartition(".")
            self._mark_passes(block, stack, int(number))
        self._stack.enter_context(OperationWatch(self.watch))
        return self

    def _know_what_is_there(self) -> None:
        self._know("parameter", weight_tensors(self.run.model))
        self._know("parameter", iter(self.run.host_weights))
        self._know("gradient", gradient_tensors(self.run.model))
        self._know("optimizer", self._optimizer_tensors())
        self._know("input", (t for batch in self.run.batches for t in batch.values()))

    def begin(self) -> None:
        """The step that counts begins: what was watched before it is only the allocator's history."""
        self._history += [*self._timeline.initial.items(), *self._timeline.changes]
        alive = {storage: storage.bytes for storage in self._storages.values() if storage.bytes}
        self._timeline = Timeline(initial=alive)
        self._phase, self._micro_step = "", 0
        self._know_what_is_there()

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def watch(self, func: Any, args: Any, kwargs: dict[str, Any], mode: TorchDispatchMode) -> Any:
        """Runs one operation and notes what was there, what it made, and what came and went."""
        platform = self.run.platform
        if platform.collectives_are_gloo and threading.get_ident() != self._thread:
            return func(*args, **kwargs)  # one of gloo's: `inside` counts what its collectives copy
        if self._phase == "backward":
            func = hidden_allocations.as_accumulated_in_place(func, args)
        if self._phase == "optimizer" and ("_foreach" in func.name() or "_fused" in func.name()):
            self._mark(operation=func.name())  # all tensors at once, however many blocks they belong to
        done, result = (
            hidden_allocations.run_decomposed(func, args, kwargs, platform, mode)
            if self._sees_inside
            else (False, None)
        )
        if not done:
            result = func(*args, **kwargs)
            if self.run.imagined and self._in_a_step():
                self._on_operation(func, args, kwargs, result)
        for tensor in tensors_in((*args, *kwargs.values())):
            self._see(tensor, "found")
        for tensor in tensors_in((result,)):
            self._see(tensor, "made")
        workspace = 0
        if self._sees_inside:
            workspace = hidden_allocations.workspace_bytes(func, args, result, platform)
        if workspace:
            passing = Storage(bytes=0)
            self._timeline.changes += [(passing, workspace), (passing, -workspace)]
        return result

    def enter_phase(self, phase: str) -> None:
        """What `step` calls as each phase begins, and at its end."""
        self._know("gradient", gradient_tensors(self.run.model))
        if phase == "backward":
            self._keep(s for s, _ in self._timeline.changes)
        if phase == "done":  # quantisation state may have been made anew in the forward
            self._know("parameter", weight_tensors(self.run.model))
            self._know("optimizer", self._optimizer_tensors())
        self._know("kv_cache", cache_tensors(self.run.cache))
        self._micro_step += phase in ("forward", "prefill", "decode")
        self._phase = phase
        self._mark()

    def _in_a_step(self) -> bool:
        """Whether this is part of the step whose work is counted: of a decoding, its first token."""
        decodes = self.run.trial.workload.name == "decode"
        return not decodes or (self._phase == "decode" and self._micro_step == _FIRST_DECODED)

    def _optimizer_tensors(self) -> Iterator[torch.Tensor]:
        return iter(()) if self.run.trial.workload.inference else optimizer_tensors(self.run.optimizer)

    def segments(self) -> list[Segment]:
        """What each stretch of the step held, storages as they turned out."""
        return self._timeline.segments()

    def allocator(self) -> CachingAllocator:
        """CUDA's caching allocator, by its model, after what was watched: its peak is that of the step."""
        replay = Replay()
        replay.through(self._history or self._timeline.initial.items())
        replay.allocator.peak_bytes = replay.allocator.allocated_bytes
        replay.through(self._timeline.changes)
        return replay.allocator

    def attribution(self) -> Attribution:
        """The categories at the instant of the peak, and each category's own maximum."""
        return Attribution.of(self.segments())

    def _mark(self, stack: str = "", block: int | None = None, operation: str = "") -> None:
        at = len(self._timeline.changes)
        self._timeline.marks.append(Mark(at, self._phase, self._micro_step, stack, block, operation))

    def _mark_passes(self, block: nn.Module, stack: str, number: int) -> None:
        """Marks where the block's forward begins, and where the gradient of its output arrives."""

        def forward(_module: nn.Module, _args: Any) -> None:
            self._mark(stack, number)

        def backward(_module: nn.Module, _args: Any, output: Any) -> None:
            first = next(t for t in tree_leaves(output) if isinstance(t, torch.Tensor))
            if first.requires_grad:
                first.register_hook(lambda _gradient: self._mark(stack, number))

        self._stack.callback(block.register_forward_pre_hook(forward).remove)
        self._stack.callback(block.register_forward_hook(backward).remove)

    def _leave_region(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        """A block's forward ended; what a recomputed one leaves alive waits for its backward."""
        region = self._regions.pop()
        if self._phase == "backward":
            self._keep(region)

    def _keep(self, storages: Iterable[Storage]) -> None:
        for storage in storages:
            alive = storage.bytes and storage.reference is not None and storage.reference() is not None
            if alive and storage.category == "temporary" and not storage.gathered:
                storage.category = "activation"

    def _know(self, category: str, tensors: Iterator[torch.Tensor]) -> None:
        for tensor in tensors:
            storage = self._see(tensor, "owned")
            if storage is None or storage.gathered:
                continue
            if storage.unmade_bytes:  # what the run owns and no operation made was there before
                storage.bytes, storage.unmade_bytes = storage.unmade_bytes, 0
                self._timeline.initial[storage] = storage.bytes
            storage.category = category
            sharded = self._offloads_params and category in ("parameter", "gradient", "optimizer")
            paged = self._pages_state and category == "optimizer" and tensor.numel() >= _SMALLEST_PAGED
            storage.on_host = sharded or paged
            if self._step_counts_leave and category == "optimizer" and not tensor.dim():
                storage.bytes = self._timeline.initial[storage] = 0
                storage.on_host = True

    def _on_host(self, tensor: torch.Tensor) -> None:
        """What the run says of a tensor that it keeps on the host; a simulated one does not show it."""
        storage = self._storages.get(tensor.untyped_storage()._cdata)
        if storage is not None and not self.run.platform.host_is_device:
            storage.on_host = True

    def _see(self, tensor: torch.Tensor, how: str) -> Storage | None:
        """`made` by an operation, `found` among the arguments of one, or `owned` by the run."""
        if tensor.device.type != self.run.device.type or isinstance(tensor, DTensor):
            return None
        try:
            untyped = tensor.untyped_storage()
        except NotImplementedError:  # sparse and other tensors without a storage
            return None
        known = self._storages.get(untyped._cdata)
        if known is not None:
            return known
        storage = self._register(untyped)
        storage.asked = untyped.nbytes()
        size = self.run.platform.allocated_bytes(storage.asked)
        if how == "found":  # gloo's copy of what it reduces: `inside` counts it
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
        """FSDP frees and makes anew the weights it gathers by resizing their storages."""
        if untyped.device.type not in (self.run.device.type, "meta"):  # a fake storage is on meta
            return
        storage = self._storages.get(untyped._cdata) or self._register(untyped)
        change = self.run.platform.allocated_bytes(size) - storage.bytes
        storage.bytes += change
        storage.asked = size or storage.asked
        storage.gathered, storage.category = True, "temporary"
        self._timeline.changes.append((storage, change))
