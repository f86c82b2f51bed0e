"""The host: its cores, its processor, its memory, and what the system says about this process.

Out: plain numbers and names. Must not import torch: doors import this, and start at once.
"""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path


def cores() -> list[int]:
    """The cores that this process may use, by number."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def cpu_name() -> str:
    """The processor's model name, or its architecture where the system does not say."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def process_bytes(field: str) -> int | None:
    """A field of /proc/self/status in bytes (VmRSS, VmHWM, VmData); None where the system has none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


def host_memory_bytes() -> int:
    """Physical memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def usable_memory_bytes() -> int:
    """Memory that processes here may fill: physical memory, or less where a control group has a limit."""
    limits = [host_memory_bytes()]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            limits.append(int(Path(path).read_text()))
    return min(limits)


def accelerator_in_sight() -> bool:
    """Whether this machine may have an accelerator; only torch knows whether it can use one.

    Drivers of NVIDIA and AMD, and render nodes of Intel and AMD, have device files. Every Mac has an
    accelerator.
    """
    devices = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd", "/dev/dri")
    return platform.system() == "Darwin" or any(Path(device).exists() for device in devices)
