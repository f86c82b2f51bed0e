"""FSDP and DDP: where parameters, gradients and optimizer state live among the ranks.

The weights get their values here, because sharding decides how much of the model one device ever holds:
each block is made, sharded and freed before the next is made, so the whole model never exists on one
device. torch's fully_shard and DistributedDataParallel are called directly, because accelerate's FSDP
plugin silently runs DDP on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from bench.trial.spec import Trial
from bench.workload.architectures import DTYPES
from bench.workload.state import NotInForceError, Run
from bench.workload.weights import materialise, values_of


def apply(run: Run) -> None:
    """Makes the weights, sharding or replicating as the trial asks."""
    trial = run.trial
    options: dict[str, Any] = {
        "names": {parameter: name for name, parameter in run.model.named_parameters()},
        "made": {},
        "values": values_of(trial),
        # what inference offloads, and what the Trainer shards later, may not fit on the device
        "device": torch.device("cpu") if _made_on_host(trial) else run.device,
        "compute_dtype": DTYPES[trial.precision.compute_dtype],
    }
    if trial.fsdp.shards and not trial.loop.is_trainer:  # which shards, or replicates, by itself
        sharding = _sharding(run)
        for block in run.blocks:
            materialise(block, **options)
            fully_shard(block, **sharding)
        materialise(run.model, **options)
        fully_shard(run.model, **sharding)
        run.gradient_sync = _fsdp_gradient_sync
    else:
        materialise(run.model, **options)
        if trial.fsdp.name == "no_shard" and not trial.loop.is_trainer:
            # Gradients as views of the buckets: otherwise DDP holds every gradient twice.
            run.model = DistributedDataParallel(run.model, gradient_as_bucket_view=True, init_sync=False)
            run.gradient_sync = _ddp_gradient_sync


def _made_on_host(trial: Trial) -> bool:
    if trial.workload.inference:
        return trial.offload.name in ("params", "disk")
    return trial.fsdp.shards and trial.loop.is_trainer


def _sharding(run: Run) -> dict[str, Any]:
    trial = run.trial
    offloaded = trial.offload.name == "params"
    # With autocast the gathered copy is already in the compute dtype: half the traffic and half the
    # gathered bytes, while the shards and the reduction stay in the parameters' own dtype.
    mixed = DTYPES[trial.precision.compute_dtype] if trial.precision.casts_weights else None
    return {
        "mesh": _mesh(run),
        "reshard_after_forward": trial.fsdp.name == "full_shard",
        "mp_policy": MixedPrecisionPolicy(
            param_dtype=mixed,
            reduce_dtype=torch.float32 if mixed else None,
            cast_forward_inputs=False,
        ),
        "offload_policy": (
            CPUOffloadPolicy(pin_memory=run.device.type != "cpu") if offloaded else OffloadPolicy()
        ),
    }


def _mesh(run: Run) -> DeviceMesh:
    with unset_fake_temporarily():  # it computes on the ranks' numbers, which must have data
        return init_device_mesh(run.device.type, (run.trial.world_size,))


def _fsdp_gradient_sync(model: Any, last: bool) -> Any:
    model.set_requires_gradient_sync(last)
    return nullcontext()


def _ddp_gradient_sync(model: Any, last: bool) -> Any:
    return nullcontext() if last else model.no_sync()


def watch(run: Run) -> Callable[[], dict[str, Any]]:
    """Bytes of parameters this rank owns against the whole, and how many blocks are sharded."""

    def evidence() -> dict[str, Any]:
        trial = run.trial
        if trial.fsdp.name == "off":
            return {}
        found: dict[str, Any] = {"ranks": dist.get_world_size()}
        if trial.fsdp.name == "no_shard":
            if not isinstance(run.model, DistributedDataParallel):
                raise NotInForceError("fsdp=no_shard: the model is not replicated by DDP")
            return found
        parameters = list(run.model.parameters())
        sharded = [p for p in parameters if isinstance(p, DTensor)]
        held = sum(p.to_local().nbytes for p in sharded)
        whole = sum(p.numel() * p.element_size() for p in sharded)
        if not run.blocks or len(sharded) < len(parameters) or (trial.world_size > 1 and held >= whole):
            raise NotInForceError(
                f"fsdp={trial.fsdp.name}: {len(sharded)} of {len(parameters)} parameters are "
                f"sharded, {held} of {whole} bytes held"
            )
        found |= {
            "sharded_blocks": sum(isinstance(b, FSDPModule) for b in run.blocks),
            "parameter_bytes_held": held,
            "parameter_bytes_whole": whole,
        }
        return found

    return evidence
