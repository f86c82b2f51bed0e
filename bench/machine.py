"""What the numbers were measured on: versions, commit, host, device, and the device's health.

`software` needs no torch and is asked by the parent, so that even a trial whose worker died has its
provenance; `hardware` and `Sensors` are asked by the worker.
"""

from __future__ import annotations

import hashlib
import os
import platform
import socket
import subprocess
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "numpy")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@cache
def software() -> dict[str, Any]:
    """Versions, commit and host name (hashed); null where unknown."""
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[f"{package}_version"] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[f"{package}_version"] = None
    status = _git("status", "--porcelain", "--untracked-files=no")
    return {
        **versions,
        "python_version": platform.python_version(),
        "hostname": hashlib.sha256(socket.gethostname().encode()).hexdigest()[:12],
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": None if status is None else bool(status),
    }


def cpu_name() -> str:
    """The processor's model name, or its architecture where the system does not say."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def gpu_names() -> list[str]:
    """The NVIDIA GPUs of this machine as torch calls them; none where there is no driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return [str(pynvml.nvmlDeviceGetName(handle)) for handle in handles]
    except Exception:  # no driver, no library, or neither: NVML has many ways to say so
        return []


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


def hardware(device: Any) -> dict[str, Any]:
    """Name, memory and driver of a torch.device."""
    if device.type == "cpu":
        return {
            "device_name": f"CPU ({cpu_name()}, {os.cpu_count()} cores)",
            "device_memory_bytes": host_memory_bytes(),
            "driver_version": None,
        }
    import torch

    from bench.device import memory_bytes

    name = str(device)
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif device.type == "xpu":
        name = torch.xpu.get_device_name(device)
    return {
        "device_name": name,
        "device_memory_bytes": memory_bytes(device),
        "driver_version": Sensors(device).driver_version,
    }


@dataclass(frozen=True)
class Health:
    """One reading of an accelerator's state; None where the driver does not say."""

    clock_mhz: int | None
    temperature_celsius: int | None
    power_watts: float | None
    throttled: bool | None
    other_processes: int | None
    own_bytes: int | None


class Sensors:
    """NVML's view of one device; every reading is None where there is no NVML."""

    def __init__(self, device: Any) -> None:
        self.driver_version: str | None = None
        self._handle: Any = None
        self._nvml: Any = None
        if device.type != "cuda":
            return
        import torch

        if torch.version.hip is not None:
            return
        try:
            import pynvml
        except ImportError:
            return
        try:
            pynvml.nvmlInit()
            uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            self.driver_version = str(pynvml.nvmlSystemGetDriverVersion())
            self._nvml = pynvml
        except pynvml.NVMLError:
            self._handle = None

    def read(self) -> Health:
        """The state right now."""
        nvml = self._nvml
        if self._handle is None:
            return Health(None, None, None, None, None, None)
        processes = self._ask(nvml.nvmlDeviceGetComputeRunningProcesses) or []
        own = [p for p in processes if p.pid == os.getpid()]
        if not own and len(processes) == 1:
            own = processes  # in a container the driver knows us by another number
        power = self._ask(nvml.nvmlDeviceGetPowerUsage)
        reasons = self._ask(nvml.nvmlDeviceGetCurrentClocksEventReasons)
        slowdowns = (
            nvml.nvmlClocksEventReasonSwPowerCap
            | nvml.nvmlClocksEventReasonHwSlowdown
            | nvml.nvmlClocksEventReasonSwThermalSlowdown
            | nvml.nvmlClocksEventReasonHwThermalSlowdown
            | nvml.nvmlClocksEventReasonHwPowerBrakeSlowdown
        )
        return Health(
            clock_mhz=self._ask(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_SM),
            temperature_celsius=self._ask(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU),
            power_watts=None if power is None else power / 1000,
            throttled=None if reasons is None else bool(reasons & slowdowns),
            other_processes=len(processes) - len(own),
            own_bytes=own[0].usedGpuMemory if own else None,
        )

    def _ask(self, question: Any, *arguments: Any) -> Any:
        try:
            return question(self._handle, *arguments)
        except self._nvml.NVMLError:
            return None
