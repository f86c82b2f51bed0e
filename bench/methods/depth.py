"""A deep model's step from two shallow ones.

Blocks repeat: what a segment of the step holds grows by the same bytes with every further block, and the
segments of inner blocks lie between those of the outer ones. Both are checked (inner blocks must hold and
release the same bytes in the same order); where they fail there is no answer, and the whole model has to be
simulated. In: segments of two depths. Out: segments, or None. Pure.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from bench.memory.timeline import Segment

Key = tuple[str, ...]


def shallow_depths(peculiar: int) -> tuple[int, int]:
    """The two depths whose steps determine those of all deeper models.

    Args:
        peculiar: how many blocks at each end are not like the inner ones.
    """
    return 2 * (peculiar + 1), 2 * (peculiar + 1) + 1


def extrapolate(low: Any, high: Any, steps: int) -> Any:
    """Continues numbers, wherever in dicts they are, by `steps` times their difference."""
    if isinstance(low, dict):
        return {name: extrapolate(low[name], high[name], steps) for name in low}
    if isinstance(low, bool) or not isinstance(low, int | float):
        return low
    return low + steps * (high - low)


def segments_at_depth(
    shallow: list[Segment], deeper: list[Segment], depth: int, peculiar: int
) -> list[Segment] | None:
    """The outer segments of a model of `depth` blocks, from two models with few.

    Args:
        shallow: segments of a step of a model with `shallow_depths(peculiar)[0]` blocks in each stack.
        deeper: of one with a block more.
        depth: blocks in each stack of the model asked about.
        peculiar: how many blocks at each end are not like the inner ones.

    Returns:
        Segments whose maxima are those of the deep model; None if the blocks do not repeat exactly.
    """
    less, more = shallow_depths(peculiar)
    outer = peculiar + 1
    few, many = _matched(shallow, less, outer), _matched(deeper, more, outer)
    if few.keys() != many.keys() or not _repeats(deeper, more, peculiar):
        return None
    steps = depth - less
    extended = []
    for key, low in few.items():
        high = many[key]
        extended.append(
            Segment(
                low.mark,
                extrapolate(low.peak, high.peak, steps),
                extrapolate(low.at_peak, high.at_peak, steps),
                extrapolate(low.most, high.most, steps),
                (),
            )
        )
    return extended


def _matched(segments: list[Segment], depth: int, outer: int) -> dict[Key, Segment]:
    """Segments by what they are in a model of any depth; inner blocks have no counterpart."""
    matched: dict[Key, Segment] = {}
    seen: dict[Key, int] = {}
    for segment in segments:
        mark, place = segment.mark, ""
        if mark.block is not None:
            if outer <= mark.block < depth - outer:
                continue
            place = f"{mark.block if mark.block < outer else mark.block - depth}"
        key = (mark.phase, str(mark.micro_step), mark.stack, place, mark.operation)
        seen[key] = seen.get(key, -1) + 1
        matched[(*key, str(seen[key]))] = segment
    return matched


def _repeats(segments: list[Segment], depth: int, peculiar: int) -> bool:
    """Whether the regular blocks of each stack hold and release the same bytes in the same order, and
    what they hold changes by the same amount from one to the next."""
    rows: dict[Key, list[Segment]] = {}
    for segment in segments:
        mark = segment.mark
        if mark.block is not None and peculiar <= mark.block < depth - peculiar:
            rows.setdefault((mark.phase, str(mark.micro_step), mark.stack), []).append(segment)
    for row in rows.values():
        if len({segment.changes for segment in row}) > 1:
            return False
        if len({later.peak - earlier.peak for earlier, later in pairwise(row)}) > 1:
            return False
    return True
