"""The largest micro-batch that fits: a bracket that simulation closes.

A peak is the highest of several moments, each nearly a line in the micro-batch: it bends where another
moment takes over, and rounding makes steps. So lines through simulated sizes only say where to look.
The answer is a size that was simulated and fits, beside the next, which was simulated and does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from bench.methods.estimate.closed_form import closed_form
from bench.trial.columns import Simulation
from bench.trial.platform import CUDA
from bench.trial.spec import Trial
from bench.trial.vocabulary import PHASES

Predict = Callable[[list[Trial]], list[Simulation]]

MOST_SEQUENCES = 4096
_GUESSES = 8  # then the bracket is halved


@dataclass
class Search:
    """One trial's search among micro-batches; `seen` are simulations by size, the one asked about included.

    `space` are the bytes that tensors may take, `expected` where a formula says that the answer is (0: none
    says), `step` how far beyond the line's answer to look next.
    """

    trial: Trial
    space: int
    seen: dict[int, Simulation] = field(default_factory=dict)
    expected: int = 0
    step: int = 1

    @property
    def largest(self) -> int:
        """The largest size that was simulated and fits; 0 if none does."""
        return max((size for size, one in self.seen.items() if one.peak_bytes <= self.space), default=0)

    def sized(self, size: int) -> Trial:
        """The trial with another micro-batch."""
        return replace(self.trial, micro_batch_size=size)

    def next_sizes(self) -> list[int]:
        """The sizes to simulate next; none once the bracket is closed, or where the first does not fit."""
        low = self.largest
        over = [size for size in self.seen if size > low]
        high = min(over, default=MOST_SEQUENCES + 1)
        if not low or high - low <= 1:
            return []
        if len(self.seen) > 1:
            return [self._next(low, high)]
        if not self.expected:
            return [min(2 * low, high - 1)]
        beside = (max(low, self.expected), max(low, self.expected) + 1)
        return [size for size in beside if low < size < high]

    def _next(self, low: int, high: int) -> int:
        guess = self._guess(low, high) if len(self.seen) <= _GUESSES else (low + high) // 2
        if guess <= low:  # by the line it is the largest: the one beyond tells; if it fits, further ones
            guess = low + self.step
            self.step *= 2
        return min(max(guess, low + 1), high - 1)

    def _guess(self, low: int, high: int) -> int:
        """Where a phase first fills the space, by lines through `low` and a size simulated near it."""
        other = high if high in self.seen else max(size for size in self.seen if size != low)
        one: Mapping[str, Any] = self.seen[low].columns
        two: Mapping[str, Any] = self.seen[other].columns
        guess = MOST_SEQUENCES
        for name in (f"{phase}_tracked_peak_bytes" for phase in PHASES):
            if name in one:  # of training, or of inference
                each = (two[name] - one[name]) / (other - low)
                if each > 0:
                    guess = min(guess, low + int((self.space - one[name]) // each))
        return guess


def search_largest(searches: list[Search], predict: Predict) -> None:
    """Closes every bracket; a round simulates a size or two of each trial, all at once.

    Args:
        searches: with the size asked about seen.
        predict: simulates trials; results in the same order.
    """
    while True:
        wanted = [(one, size) for one in searches for size in one.next_sizes()]
        if not wanted:
            return
        found = predict([one.sized(size) for one, size in wanted])
        for (one, size), simulation in zip(wanted, found, strict=True):
            one.seen[size] = simulation


def initial_guess(trial: Trial, space: int) -> int:
    """The largest micro-batch by the closed form for CUDA; 0 if it says that none fits."""
    low, high = 0, MOST_SEQUENCES + 1
    while high - low > 1:
        size = (low + high) // 2
        sized = replace(trial, micro_batch_size=size)
        estimated = Simulation(closed_form(sized, CUDA))
        fits = estimated.peak_bytes <= space
        low, high = (size, high) if fits else (low, size)
    return low
