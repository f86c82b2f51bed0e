"""NVIDIA's driver, asked through NVML: which GPUs there are, who uses them, and how they are.

In: nothing, or a GPU's UUID. Out: names, sizes, processes, clocks, temperatures; None or an empty list
where there is no driver. Needs neither torch nor CUDA, so that a process that will fork can ask.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


def _of_gpus(question: Callable[[Any, Any], Any]) -> list[Any]:
    """What NVML answers for each GPU that this process may use, or an empty list where there is no driver.

    The order is that of bus addresses, or of CUDA_VISIBLE_DEVICES. It is NVML's own, and torch's with
    CUDA_DEVICE_ORDER=PCI_BUS_ID.
    """
    try:
        import pynvml

        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is not None:
            by_uuid = {str(pynvml.nvmlDeviceGetUUID(handle)): handle for handle in handles}
            names = [name.strip() for name in visible.split(",") if name.strip()]
            handles = [handles[int(name)] if name.isdigit() else by_uuid[name] for name in names]
        return [question(pynvml, handle) for handle in handles]
    except Exception:  # no driver, no library, or neither: NVML has many ways to say so
        return []


def gpu_names() -> list[str]:
    """Names of the NVIDIA GPUs that this process may use, as torch calls them, by bus address."""
    return [str(name) for name in _of_gpus(lambda nvml, gpu: nvml.nvmlDeviceGetName(gpu))]


def gpu_uuids() -> list[str]:
    """UUIDs of the NVIDIA GPUs that this process may use, ordered as by `gpu_names`."""
    return [str(uuid) for uuid in _of_gpus(lambda nvml, gpu: nvml.nvmlDeviceGetUUID(gpu))]


def gpu_memory_bytes() -> list[int]:
    """Total memory of the NVIDIA GPUs that this process may use, ordered as by `gpu_names`."""
    return [int(size) for size in _of_gpus(lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).total)]


def gpu_processes(uuid: str) -> list[int]:
    """Numbers of the processes that compute on the GPU with this UUID now."""
    pids_of_each = _of_gpus(
        lambda nvml, gpu: (
            [process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(gpu)]
            if str(nvml.nvmlDeviceGetUUID(gpu)) == uuid
            else []
        )
    )
    return [pid for pids in pids_of_each for pid in pids]


def driver_version() -> str | None:
    """The NVIDIA driver's version; None where there is none."""
    versions = _of_gpus(lambda nvml, _gpu: nvml.nvmlSystemGetDriverVersion())
    return str(versions[0]) if versions else None


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
    """Readings of the GPU with this UUID through NVML; all are None where there is no NVML, or no UUID."""

    def __init__(self, uuid: str | None) -> None:
        self.driver_version: str | None = None
        self._handle: Any = None
        self._nvml: Any = None
        if uuid is None:
            return
        try:
            import pynvml
        except ImportError:
            return
        try:
            pynvml.nvmlInit()
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            self.driver_version = str(pynvml.nvmlSystemGetDriverVersion())
            self._nvml = pynvml
        except pynvml.NVMLError:
            self._handle = None

    def read(self) -> Health:
        """The GPU's state now."""
        nvml = self._nvml
        if self._handle is None:
            return Health(None, None, None, None, None, None)
        processes = self._ask(nvml.nvmlDeviceGetComputeRunningProcesses) or []
        own = [p for p in processes if p.pid == os.getpid()]
        if not own and len(processes) == 1:
            own = processes  # in a container the driver gives this process another number
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
