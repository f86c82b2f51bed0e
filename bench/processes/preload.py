"""Imported by the fork server, once, before any trial: the whole stack, with no device touched.

A process that has initialised CUDA cannot fork children that use it, and bitsandbytes does initialise it on
import: it asks torch for the compute capability to pick its kernels. So, while it is imported, that one
question is answered by NVML, which needs no CUDA; and PYTORCH_NVML_BASED_CUDA_CHECK=1 (set by the parent)
makes torch.cuda.is_available() ask NVML too. Should some other library touch the device all the same,
`poisoned` says so in the forked worker, and the parent starts workers from scratch instead.

What is imported here is there for good: it is set apart from the garbage collector, so that a trial's
collections walk what the trial made and not a million objects of the libraries.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def _capability_by_nvml(device: Any = None) -> tuple[int, int]:
    """torch.cuda.get_device_capability without CUDA."""
    import pynvml

    pynvml.nvmlInit()
    index = getattr(device, "idx", device) or 0
    handle = pynvml.nvmlDeviceGetHandleByIndex(torch.cuda._get_nvml_device_index(index))
    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    return int(major), int(minor)


@contextmanager
def _device_untouched() -> Iterator[None]:
    ask = torch.cuda.get_device_capability
    if torch.version.cuda is not None and torch.cuda.is_available():
        torch.cuda.get_device_capability = _capability_by_nvml
    try:
        yield
    finally:
        torch.cuda.get_device_capability = ask


def poisoned() -> bool:
    """In a forked worker: whether its server had initialised CUDA, so that this process cannot."""
    return bool(torch.cuda._is_in_bad_fork())


gc.disable()
with _device_untouched():
    import bench.processes.worker  # noqa: F401
gc.freeze()
gc.enable()
