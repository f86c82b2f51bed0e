"""The catalogue of GPUs in conf/gpu/: memory, bandwidth, dense peaks, and what hardware adds to tensors.

What it adds is reported apart from tensor bytes and never folded into them. None of it is fitted:
  context_bytes    CUDA context with all of torch's kernels loaded: 666,632,192 bytes, of which lazy loading
                   saves half at first (pytorch pull request 86509). A bound, not a measurement of yours.
  workspace_bytes  cuBLAS: 8,519,680 bytes a handle and stream (torch allocates it, CublasHandlePool.cpp),
                   32 MiB from Hopper on (cuBLAS reference, cublasSetWorkspace); a handle for each thread
  nccl_bytes       one 4 MiB buffer (NCCL_BUFFSIZE) each way for each of up to 32 channels (NCCL reference)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from omegaconf import OmegaConf

from bench.machine import ROOT

CONTEXT_BYTES = 666_632_192
NCCL_BYTES = 2 * 32 * 4 * 2**20


@dataclass(frozen=True)
class Gpu:
    """One card: bytes, bytes per second, and FLOP/s by dtype (None where it has no such unit)."""

    name: str
    device_names: tuple[str, ...]
    memory_bytes: int
    bandwidth_bytes_per_sec: float
    peak_flops_per_sec: dict[str, float | None]
    workspace_bytes: int

    def hardware_bytes(self, ranks: int) -> dict[str, int]:
        """What is not tensors, by what it is: context, workspaces, and NCCL's buffers between ranks."""
        found = {"context": CONTEXT_BYTES, "workspace": self.workspace_bytes}
        return found | ({"nccl": NCCL_BYTES} if ranks > 1 else {})


@cache
def catalogue() -> dict[str, Gpu]:
    """Every card of conf/gpu/, by name."""
    cards = {}
    for path in sorted((ROOT / "conf" / "gpu").glob("*.yaml")):
        values = OmegaConf.to_container(OmegaConf.load(path))
        assert isinstance(values, dict)
        card = {str(key): value for key, value in values.items()}
        cards[card["name"]] = Gpu(**card | {"device_names": tuple(card["device_names"])})
    return cards


def by_device_name(device_name: str) -> Gpu | None:
    """The card that torch calls so; None if the catalogue has none. A namesake is not the same card."""
    return next((card for card in catalogue().values() if device_name in card.device_names), None)
