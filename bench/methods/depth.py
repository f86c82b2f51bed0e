"""Extrapolation in depth: a deep model's step from the steps of two models of some of its blocks.

In: what kind each block is; later, segments of a step at two depths. Out: which blocks to simulate, and the
segments at the depth asked for, or None. Pure. Blocks repeat, alike or in a period (five local to one
global): what a segment holds grows by equal bytes with every further period, and what inner blocks hold
lies between what the outer blocks of their kind hold. Both are checked (inner blocks of a kind must hold
and release equal bytes in the same order); where a check fails the answer is None, and the whole model has
to be simulated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from bench.memory.timeline import Segment

Key = tuple[str, ...]  # where a segment is in the step of a model of any depth
_MOST_FIRST = 4  # blocks before the period begins: DeepSeek-V3 has 3 dense ones


@dataclass(frozen=True)
class Repetition:
    """How the blocks of a stack repeat, and how many at its ends are looked at one by one.

    `peculiar_first` and `peculiar_last` blocks at the ends may differ from others of their kind in what
    they hold; `outer_first` and `outer_last`, a period more, are simulated at both depths.
    """

    depth: int
    period: int
    peculiar_first: int
    peculiar_last: int
    outer_first: int
    outer_last: int

    @property
    def shallow(self) -> list[int]:
        """The numbers of the blocks of the shallow model."""
        return [*range(self.outer_first), *range(self.depth - self.outer_last, self.depth)]

    @property
    def deeper(self) -> list[int]:
        """The numbers of the blocks of the deeper model, which has one period more."""
        return [*range(self.outer_first + self.period), *range(self.depth - self.outer_last, self.depth)]

    @property
    def steps(self) -> int:
        """Periods that the whole model has more than the shallow one."""
        return (self.depth - len(self.shallow)) // self.period


def repetition_of(kinds: Sequence[Any], peculiar: int) -> Repetition | None:
    """How blocks of these kinds repeat; None if they do not, or too seldom for two models to be cheaper.

    Args:
        kinds: of each block, from the first to the last.
        peculiar: how many blocks at each end differ from all others in what they hold.
    """
    depth = len(kinds)
    for first in range(_MOST_FIRST + 1):
        for period in range(1, depth // 4 + 1):
            if any(kinds[at] != kinds[at + period] for at in range(first, depth - period)):
                continue
            # what all blocks of a kind share, as a mask, is made by the first and freed by the last of them
            places = [kinds.index(kinds[at], first) for at in range(first, first + period)]
            places_from_end = [
                list(reversed(kinds)).index(kinds[at]) for at in range(first, first + period)
            ]
            peculiar_first, peculiar_last = max(places) + peculiar, max(places_from_end) + peculiar
            outer_first, outer_last = peculiar_first + period, peculiar_last + period
            outer_last += (depth - outer_first - outer_last) % period
            found = Repetition(depth, period, peculiar_first, peculiar_last, outer_first, outer_last)
            return found if len(found.shallow) + len(found.deeper) < depth else None
    return None


def extrapolate(low: Any, high: Any, steps: int) -> Any:
    """Continues numbers by `steps` times the difference of `high` and `low`, inside nested dicts too."""
    if isinstance(low, dict):
        return {name: extrapolate(low[name], high[name], steps) for name in low}
    if isinstance(low, bool) or not isinstance(low, int | float):
        return low
    return low + steps * (high - low)


def segments_at_depth(
    shallow: list[Segment], deeper: list[Segment], repetition: Repetition
) -> list[Segment] | None:
    """The outer segments of a whole model, from two models of some of its blocks.

    Args:
        shallow: segments of a step of a model of the blocks `repetition.shallow`.
        deeper: segments of a step of a model of the blocks `repetition.deeper`.
        repetition: how the blocks repeat.

    Returns:
        Segments whose maxima are those of the whole model; None if the blocks do not repeat exactly.
    """
    low_by_key = _by_key(shallow, len(repetition.shallow), repetition)
    high_by_key = _by_key(deeper, len(repetition.deeper), repetition)
    if low_by_key.keys() != high_by_key.keys() or not _repeats(deeper, repetition):
        return None
    extrapolated = []
    for key, low in low_by_key.items():
        high, steps = high_by_key[key], repetition.steps
        extrapolated.append(
            Segment(
                low.mark,
                extrapolate(low.peak, high.peak, steps),
                extrapolate(low.at_peak, high.at_peak, steps),
                extrapolate(low.most, high.most, steps),
                (),
            )
        )
    return extrapolated


def _by_key(segments: list[Segment], depth: int, repetition: Repetition) -> dict[Key, Segment]:
    """Segments by their place in a model of any depth.

    Leaves out inner blocks. Blocks near the end count from the end, so that they match at another depth.
    """
    by_key: dict[Key, Segment] = {}
    seen: dict[Key, int] = {}
    for segment in segments:
        mark, block = segment.mark, ""
        if mark.block is not None:
            if repetition.outer_first <= mark.block < depth - repetition.outer_last:
                continue
            block = f"{mark.block if mark.block < repetition.outer_first else mark.block - depth}"
        key = (mark.phase, str(mark.micro_step), mark.stack, block, mark.operation)
        seen[key] = seen.get(key, -1) + 1
        by_key[(*key, str(seen[key]))] = segment
    return by_key


def _repeats(segments: list[Segment], repetition: Repetition) -> bool:
    """Whether the inner blocks of each stack repeat.

    They do if all blocks of a kind hold and release equal bytes in the same order, and the peak changes by
    equal bytes from each of them to the next.
    """
    inner_numbers = range(repetition.peculiar_first, len(repetition.deeper) - repetition.peculiar_last)
    inner_blocks: dict[Key, list[Segment]] = {}
    for segment in segments:
        mark = segment.mark
        if mark.block is not None and mark.block in inner_numbers:
            place = mark.block % repetition.period
            key = (mark.phase, str(mark.micro_step), mark.stack, str(place))
            inner_blocks.setdefault(key, []).append(segment)
    for blocks in inner_blocks.values():
        if len({segment.changes for segment in blocks}) > 1:
            return False
        if len({later.peak - earlier.peak for earlier, later in pairwise(blocks)}) > 1:
            return False
    return True
