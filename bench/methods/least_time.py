"""The least time of a step on a card: its work (`roofline.py`) over what the card can do.

In: work, and a card. Out: seconds. Must not import torch: bench/plan.py asks for it, and starts at once
where earlier simulations answer.
"""

from __future__ import annotations

from bench.machine.gpu_catalogue import Gpu
from bench.trial.columns import Work


def step_seconds(work: Work, gpu: Gpu) -> float:
    """The least seconds that the work takes on the card; a dtype without a peak there counts as float32.

    For workload=decode, where a step is one new token of each sequence, the work is that of the first
    token after the prompt's, when the cache is shortest: a bound for each step.
    """
    seconds = 0.0
    for (dtype, flops, moved), times in work.items():
        peak = gpu.peak_flops_per_sec.get(dtype) or gpu.peak_flops_per_sec["float32"]
        assert peak is not None
        seconds += times * max(flops / peak, moved / gpu.bandwidth_bytes_per_sec)
    return seconds
