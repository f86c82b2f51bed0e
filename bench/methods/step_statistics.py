"""Statistics of step times: seconds of every step in, the numbers that a row reports out.

Pure. Must not import torch.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

_CONFIDENCE = 0.95
_RESAMPLES = 2000


def confidence_interval(samples: list[float]) -> tuple[float, float]:
    """The 95 % bootstrap interval of the median, in the samples' unit.

    Percentile method (Efron 1979). The seed is fixed, so equal samples give equal intervals. A single
    sample has no spread to resample; its interval is infinite.
    """
    if len(samples) < 2:
        return -math.inf, math.inf
    values = np.asarray(samples)
    picks = np.random.default_rng(0).integers(len(values), size=(_RESAMPLES, len(values)))
    medians = np.median(values[picks], axis=1)
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(medians, [tail, 1 - tail])
    return float(low), float(high)


def relative_width(samples: list[float]) -> float:
    """The width of the median's 95 % interval, as a share of the median."""
    low, high = confidence_interval(samples)
    return (high - low) / float(np.median(samples))


def slowest_rank(step_seconds: list[list[float]]) -> list[float]:
    """Seconds of each step from those of every rank: a step ends when its slowest rank has ended."""
    return [max(step) for step in zip(*step_seconds, strict=True)]


def rate_columns(step_seconds: list[float], *, tokens_per_step: int, world_size: int) -> dict[str, Any]:
    """The row's columns of time and throughput.

    Args:
        step_seconds: every timed step; all are kept, outliers (beyond 1.5 IQR, Tukey 1977) are counted.
        tokens_per_step: tokens of one rank in a step.
        world_size: ranks that trained together; their rates add up.
    """
    median = float(np.median(step_seconds))
    low, high = confidence_interval(step_seconds)
    first, third = (float(q) for q in np.quantile(step_seconds, [0.25, 0.75]))
    fence = 1.5 * (third - first)
    rate = tokens_per_step / median
    return {
        "step_seconds": step_seconds,
        "step_seconds_median": median,
        "step_seconds_iqr": third - first,
        "step_seconds_p95": float(np.quantile(step_seconds, 0.95)),
        "step_outliers": sum(not first - fence <= s <= third + fence for s in step_seconds),
        "tokens_per_step": tokens_per_step,
        "tokens_per_sec_per_device": rate,
        "tokens_per_sec_per_device_ci_low": tokens_per_step / high,
        "tokens_per_sec_per_device_ci_high": tokens_per_step / low if low > 0 else math.inf,
        "tokens_per_sec_global": rate * world_size,
    }
