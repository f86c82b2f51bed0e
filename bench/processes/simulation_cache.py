"""Simulations of earlier commands, kept on this disk, so that the same plan is not simulated twice.

One small file for each trial and platform, in a folder named by the fingerprint of this machine, its
libraries and this project's code (`machine/provenance.py`): whatever of these changes, nothing old is
found. A model's configuration is part of its trial's id. Folders that nobody has opened for a month are
deleted. The cache is a convenience: where it cannot be read or written, everything is simulated.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from bench.machine import host, provenance
from bench.trial.columns import Operation, Simulation
from bench.trial.platform import Platform
from bench.trial.spec import Trial

_KEPT_SECONDS = 30 * 24 * 3600
# By these variables the libraries choose kernels on a CPU, which differ in what they allocate.
_CHOOSE_KERNELS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")


def folder() -> Path:
    """Where the files lie: $BENCH_CACHE, else memory-bench in the user's folder for caches."""
    named = os.environ.get("BENCH_CACHE")
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(named) if named else Path(caches) / "memory-bench"


@dataclass(frozen=True)
class SimulationCache:
    """The simulations that this machine, these libraries and this code have made; made by `opened`."""

    place: Path

    def get(self, trial: Trial, platform: Platform) -> Simulation | None:
        """The earlier simulation of the trial; None if there is none, or it cannot be read."""
        name = _name(trial, platform)
        if name is None:
            return None
        try:
            kept = json.loads((self.place / name).read_text())
            work = Counter({_operation(*values): count for *values, count in kept["work"]})
            return Simulation(kept["columns"], work)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, trial: Trial, platform: Platform, simulation: Simulation) -> None:
        """Keeps a simulation. A file appears whole or not at all."""
        name = _name(trial, platform)
        if name is None:
            return
        work = [[*operation, count] for operation, count in simulation.work.items()]
        text = json.dumps({"columns": simulation.columns, "work": work})
        with contextlib.suppress(OSError):
            with tempfile.NamedTemporaryFile("w", dir=self.place, delete=False) as file:
                file.write(text)
            Path(file.name).replace(self.place / name)


def opened() -> SimulationCache:
    """The cache of this machine, these libraries and this code; deletes what was not opened for long."""
    kernels = "-".join(os.environ.get(name, "") for name in _CHOOSE_KERNELS)
    name = hashlib.sha256(f"{provenance.fingerprint(len(host.cores()))}-{kernels}".encode()).hexdigest()
    place = folder() / "simulations" / name[:16]
    with contextlib.suppress(OSError):
        place.mkdir(parents=True, exist_ok=True)
        os.utime(place)
        for other in place.parent.iterdir():
            if time.time() - other.stat().st_mtime > _KEPT_SECONDS:
                shutil.rmtree(other, ignore_errors=True)
    return SimulationCache(place)


def _operation(
    name: str, dtype: str, shape: list[int], flops: int, moved_bytes: int, phase: str, layout: str
) -> Operation:
    return Operation(name, dtype, tuple(shape), flops, moved_bytes, phase, layout)


def _name(trial: Trial, platform: Platform) -> str | None:
    """The file's name for this trial; None if what the trial is may change without notice.

    A configuration that was read is part of the trial, and so of its id.
    """
    if trial.model.pretrained is not None and trial.model.config is None:
        return None
    return f"{platform.device_type}-{trial.trial_id}.json"
