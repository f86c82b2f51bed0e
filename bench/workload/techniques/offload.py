"""Offload: parameters or activations that lie on the host, or in files, until they are needed.

`params` is a policy of FSDP, set in `fsdp.py`; here it is only watched. `activations` moves tensors saved
for backward to pinned host memory and back. It differs from torch's save_on_cpu in one thing: it leaves
weights alone. Autograd saves weights for backward too, but they stay on the device anyway, so a copy on the
host would free nothing.

For inference `params` and `disk` are accelerate's hooks: weights lie on the host, or in files, and are
copied to the device for as long as their block computes.

On a CPU the host is the device: the copies are made, and no memory is saved. The row shows it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import accelerate
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.tensor import DTensor

from bench.workload.state import NotInForceError, Run
from bench.workload.tensors import local

Packed = tuple[torch.device, torch.Tensor] | torch.Tensor


class ActivationOffload:
    """Saved-tensor hooks that keep activations on the host between forward and backward."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.pinned = run.device.type != "cpu"
        self.offloaded_bytes = 0
        self._weights: set[int] = set()
        for owner in (*run.blocks, run.model):  # sharded weights exist as such only once they are gathered
            owner.register_forward_pre_hook(lambda module, _args: self._learn_weights(module))

    def context(self) -> AbstractContextManager[Any]:
        """The context to run the forward in."""
        self._weights.clear()
        self._learn_weights(self.run.model)
        return saved_tensors_hooks(self._pack, self._unpack)

    def _learn_weights(self, module: nn.Module) -> None:
        for parameter in module.parameters():
            self._weights.add(local(parameter).untyped_storage()._cdata)

    def _pack(self, tensor: torch.Tensor) -> Packed:
        if isinstance(tensor, DTensor) or tensor.untyped_storage()._cdata in self._weights:
            return tensor
        host = torch.empty_like(tensor, device="cpu", pin_memory=self.pinned)
        host.copy_(tensor, non_blocking=self.pinned)
        self.offloaded_bytes += host.nbytes
        self.run.sent_to_host(host)
        return tensor.device, host

    def _unpack(self, packed: Packed) -> torch.Tensor:
        if isinstance(packed, torch.Tensor):
            return packed
        device, host = packed
        return host.to(device, non_blocking=self.pinned)


def apply(run: Run) -> None:
    """Sets the context in which the forward saves its tensors."""
    level = run.trial.offload.name
    if level == "activations":
        run.activation_offload = ActivationOffload(run)
    elif run.trial.workload.inference and level in ("params", "disk"):
        _hook_weights(run, to_disk=level == "disk")


def _hook_weights(run: Run, *, to_disk: bool) -> None:
    options: dict[str, Any] = {
        "execution_device": run.device,
        "preload_module_classes": sorted({type(block).__name__ for _, block in run.named_blocks()}),
    }
    if to_disk:
        run.disk = TemporaryDirectory(prefix="bench-weights-")
        accelerate.disk_offload(run.model, run.disk.name, **options)
        return
    state_on_host = {name: parameter.detach().cpu() for name, parameter in run.model.state_dict().items()}
    run.host_weights = list(state_on_host.values())
    accelerate.cpu_offload(run.model, state_dict=state_on_host, **options)


def _offloaded_weights(run: Run) -> dict[str, Any]:
    """Bytes of weights outside the device between forwards; raises NotInForceError if any stay on it."""
    left = sum(p.nbytes for p in run.model.parameters() if p.device.type != "meta")
    if left:
        raise NotInForceError(
            f"offload={run.trial.offload.name}: {left} bytes of weights stay on the device"
        )
    if run.disk is not None:
        return {"disk_bytes": sum(path.stat().st_size for path in Path(run.disk.name).glob("*.dat"))}
    moved = sum(tensor.nbytes for tensor in run.host_weights)
    return {"offloaded_bytes": moved, "host_is_device": run.platform.host_is_device}


def watch(run: Run) -> Callable[[], dict[str, Any]]:
    """Bytes kept on the host: of parameters, or of activations in one step."""
    offload = run.activation_offload
    before = offload.offloaded_bytes if offload else 0

    def evidence() -> dict[str, Any]:
        level = run.trial.offload.name
        if level == "off":
            return {}
        if run.trial.workload.inference:
            return _offloaded_weights(run)
        if offload:
            moved = offload.offloaded_bytes - before
        else:
            locals_ = [p.to_local() for p in run.model.parameters() if isinstance(p, DTensor)]
            moved = sum(t.nbytes for t in locals_ if t.device.type == "cpu")
        if not moved:
            raise NotInForceError(f"offload={level}: no byte was kept on the host")
        return {"offloaded_bytes": moved, "host_is_device": run.platform.host_is_device}

    return evidence
