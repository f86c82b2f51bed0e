"""The one place that talks to the accelerator: which there is, its memory counters, its clock, its errors.

Everything goes through torch.accelerator, so that CUDA, ROCm, XPU and MPS follow the same path. A CPU has
no caching allocator to ask: its counters are None here, and `memory/cpu_allocator.py` measures.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from typing import Any

import torch

from bench.machine.host import cpu_name, host_memory_bytes
from bench.machine.nvml import Sensors


def resolve(requested: str, rank: int = 0) -> torch.device:
    """The device a rank trains on.

    Args:
        requested: auto (the machine's accelerator, else the CPU), a type, or a type with an index.
        rank: added to the index, so that each rank has a device of its own.

    Raises:
        ValueError: this machine, or this build of torch, has no such device.
    """
    kind, _, index = requested.partition(":")
    current = torch.accelerator.current_accelerator(check_available=True)
    available = current.type if current is not None else "cpu"
    if kind == "cpu" or (kind == "auto" and available == "cpu"):
        return torch.device("cpu")
    if kind not in ("auto", available):
        raise ValueError(
            f"device={requested}: torch {torch.__version__} sees no {kind} device here "
            f"(it sees: {available}); use device=auto or device=cpu"
        )
    number = (int(index) if index else 0) + rank
    if number >= count(available):
        raise ValueError(
            f"device={requested}: there is no {available}:{number}, this machine has {count(available)}"
        )
    return torch.device(available, number)


def count(device_type: str) -> int:
    """Accelerators of that type on this machine; 0 for cpu."""
    return 0 if device_type == "cpu" else torch.accelerator.device_count()


def activate(device: torch.device, memory_limit_bytes: int | None) -> None:
    """Makes `device` current and, if a limit is given, lets torch use only so many bytes of it.

    Raises:
        ValueError: this type of device cannot be limited.
    """
    if device.type == "cpu":
        return
    torch.accelerator.set_device_index(device.index)
    if memory_limit_bytes is None:
        return
    if device.type != "cuda":
        raise ValueError(f"memory_limit_bytes: cannot be kept on {device.type}, only on cuda and cpu")
    fraction = min(1.0, memory_limit_bytes / memory_bytes(device))
    torch.cuda.set_per_process_memory_fraction(fraction, device)


def synchronize(device: torch.device) -> None:
    """Waits until the device has done all work that was submitted to it."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def memory_bytes(device: torch.device) -> int:
    """The accelerator's whole memory."""
    return torch.accelerator.get_memory_info(device)[1]


@dataclass(frozen=True)
class Counters:
    """The caching allocator's own counters, in bytes."""

    reserved: int
    peak_allocated: int
    peak_reserved: int


def counters(device: torch.device) -> Counters | None:
    """The allocator's counters; None on a CPU, which has no caching allocator."""
    if device.type == "cpu":
        return None
    accelerator = torch.accelerator
    return Counters(
        reserved=accelerator.memory_reserved(device),
        peak_allocated=accelerator.max_memory_allocated(device),
        peak_reserved=accelerator.max_memory_reserved(device),
    )


def reset_peaks(device: torch.device) -> None:
    """Resets the allocator's peaks to what is allocated now."""
    if device.type != "cpu":
        torch.accelerator.reset_peak_memory_stats(device)


def release_cached(device: torch.device) -> None:
    """Gives cached blocks that no tensor uses back to the driver; later allocations need new ones."""
    if device.type != "cpu":
        torch.accelerator.empty_cache()


class Stopwatch:
    """Marks in the device's stream of work; the seconds between two marks are a step's time.

    On an accelerator the marks are events: they cost no synchronisation, and only `seconds` waits. On a
    CPU, where a step has ended when its call returns, they are readings of the clock.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._events: list[torch.Event] = []
        self._clock: list[float] = []

    def mark(self) -> None:
        """Ends the step so far and begins the next one."""
        if self.device.type == "cpu":
            self._clock.append(time.perf_counter())
            return
        event = torch.Event(self.device.type, enable_timing=True)
        event.record(torch.accelerator.current_stream(self.device))
        self._events.append(event)

    def seconds(self) -> list[float]:
        """Seconds between one mark and the next."""
        if self.device.type == "cpu":
            return [b - a for a, b in zip(self._clock, self._clock[1:], strict=False)]
        synchronize(self.device)
        pairs = zip(self._events, self._events[1:], strict=False)
        return [a.elapsed_time(b) / 1000 for a, b in pairs]


_BYTES_ASKED = (
    re.compile(r"Tried to allocate ([\d.]+) (B|bytes|KiB|MiB|GiB|TiB)"),
    re.compile(r"you tried to allocate ([\d.]+) (bytes)"),
)
_UNITS = {"B": 1, "bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def out_of_memory(error: BaseException) -> tuple[bool, int | None]:
    """Whether `error` means that memory ran out, and the bytes that were requested, if it says so."""
    try:
        text = str(error)
    except BaseException:  # __str__ of a library's exception can raise, too
        text = ""
    for pattern in _BYTES_ASKED:
        if match := pattern.search(text):
            return True, round(float(match[1]) * _UNITS[match[2]])
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    phrases = ("out of memory", "can't allocate memory", "Cannot allocate memory", "std::bad_alloc")
    return known or any(phrase in text for phrase in phrases), None


def nvml_uuid(device: torch.device) -> str | None:
    """The UUID by which NVML knows a CUDA device; None for others, and for AMD's."""
    if device.type != "cuda" or torch.version.hip is not None:
        return None
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"


def hardware(device: torch.device) -> dict[str, Any]:
    """Name, memory and driver of a torch.device."""
    if device.type == "cpu":
        return {
            "device_name": f"CPU ({cpu_name()}, {os.cpu_count()} cores)",
            "device_memory_bytes": host_memory_bytes(),
            "driver_version": None,
        }
    name = str(device)
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif device.type == "xpu":
        name = torch.xpu.get_device_name(device)
    return {
        "device_name": name,
        "device_memory_bytes": memory_bytes(device),
        "driver_version": Sensors(nvml_uuid(device)).driver_version,
    }
