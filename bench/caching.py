"""A model of torch's CUDA caching allocator: what it holds from the driver for what tensors ask of it.

Requests are rounded up to 512 bytes and served from the smallest free block that fits; where none does, a
segment is taken from the driver and never returned. A block is split if enough is left over, and joined
with its free neighbours when it is released. Source: c10/cuda/CUDACachingAllocator.cpp with its default
settings (no expandable segments); the constants carry its names.

Not modelled: other streams' pools, and what fragments the memory before a steady step.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from dataclasses import dataclass

from bench.timeline import Storage

MIN_BLOCK_BYTES = 512  # kMinBlockSize
_SMALL_BYTES = 2**20  # kSmallSize: requests up to this come from the pool of small segments
_SMALL_SEGMENT_BYTES = 2 * 2**20  # kSmallBuffer
_LARGE_SEGMENT_BYTES = 20 * 2**20  # kLargeBuffer, for requests below kMinLargeAlloc
_MIN_LARGE_BYTES = 10 * 2**20  # kMinLargeAlloc: above it a segment is made to measure
_ROUND_LARGE_BYTES = 2 * 2**20  # kRoundLarge


def rounded(size: int, to: int = MIN_BLOCK_BYTES) -> int:
    """`size` bytes rounded up to a multiple of `to`."""
    return -(-size // to) * to


@dataclass(eq=False)
class _Block:
    size: int
    address: int
    small: bool
    free: bool = False
    before: _Block | None = None
    after: _Block | None = None

    @property
    def order(self) -> tuple[int, int]:
        return self.size, self.address


class CachingAllocator:
    """Serves requests and counts what it took from the driver, `reserved_bytes`."""

    def __init__(self) -> None:
        self.reserved_bytes = 0
        self._free: dict[bool, list[_Block]] = {True: [], False: []}

    def allocate(self, size: int) -> _Block:
        """A block of at least `size` bytes."""
        size = rounded(max(size, 1))
        small = size <= _SMALL_BYTES
        pool = self._free[small]
        index = bisect.bisect_left(pool, (size, -1), key=lambda block: block.order)
        block = pool.pop(index) if index < len(pool) else self._segment(size, small)
        block.free = False
        left = block.size - size
        if left >= MIN_BLOCK_BYTES if small else left > _SMALL_BYTES:
            rest = _Block(left, block.address + size, small, before=block, after=block.after)
            if block.after is not None:
                block.after.before = rest
            block.size, block.after = size, rest
            self._put_back(rest)
        return block

    def release(self, block: _Block) -> None:
        """Gives a block back, joined with the free ones beside it."""
        for beside in (block.before, block.after):
            if beside is None or not beside.free:
                continue
            self._free[block.small].remove(beside)
            first, second = (beside, block) if beside is block.before else (block, beside)
            first.size += second.size
            first.after = second.after
            if second.after is not None:
                second.after.before = first
            block = first
        self._put_back(block)

    def _put_back(self, block: _Block) -> None:
        block.free = True
        bisect.insort(self._free[block.small], block, key=lambda other: other.order)

    def _segment(self, size: int, small: bool) -> _Block:
        if small:
            taken = _SMALL_SEGMENT_BYTES
        elif size < _MIN_LARGE_BYTES:
            taken = _LARGE_SEGMENT_BYTES
        else:
            taken = rounded(size, _ROUND_LARGE_BYTES)
        address = 2 * self.reserved_bytes  # segments are not neighbours
        self.reserved_bytes += taken
        return _Block(taken, address, small)


def reserved_bytes(initial: Iterable[tuple[Storage, int]], changes: list[tuple[Storage, int]]) -> int:
    """What the allocator holds after a step that begins with `initial` and goes through `changes`.

    Args:
        initial: storages that are there when the step begins, with their sizes in bytes.
        changes: by how many bytes storages grow and shrink; a storage appears and goes as a whole.
    """
    allocator = CachingAllocator()
    blocks: dict[Storage, _Block] = {}
    for storage, change in (*initial, *changes):
        if storage.on_host or not change:
            continue
        if change > 0:
            blocks[storage] = allocator.allocate(change)
        elif storage in blocks:
            allocator.release(blocks.pop(storage))
    return allocator.reserved_bytes
