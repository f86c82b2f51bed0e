"""Extrapolation in depth: a deep model's step from the steps of two shallow models.

In: segments of a step at two depths. Out: segments at the depth asked for, or None. Pure. Blocks repeat:
what a segment holds grows by equal bytes with every further block, and what inner blocks hold lies
between what the outer blocks hold. Both are checked (inner blocks must hold and release equal bytes in
the same order); where a check fails the answer is None, and the whole model has to be simulated.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from bench.memory.timeline import Segment

Key = tuple[str, ...]  # where a segment is in the step of a model of any depth


def shallow_depths(peculiar: int) -> tuple[int, int]:
    """The two depths whose steps determine those of all deeper models.

    Args:
        peculiar: how many blocks at each end of a stack differ from the inner ones.
    """
    return 2 * (peculiar + 1), 2 * (peculiar + 1) + 1


def extrapolate(low: Any, high: Any, steps: int) -> Any:
    """Continues numbers by `steps` times the difference of `high` and `low`, inside nested dicts too."""
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
        deeper: segments of a step of a model with one more block in each stack.
        depth: blocks in each stack of the model asked about.
        peculiar: how many blocks at each end of a stack differ from the inner ones.

    Returns:
        Segments whose maxima are those of the deep model; None if the blocks do not repeat exactly.
    """
    shallow_depth, deeper_depth = shallow_depths(peculiar)
    outer = peculiar + 1
    low_by_key = _by_key(shallow, shallow_depth, outer)
    high_by_key = _by_key(deeper, deeper_depth, outer)
    if low_by_key.keys() != high_by_key.keys() or not _repeats(deeper, deeper_depth, peculiar):
        return None
    steps = depth - shallow_depth
    extrapolated = []
    for key, low in low_by_key.items():
        high = high_by_key[key]
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


def _by_key(segments: list[Segment], depth: int, outer: int) -> dict[Key, Segment]:
    """Segments by their place in a model of any depth.

    Leaves out inner blocks. Blocks near the end count from the end, so that they match at another depth.
    """
    by_key: dict[Key, Segment] = {}
    seen: dict[Key, int] = {}
    for segment in segments:
        mark, block = segment.mark, ""
        if mark.block is not None:
            if outer <= mark.block < depth - outer:
                continue
            block = f"{mark.block if mark.block < outer else mark.block - depth}"
        key = (mark.phase, str(mark.micro_step), mark.stack, block, mark.operation)
        seen[key] = seen.get(key, -1) + 1
        by_key[(*key, str(seen[key]))] = segment
    return by_key


def _repeats(segments: list[Segment], depth: int, peculiar: int) -> bool:
    """Whether the inner blocks of each stack repeat.

    They do if all hold and release equal bytes in the same order, and the peak changes by equal bytes from
    each block to the next.
    """
    inner_blocks: dict[Key, list[Segment]] = {}
    for segment in segments:
        mark = segment.mark
        if mark.block is not None and peculiar <= mark.block < depth - peculiar:
            key = (mark.phase, str(mark.micro_step), mark.stack)
            inner_blocks.setdefault(key, []).append(segment)
    for blocks in inner_blocks.values():
        if len({segment.changes for segment in blocks}) > 1:
            return False
        if len({later.peak - earlier.peak for earlier, later in pairwise(blocks)}) > 1:
            return False
    return True
