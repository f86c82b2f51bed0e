"""Extrapolation in depth: a deep model's step from the steps of two models of some of its blocks.

In: what kind each block is; later, segments of a step at two depths. Out: which blocks to simulate, and the
segments at the depth asked for, or None. Pure. Blocks repeat, alike or in a period (five local to one
global): what a segment holds grows by equal bytes with every further period, and what inner blocks hold
lies between what the outer blocks of their kind hold. Both are checked (inner blocks of a kind must hold
and release equal bytes in the same order); where a check fails the answer is None, and the whole model has
to be simulated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import Any, NamedTuple

from bench.memory.timeline import Segment

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


class _Place(NamedTuple):
    """Where a segment is in the step of the whole model; `number` tells those of one block apart."""

    phase: str
    micro_step: int
    stack: str
    block: int | None
    operation: str
    number: int


def segments_at_depth(
    shallow: list[Segment], deeper: list[Segment], repetition: Repetition
) -> list[Segment] | None:
    """The segments of a whole model, from two models of some of its blocks.

    Outer segments are extrapolated. What an inner block holds follows on what the outer block of its kind
    before it holds, period by period.

    Args:
        shallow: segments of a step of a model of the blocks `repetition.shallow`.
        deeper: segments of a step of a model of the blocks `repetition.deeper`.
        repetition: how the blocks repeat.

    Returns:
        The segments in their order, without their changes; None if the blocks do not repeat exactly.
    """
    first, period = repetition.outer_first, repetition.period
    low = _by_place(shallow, first, repetition.depth - len(repetition.shallow))
    high = _by_place(deeper, first + period, repetition.depth - len(repetition.deeper))
    inner = {place for place in high if place.block is not None and first <= place.block < first + period}
    if low.keys() != high.keys() - inner or not _repeats(deeper, repetition):
        return None
    steps = repetition.steps
    outer = {
        place: _continued(low[place], low[place], high[place], steps, place.block)
        for place in high.keys() - inner
    }
    whole = []
    for (is_inner, phase, _), run in groupby(
        high, key=lambda place: (place in inner, place.phase, place.stack)
    ):
        places = list(run)
        if not is_inner:
            whole += [outer[place] for place in places]
            continue
        added = range(steps)  # periods; a backward comes to the last block first
        for number in reversed(added) if phase == "backward" else added:
            for place in places:
                assert place.block is not None, "inner segments are of a block"
                before = place._replace(block=place.block - period)
                block = place.block + number * period
                whole.append(_continued(outer[before], high[before], high[place], number + 1, block))
    return whole


def _continued(start: Segment, low: Segment, high: Segment, steps: int, block: int | None) -> Segment:
    """The segment of `block`: what `start` holds, and `steps` times what `high` holds more than `low`."""

    def sizes(by_name: Callable[[Segment], dict[str, int]]) -> dict[str, int]:
        begin, less, more = by_name(start), by_name(low), by_name(high)
        return {name: size + steps * (more[name] - less[name]) for name, size in begin.items()}

    return Segment(
        replace(high.mark, block=block),
        start.peak + steps * (high.peak - low.peak),
        sizes(lambda segment: segment.at_peak),
        sizes(lambda segment: segment.most),
        (),
    )


def _by_place(segments: list[Segment], last: int, added: int) -> dict[_Place, Segment]:
    """The segments by their place in the whole model, in which blocks from `last` on are `added` later."""
    by_place: dict[_Place, Segment] = {}
    seen: Counter[_Place] = Counter()
    for segment in segments:
        mark, block = segment.mark, segment.mark.block
        if block is not None and block >= last:
            block += added
        place = _Place(mark.phase, mark.micro_step, mark.stack, block, mark.operation, 0)
        by_place[place._replace(number=seen[place])] = segment
        seen[place] += 1
    return by_place


def _repeats(segments: list[Segment], repetition: Repetition) -> bool:
    """Whether the inner blocks of each stack repeat.

    They do if all blocks of a kind hold and release equal bytes in the same order, and the peak changes by
    equal bytes from each of them to the next.
    """
    inner_numbers = range(repetition.peculiar_first, len(repetition.deeper) - repetition.peculiar_last)
    inner_blocks: dict[tuple[str, ...], list[Segment]] = {}
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
