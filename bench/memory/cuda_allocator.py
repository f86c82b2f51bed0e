"""A model of torch's CUDA caching allocator: what it takes from the driver for the tensors that ask it.

Requests are rounded up to 512 bytes and served from the smallest free block that fits; where none does, a
segment is taken from the driver. If the driver has no more, every segment of which nothing is in use is
given back, and the allocator tries once more (`malloc` and `release_cached_blocks`; with the default
`max_split_size` there is nothing to give back in smaller portions before). A block is split if enough is
left over, and joined with its free neighbours when it is released. Source:
c10/cuda/CUDACachingAllocator.cpp with its default settings (no expandable segments); the constants carry
its names. How a request is rounded lies in `trial/platform.py`.

A block that is larger than the request and not worth splitting counts whole, as it does in torch's own
`memory_allocated`. Not modelled: pools of other streams, on which FSDP gathers and reduces (on the H100's
row of one rank the model reserves 29 % too much; without sharding it is within 2.4 %), and what building a
model leaves behind.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from dataclasses import dataclass, field

from bench.memory.timeline import Storage
from bench.trial.platform import (
    MIN_BLOCK_BYTES,
    MIN_LARGE_BYTES,
    ROUND_LARGE_BYTES,
    SMALL_BYTES,
    round_up,
)

_SMALL_SEGMENT_BYTES = 2 * 2**20  # kSmallBuffer
_LARGE_SEGMENT_BYTES = 20 * 2**20  # kLargeBuffer, for requests below kMinLargeAlloc


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
    """Serves requests and counts bytes.

    `reserved_bytes` is what it has of the driver, `allocated_bytes` what it handed out in whole blocks, and
    the peaks are their maxima since `reset_peaks`. `retries` counts how often the driver had no more and
    segments were given back; `overflowed` says that this was not enough once, where torch raises. The
    requests are served all the same.
    """

    def __init__(self, capacity_bytes: int | None = None) -> None:
        """`capacity_bytes` is what the driver can give; None: everything."""
        self.capacity_bytes = capacity_bytes
        self.reserved_bytes = 0
        self.peak_reserved_bytes = 0
        self.allocated_bytes = 0
        self.peak_bytes = 0
        self.retries = 0
        self.overflowed = False
        self._end = 0  # of the last segment's addresses
        self._free: dict[bool, list[_Block]] = {True: [], False: []}

    def reset_peaks(self) -> None:
        """From now on the peaks are those of what follows."""
        self.peak_bytes = self.allocated_bytes
        self.peak_reserved_bytes = self.reserved_bytes

    def allocate(self, size: int) -> _Block:
        """A block of at least `size` bytes."""
        size = round_up(max(size, 1))
        small = size <= SMALL_BYTES
        pool = self._free[small]
        index = bisect.bisect_left(pool, (size, -1), key=lambda free: free.order)
        block = pool.pop(index) if index < len(pool) else self._segment(size, small)
        block.free = False
        left = block.size - size
        if left >= MIN_BLOCK_BYTES if small else left > SMALL_BYTES:
            rest = _Block(left, block.address + size, small, before=block, after=block.after)
            if block.after is not None:
                block.after.before = rest
            block.size, block.after = size, rest
            self._put_back(rest)
        self.allocated_bytes += block.size
        self.peak_bytes = max(self.peak_bytes, self.allocated_bytes)
        return block

    def release(self, block: _Block) -> None:
        """Takes a block back and joins it with its free neighbours."""
        self.allocated_bytes -= block.size
        for neighbour in (block.before, block.after):
            if neighbour is None or not neighbour.free:
                continue
            self._free[block.small].remove(neighbour)
            first, second = (neighbour, block) if neighbour is block.before else (block, neighbour)
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
        elif size < MIN_LARGE_BYTES:
            taken = _LARGE_SEGMENT_BYTES
        else:
            taken = round_up(size, ROUND_LARGE_BYTES)
        if not self._has_room(taken):
            self.retries += 1
            self._give_back()
            self.overflowed = self.overflowed or not self._has_room(taken)
        self.reserved_bytes += taken
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, self.reserved_bytes)
        self._end += taken
        return _Block(taken, self._end - taken, small)

    def _has_room(self, size: int) -> bool:
        return self.capacity_bytes is None or self.reserved_bytes + size <= self.capacity_bytes

    def _give_back(self) -> None:
        """Returns each segment that is one free block to the driver."""
        for small, pool in self._free.items():
            whole = [block for block in pool if block.before is None and block.after is None]
            self.reserved_bytes -= sum(block.size for block in whole)
            self._free[small] = [block for block in pool if block not in whole]


@dataclass
class Replay:
    """Plays back to an allocator how storages grew and shrank, one stretch after the other."""

    allocator: CachingAllocator = field(default_factory=CachingAllocator)
    _blocks: dict[Storage, _Block] = field(default_factory=dict)

    def through(self, changes: Iterable[tuple[Storage, int]]) -> None:
        """Plays `changes`: pairs of a storage and the bytes by which it grows or shrinks.

        A storage that grows asks for one block; a storage that shrinks gives its block back.
        """
        for storage, change in changes:
            if storage.on_host or not change:
                continue
            if change > 0:
                self._blocks[storage] = self.allocator.allocate(storage.requested_bytes or change)
            elif storage in self._blocks:
                self.allocator.release(self._blocks.pop(storage))
