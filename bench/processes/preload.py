"""Imported by the fork server, once, before any trial: imports all libraries and touches no device.

A process that has initialised CUDA cannot fork children that use it, and bitsandbytes does initialise it on
import: it asks torch for the compute capability to choose its kernels. So, while bitsandbytes is imported,
NVML answers that one question, which needs no CUDA; and PYTORCH_NVML_BASED_CUDA_CHECK=1 (set by the parent)
makes torch.cuda.is_available() ask NVML too. Should some other library touch the device all the same,
`poisoned` says so in the forked worker, and the parent spawns new processes instead.

bitsandbytes also asks torch.compile for functions that most trials never call, and that alone imports
TorchInductor, a quarter of all the time that these imports take. So, meanwhile, torch.compile waits until
the function is called.

What is imported here stays until the process ends. The garbage collector is told to ignore it, so that a
trial's collections walk what the trial made and not a million objects of the libraries.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any
from unittest import mock

import torch


def _capability_by_nvml(device: Any = None) -> tuple[int, int]:
    """What torch.cuda.get_device_capability returns, without CUDA."""
    import pynvml

    pynvml.nvmlInit()
    index = getattr(device, "idx", device) or 0
    handle = pynvml.nvmlDeviceGetHandleByIndex(torch.cuda._get_nvml_device_index(index))
    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    return int(major), int(minor)


@contextmanager
def _device_untouched() -> Iterator[None]:
    """While entered, asking for the compute capability does not initialise CUDA."""
    original = torch.cuda.get_device_capability
    if torch.version.cuda is not None and torch.cuda.is_available():
        torch.cuda.get_device_capability = _capability_by_nvml
    try:
        yield
    finally:
        torch.cuda.get_device_capability = original


@contextmanager
def _compiled_when_called() -> Iterator[None]:
    """While entered, torch.compile returns a function that is compiled when it is first called."""
    original = torch.compile

    def compile_later(function: Callable[..., Any] | None = None, **options: Any) -> Callable[..., Any]:
        if function is None:  # @torch.compile(dynamic=False)
            return partial(compile_later, **options)
        compiled: list[Callable[..., Any]] = []

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if not compiled:
                compiled.append(original(function, **options))
            return compiled[0](*args, **kwargs)

        return call

    with mock.patch.object(torch, "compile", compile_later):
        yield


def poisoned() -> bool:
    """In a forked worker: whether the fork server had initialised CUDA, so that this process cannot."""
    return bool(torch.cuda._is_in_bad_fork())


gc.disable()
with _device_untouched(), _compiled_when_called():
    import bench.processes.worker  # noqa: F401
gc.freeze()
gc.enable()
