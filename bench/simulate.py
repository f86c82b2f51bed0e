"""method=simulate: the measured step over fake tensors: shapes without data, no device, no memory.

The same `build` and `step` run among imagined data and ranks, and the tracker that attributes a measured
step says what the allocator would have held.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from bench import facts
from bench.build import build
from bench.imagined import imagined
from bench.step import step
from bench.trial import Trial

_SETTLING_STEPS = 2  # the optimizer's state appears in the first; the second is already steady


def simulate(trial: Trial, columns: dict[str, Any]) -> None:
    """The columns that a steady step of `trial` on a CPU determines without running it.

    Args:
        trial: what to predict.
        columns: filled as facts become known.
    """
    started = time.perf_counter()
    with imagined(trial):
        run = build(trial, torch.device("cpu"))
        columns["build_seconds"] = time.perf_counter() - started
        columns |= facts.size(run)
        for _ in range(_SETTLING_STEPS):
            step(run)
        columns |= facts.watched_step(run)
    columns["peak_allocated_bytes"] = columns["tracked_peak_bytes"]
