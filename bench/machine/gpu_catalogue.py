"""The catalogue of GPUs in conf/gpu/: memory, bandwidth, dense peaks, and bytes that are not tensors.

Those bytes are reported apart from tensor bytes and never added to them. None of these numbers is fitted:
  context_bytes    CUDA context and the kernels that a step loads: 794,820,608 bytes in every training row
                   of an H100 with 16-bit arithmetic, 16 MiB less in float32 (torch 2.11, CUDA 13, driver
                   580: results/reference); 64 MiB more with bitsandbytes' int8, which has a cuBLASLt
                   handle of its own. Another driver has another size.
  workspace_bytes  cuBLAS: 8,519,680 bytes a handle and stream (torch allocates it, CublasHandlePool.cpp),
                   32 MiB from Hopper on (cuBLAS reference, cublasSetWorkspace); a handle for each thread,
                   and a backward has a thread of its own. torch's memory_allocated counts it. Linears with
                   a bias go to cuBLASLt: with torch 2.11 that took 1 MiB more (OPT, GPT-2 on the H100), the
                   default of CUBLASLT_WORKSPACE_SIZE; by the documentation of torch 2.13
                   (torch.backends.cuda.blas_workspace_size) it shares cuBLAS' workspace. Not added.
  nccl_bytes       a process group: 591,396,864 bytes in the same rows, of one rank (NCCL 2.28); between
                   ranks one 4 MiB buffer (NCCL_BUFFSIZE) each way for each of up to 32 channels (NCCL
                   reference)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from omegaconf import OmegaConf

from bench.paths import SHIPPED
from bench.trial.spec import Trial

CONTEXT_BYTES = 794_820_608
INT8_CONTEXT_BYTES = 64 * 2**20
NCCL_BYTES = 591_396_864
NCCL_BUFFERS_BYTES = 2 * 32 * 4 * 2**20


@dataclass(frozen=True)
class Gpu:
    """One card: bytes, bytes per second one way, and FLOP/s by dtype (None where it has no such unit)."""

    name: str
    device_names: tuple[str, ...]
    memory_bytes: int
    bandwidth_bytes_per_sec: float
    peak_flops_per_sec: dict[str, float | None]
    workspace_bytes: int
    multiprocessors: int
    host_link_bytes_per_sec: float
    card_link_bytes_per_sec: float

    def hardware_bytes(self, trial: Trial) -> dict[str, int]:
        """Bytes that are not tensors, by name: context, workspace, and nccl where ranks train together."""
        int8 = trial.precision.quantization == "int8"
        sizes = {
            "context": CONTEXT_BYTES + (INT8_CONTEXT_BYTES if int8 else 0),
            "workspace": self.workspaces_bytes(trial),
        }
        if trial.fsdp.name != "off":
            sizes["nccl"] = NCCL_BYTES + (NCCL_BUFFERS_BYTES if trial.world_size > 1 else 0)
        return sizes

    def workspaces_bytes(self, trial: Trial) -> int:
        """Bytes of cuBLAS' workspaces while the trial runs; torch's allocator counts them."""
        threads = 1 if trial.workload.inference else 2
        return threads * self.workspace_bytes


@cache
def catalogue() -> dict[str, Gpu]:
    """Every card of conf/gpu/, by name."""
    cards = {}
    for path in sorted((SHIPPED / "conf" / "gpu").glob("*.yaml")):
        values = OmegaConf.to_container(OmegaConf.load(path))
        assert isinstance(values, dict)
        card = {str(key): value for key, value in values.items()}
        cards[card["name"]] = Gpu(**card | {"device_names": tuple(card["device_names"])})
    return cards


def by_device_name(device_name: str) -> Gpu | None:
    """The card that torch gives exactly this name; None if the catalogue has none."""
    return next((card for card in catalogue().values() if device_name in card.device_names), None)


def workspaces_bytes(device_name: str, trial: Trial) -> int:
    """Bytes of cuBLAS' workspaces on the device of that name; 0 if the catalogue does not have it."""
    card = by_device_name(device_name)
    return 0 if card is None else card.workspaces_bytes(trial)


def peak_flops_per_sec(device_name: str, dtype: str) -> float | None:
    """The device's dense peak in that dtype; None if the catalogue has no such device or dtype."""
    card = by_device_name(device_name)
    return None if card is None else card.peak_flops_per_sec.get(dtype)
