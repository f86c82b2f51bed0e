"""Seconds between measured sizes: a curve over one size, a grid over the three sizes of a product.

Pure. All axes are logarithmic. Must not import torch.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from bench.timing.samples import ProductSample


@dataclass(frozen=True)
class Curve:
    """Seconds over sizes, both ascending, on logarithmic axes."""

    log_sizes: Any
    log_seconds: Any

    @classmethod
    def through(cls, points: list[tuple[float, float]]) -> Curve:
        """A curve through the medians of points of equal size."""
        grouped: dict[float, list[float]] = defaultdict(list)
        for size, seconds in points:
            grouped[max(size, 1.0)].append(seconds)
        sizes = sorted(grouped)
        return cls(np.log(sizes), np.log([median(grouped[size]) for size in sizes]))

    def seconds(self, size: float, *, floor: bool) -> float:
        """Seconds for a size; without `floor` beyond those of the smallest size."""
        at = np.log(max(size, 1.0))
        found = float(np.exp(np.interp(at, self.log_sizes, self.log_seconds)))
        if at > self.log_sizes[-1]:
            found *= float(np.exp(at - self.log_sizes[-1]))
        return found if floor else max(0.0, found - float(np.exp(self.log_seconds[0])))


@dataclass(frozen=True)
class Grid:
    """Seconds of products over rows, columns and inner lengths, interpolated on logarithmic axes."""

    axes: tuple[Any, Any, Any]
    log_rates: Any  # multiply-adds per second
    least_seconds: float

    @classmethod
    def of(cls, samples: list[ProductSample]) -> Grid:
        """A grid through the rates of samples, one for each combination of sizes."""
        axes = [sorted({getattr(one, name) for one in samples}) for name in ("rows", "columns", "inner")]
        rates = np.full([len(axis) for axis in axes], np.nan)
        for one in samples:
            at = tuple(
                axis.index(getattr(one, n))
                for axis, n in zip(axes, ("rows", "columns", "inner"), strict=True)
            )
            rates[at] = np.log(one.rows * one.columns * one.inner / one.seconds)
        return cls(tuple(np.log(axis) for axis in axes), rates, min(one.seconds for one in samples))  # type: ignore[arg-type]

    def seconds(self, rows: int, columns: int, inner: int) -> float:
        """Seconds of one product; beyond the grid its rate is that at the grid's border."""
        values = self.log_rates
        for axis, size in zip(self.axes, (rows, columns, inner), strict=True):
            at = float(np.clip(np.log(size), axis[0], axis[-1]))
            above = min(int(np.searchsorted(axis, at, side="right")), len(axis) - 1)
            below = above - 1
            share = (at - axis[below]) / (axis[above] - axis[below])
            values = (1 - share) * values[below] + share * values[above]
        return rows * columns * inner / float(np.exp(values))
