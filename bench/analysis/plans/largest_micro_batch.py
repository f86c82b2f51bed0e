"""The largest micro-batch that fits: a bracket of two sizes, closed by simulation.

In: trials, the bytes they may take, and a function that simulates. Out: a size that was simulated and fits,
while the next size was simulated and does not. A peak is the maximum over several phases, each nearly
linear in the micro-batch: it bends where another phase becomes the highest, and rounding makes steps. So
lines through simulated sizes only tell which size to simulate next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bench.methods.estimate.closed_form import closed_form
from bench.trial.columns import NotSimulated, Simulation
from bench.trial.platform import CUDA
from bench.trial.spec import Trial
from bench.trial.vocabulary import PHASES

Predict = Callable[[list[Trial]], Sequence[Simulation | NotSimulated]]

MOST_SEQUENCES = 4096
_GUESSES = 8  # sizes simulated by lines; then the bracket is halved


def with_micro_batch(trial: Trial, size: int) -> Trial:
    """The trial with another micro-batch."""
    return replace(trial, micro_batch_size=size)


@dataclass
class Search:
    """The search for one trial's largest micro-batch.

    Attributes:
        trial: the trial, whatever its micro-batch.
        free_bytes: the bytes that tensors may take.
        simulated: the simulations by micro-batch; at the start that of the trial's own size.
        closed_form_guess: the answer by the closed form (`initial_guess`); 0 if there is none.
        stride: how far beyond the lines' answer to look next; doubled each time.
        ended: whether a size could not be simulated; what is known then is the answer.
        resized: the trial with another size; sizes are micro-batches if nothing else is said.
    """

    trial: Trial
    free_bytes: int
    simulated: dict[int, Simulation] = field(default_factory=dict)
    closed_form_guess: int = 0
    stride: int = 1
    ended: bool = False
    resized: Callable[[Trial, int], Trial] = with_micro_batch

    @property
    def largest(self) -> int:
        """The largest size that was simulated and fits; 0 if none does."""
        fitting = (size for size, one in self.simulated.items() if one.peak_bytes <= self.free_bytes)
        return max(fitting, default=0)

    def sized(self, size: int) -> Trial:
        """The trial with another size."""
        return self.resized(self.trial, size)

    def next_sizes(self) -> list[int]:
        """The sizes to simulate next; none if the bracket is closed, or if no simulated size fits."""
        low = self.largest
        too_large = [size for size in self.simulated if size > low]
        high = min(too_large, default=MOST_SEQUENCES + 1)
        if self.ended or not low or high - low <= 1:
            return []
        if len(self.simulated) > 1:
            return [self._next_size(low, high)]
        if not self.closed_form_guess:
            return [min(2 * low, high - 1)]
        guess = max(low, self.closed_form_guess)
        return [size for size in (guess, guess + 1) if low < size < high]

    def _next_size(self, low: int, high: int) -> int:
        guess = self._guess(low, high) if len(self.simulated) <= _GUESSES else (low + high) // 2
        if guess <= low:  # the lines say that `low` is the largest: larger sizes tell, further each time
            guess = low + self.stride
            self.stride *= 2
        return min(max(guess, low + 1), high - 1)

    def _guess(self, low: int, high: int) -> int:
        """The largest size by each phase's line through `low` and a simulated size near it."""
        other = high if high in self.simulated else max(size for size in self.simulated if size != low)
        at_low: Mapping[str, Any] = self.simulated[low].columns
        at_other: Mapping[str, Any] = self.simulated[other].columns
        guess = MOST_SEQUENCES
        for name in (f"{phase}_tracked_peak_bytes" for phase in PHASES):
            if name in at_low:  # training and inference have different phases
                bytes_per_sequence = (at_other[name] - at_low[name]) / (other - low)
                if bytes_per_sequence > 0:
                    free_at_low = self.free_bytes - at_low[name]
                    guess = min(guess, low + int(free_at_low // bytes_per_sequence))
        return guess


def search_largest(searches: list[Search], predict: Predict) -> None:
    """Closes the bracket of every search; each round simulates one or two sizes of each trial together.

    Args:
        searches: each with the trial's own size simulated; they are changed in place.
        predict: simulates trials and returns the results in the same order.
    """
    while True:
        wanted = [(search, size) for search in searches for size in search.next_sizes()]
        if not wanted:
            return
        predicted = predict([search.sized(size) for search, size in wanted])
        for (search, size), simulation in zip(wanted, predicted, strict=True):
            if isinstance(simulation, NotSimulated):
                search.ended = True
            else:
                search.simulated[size] = simulation


def initial_guess(trial: Trial, free_bytes: int) -> int:
    """The largest micro-batch that fits by the closed form for CUDA; 0 if none does, or it has no form."""
    if trial.model.by_config:
        return 0
    low, high = 0, MOST_SEQUENCES + 1
    while high - low > 1:
        size = (low + high) // 2
        sized = replace(trial, micro_batch_size=size)
        estimated = Simulation(closed_form(sized, CUDA))
        fits = estimated.peak_bytes <= free_bytes
        low, high = (size, high) if fits else (low, size)
    return low
