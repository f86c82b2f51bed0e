"""The platform that a trial is about: what differs between a CPU and an accelerator, as named facts.

Code that predicts or counts memory asks a `Platform` for a fact, never for its name; so another platform is
another instance. `CPU` and `CUDA` are the two that simulation and estimation know. Every other accelerator
is counted like CUDA under its own name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

MIN_BLOCK_BYTES = 512  # kMinBlockSize in c10/cuda/CUDACachingAllocator.cpp, as are the next three
SMALL_BYTES = 2**20  # kSmallSize: requests up to this come from the pool of small segments
MIN_LARGE_BYTES = 10 * 2**20  # kMinLargeAlloc: from here on a request gets a segment of its own size
ROUND_LARGE_BYTES = 2 * 2**20  # kRoundLarge: such a segment is a multiple of it


def round_up(size: int, to: int = MIN_BLOCK_BYTES) -> int:
    """`size` bytes rounded up to a multiple of `to`."""
    return -(-size // to) * to


def exact_bytes(size: float) -> int:
    """What the CPU's allocator counts for a tensor of `size` bytes: no more than was requested."""
    return int(size)


def block_bytes(size: float) -> int:
    """What CUDA's caching allocator hands out for a tensor of `size` bytes, as far as its size alone tells.

    A large tensor has a segment of its own, and all of it if the rest is not worth splitting. What a
    smaller one takes of a shared segment of 20 MiB depends on its neighbours; only a replay of the step
    tells (`memory/cuda_allocator.py`).
    """
    whole = int(size)
    requested = round_up(whole) if whole else 0
    segment = round_up(requested, ROUND_LARGE_BYTES)
    return segment if requested >= MIN_LARGE_BYTES and segment - requested <= SMALL_BYTES else requested


@dataclass(frozen=True)
class Platform:
    """What a step does on one type of device, where that differs between devices."""

    device_type: str  # as torch names it
    # which trials can exist
    is_modelled: bool  # simulation and estimation know what a step does there
    ranks_share_device: bool  # any number of ranks run on one device
    has_unified_memory: bool  # paged optimizers keep their state there, which torch does not count
    # memory
    host_is_device: bool  # device memory is host memory: what is offloaded to the host frees nothing
    has_caching_allocator: bool  # it reserves segments, and counts by itself (torch.cuda.memory_stats)
    allocated_bytes: Callable[[float], int]  # what the allocator hands out for a tensor of so many bytes
    step_counts_on_host: bool  # AdamW's lie outside the device (torch.optim.AdamW, capturable=False)
    # which code runs
    foreach_by_default: bool  # torch.optim's default (_get_foreach_kernels_supported_devices)
    autocast_widens: bool  # autocast runs pow, layer_norm and log_softmax in float32 (autocast_mode.h)
    peft_sees_autocast: bool  # torch.is_autocast_enabled() without an argument asks about CUDA alone
    accelerate_runs_fp16: (
        bool  # accelerate ignores it where it knows no loss scaling (Accelerator.__init__)
    )
    accelerate_shards: bool  # it knows FSDP; else it replicates without a word (AcceleratorState.__init__)
    multiplies_int8: bool  # bitsandbytes' autograd is MatMul8bitLt; else MatMul8bitFp, which dequantises
    # what operators allocate inside themselves
    bitsandbytes_in_python: bool  # its kernels are torch operations (bitsandbytes/backends/cpu/ops.py)
    runs_cuda_kernels: bool  # their workspaces are those of memory/cuda_kernels.py
    bmm_copies_operands: bool  # oneDNN's does, in 16 bits (mkldnn_matmul in ATen/native/mkldnn/Matmul.cpp)
    elementwise_copies_operands: bool  # to the common dtype (TensorIteratorBase::build)
    collectives_are_gloo: bool  # they run in threads of gloo's own, on copies (ProcessGroupGloo.cpp)


CPU = Platform(
    device_type="cpu",
    is_modelled=True,
    ranks_share_device=True,
    has_unified_memory=False,
    host_is_device=True,
    has_caching_allocator=False,
    allocated_bytes=exact_bytes,
    step_counts_on_host=False,
    foreach_by_default=False,
    autocast_widens=False,
    peft_sees_autocast=False,
    accelerate_runs_fp16=False,
    accelerate_shards=False,
    multiplies_int8=False,
    bitsandbytes_in_python=True,
    runs_cuda_kernels=False,
    bmm_copies_operands=True,
    elementwise_copies_operands=True,
    collectives_are_gloo=True,
)

CUDA = Platform(
    device_type="cuda",
    is_modelled=True,
    ranks_share_device=False,
    has_unified_memory=True,
    host_is_device=False,
    has_caching_allocator=True,
    allocated_bytes=block_bytes,
    step_counts_on_host=True,
    foreach_by_default=True,
    autocast_widens=True,
    peft_sees_autocast=True,
    accelerate_runs_fp16=True,
    accelerate_shards=True,
    multiplies_int8=True,
    bitsandbytes_in_python=False,
    runs_cuda_kernels=True,
    bmm_copies_operands=False,
    elementwise_copies_operands=False,
    collectives_are_gloo=False,
)

# accelerators that torch.accelerator can name besides CUDA: measured, never predicted
_OTHERS = ("xpu", "mps", "mtia", "hpu")
_KNOWN = {CPU.device_type: CPU, CUDA.device_type: CUDA} | {
    name: replace(CUDA, device_type=name, is_modelled=False, has_unified_memory=False) for name in _OTHERS
}


def platform_of(device_type: str) -> Platform:
    """The platform of a type of device.

    Args:
        device_type: as torch names it: cpu, cuda, xpu, mps.

    Raises:
        ValueError: there is no such platform; the message lists those there are.
    """
    if device_type not in _KNOWN:
        raise ValueError(f"no platform {device_type}: there are {', '.join(_KNOWN)}")
    return _KNOWN[device_type]


def ranks_share_device(device_name: str, world_size: int) -> bool:
    """Whether several ranks ran on one device, so that their speed says nothing about as many devices.

    Args:
        device_name: a row's; a CPU's begins with `CPU`.
        world_size: the trial's ranks.
    """
    return world_size > 1 and CPU.ranks_share_device and device_name.startswith("CPU")
