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
from collections.abc import Callable
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


def _of_gpus(question: Callable[[Any, Any], Any]) -> list[Any]:
    """What NVML answers for each GPU that this process may use, in the order of their bus addresses
    (NVML's, and torch's with CUDA_DEVICE_ORDER=PCI_BUS_ID); nothing where there is no driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is not None:
            by_uuid = {str(pynvml.nvmlDeviceGetUUID(handle)): handle for handle in handles}
            named = [word.strip() for word in visible.split(",") if word.strip()]
            handles = [handles[int(word)] if word.isdigit() else by_uuid[word] for word in named]
        return [question(pynvml, handle) for handle in handles]
    except Exception:  # no driver, no library, or neither: NVML has many ways to say so
        return []


def gpu_names() -> list[str]:
    """The NVIDIA GPUs that this process may use, as torch calls them; none where there is no driver."""
    return [str(name) for name in _of_gpus(lambda nvml, gpu: nvml.nvmlDeviceGetName(gpu))]


def gpu_uuids() -> list[str]:
    """Their UUIDs, in the same order."""
    return [str(uuid) for uuid in _of_gpus(lambda nvml, gpu: nvml.nvmlDeviceGetUUID(gpu))]


def gpu_memory_bytes() -> list[int]:
    """Their whole memories, in the same order."""
    return [int(size) for size in _of_gpus(lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).total)]


def gpu_processes(uuid: str) -> list[int]:
    """The processes that compute on one GPU now."""
    found = _of_gpus(
        lambda nvml, gpu: (
            [process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(gpu)]
            if str(nvml.nvmlDeviceGetUUID(gpu)) == uuid
            else []
        )
    )
    return [pid for pids in found for pid in pids]


def driver_version() -> str | None:
    """The NVIDIA driver's version; None where there is none."""
    versions = _of_gpus(lambda nvml, _gpu: nvml.nvmlSystemGetDriverVersion())
    return str(versions[0]) if versions else None


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


def onednn_multiplies(dtype: str) -> bool:
    """Whether torch hands products of a 16-bit type, bfloat16 or float16, to oneDNN on this CPU: not where
    it lacks the instructions (use_mkldnn_matmul in ATen/native/mkldnn/Matmul.cpp)."""
    import torch

    supported = {
        "bfloat16": torch.ops.mkldnn._is_mkldnn_bf16_supported,
        "float16": torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    return dtype in supported and bool(supported[dtype]())


def int8_is_widened() -> bool:
    """Whether bitsandbytes multiplies int8 on this CPU in float32: where it lacks AVX-512
    (bitsandbytes/backends/cpu/ops.py)."""
    import torch

    return torch.backends.cpu.get_cpu_capability() != "AVX512"


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
