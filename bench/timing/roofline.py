"""The roofline: the least time of a step on a card, from its work and the card's data sheet.

In: work, and a card. Out: seconds. An operation takes at least its FLOPs over the device's dense peak, and
at least its bytes over the memory's bandwidth: inputs read and outputs written once (Williams 2009).
Launches, imperfect kernels, communication between ranks and traffic with the host are left out, so a real
step is slower, a small one several times; tensors that stay in the device's cache may beat the bandwidth.
Must not import torch: bench/plan.py starts at once where earlier simulations answer.
"""

from __future__ import annotations

from bench.machine.gpu_catalogue import Gpu
from bench.trial.columns import Work


def step_seconds(work: Work, gpu: Gpu) -> float:
    """The least seconds that the work takes on the card; a dtype without a peak there counts as float32.

    For workload=decode, where a step is one new token of each sequence, the work is that of the first
    token after the prompt's, when the cache is shortest: a bound for each step.
    """
    decodes = any(operation.phase == "decode" for operation in work)
    seconds = 0.0
    for operation, times in work.items():
        if decodes and operation.phase != "decode":
            continue
        peak = gpu.peak_flops_per_sec.get(operation.dtype) or gpu.peak_flops_per_sec["float32"]
        assert peak is not None
        arithmetic, traffic = operation.flops / peak, operation.moved_bytes / gpu.bandwidth_bytes_per_sec
        seconds += times * max(arithmetic, traffic)
    return seconds
