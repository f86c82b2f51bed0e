"""The model of the CUDA caching allocator, against what is published of the real one."""

from __future__ import annotations

import pytest

from bench.memory.cuda_allocator import CachingAllocator, Replay
from bench.memory.timeline import Storage
from bench.trial.platform import block_bytes, round_up

MIB = 2**20


@pytest.mark.parametrize(
    ("asked", "reserved"),
    [
        (1, 2 * MIB),
        (MIB, 2 * MIB),
        (MIB + 1, 20 * MIB),
        (
            8_519_680,
            20_971_520,
        ),  # a cuBLAS workspace: discuss.pytorch.org topic 178671
        (10 * MIB, 10 * MIB),
        (11 * MIB + 1, 12 * MIB),
    ],
)
def test_the_segment_that_a_first_request_takes(asked: int, reserved: int) -> None:
    allocator = CachingAllocator()
    allocator.allocate(asked)
    assert allocator.reserved_bytes == reserved


def test_requests_are_rounded_to_512_bytes() -> None:
    assert [round_up(n) for n in (1, 512, 513)] == [512, 512, 1024]


def test_small_requests_share_a_segment_and_large_ones_another() -> None:
    allocator = CachingAllocator()
    for _ in range(4):
        allocator.allocate(512 * 1024)
    assert allocator.reserved_bytes == 2 * MIB
    allocator.allocate(512)
    assert allocator.reserved_bytes == 4 * MIB
    allocator.allocate(2 * MIB)
    assert allocator.reserved_bytes == 24 * MIB


def test_released_neighbours_join_and_serve_a_larger_request() -> None:
    allocator = CachingAllocator()
    blocks = [allocator.allocate(5 * MIB) for _ in range(4)]
    assert allocator.reserved_bytes == 20 * MIB
    for block in (blocks[1], blocks[3], blocks[2]):
        allocator.release(block)
    assert allocator.allocate(9 * MIB).address == blocks[1].address
    assert allocator.reserved_bytes == 20 * MIB


def test_fragments_too_small_for_a_request_cost_a_new_segment() -> None:
    allocator = CachingAllocator()
    blocks = [allocator.allocate(5 * MIB) for _ in range(4)]
    allocator.release(blocks[0])
    allocator.release(blocks[2])
    allocator.allocate(9 * MIB)
    assert allocator.reserved_bytes == 40 * MIB


def test_where_the_driver_has_no_more_whole_free_segments_are_given_back_and_it_tries_again() -> None:
    allocator = CachingAllocator(capacity_bytes=70 * MIB)
    kept = allocator.allocate(5 * MIB)  # of a segment of 20 MiB, which therefore stays
    for block in [allocator.allocate(16 * MIB) for _ in range(2)]:
        allocator.release(block)
    assert allocator.reserved_bytes == 52 * MIB
    allocator.allocate(30 * MIB)  # 82 MiB in all: more than there is
    assert (allocator.retries, allocator.overflowed) == (1, False)
    assert (allocator.reserved_bytes, allocator.peak_reserved_bytes) == (50 * MIB, 52 * MIB)
    assert allocator.allocate(12 * MIB).address != kept.address
    assert allocator.reserved_bytes == 50 * MIB, "12 of the 15 MiB that are left of the first segment"
    allocator.reset_peaks()
    allocator.allocate(30 * MIB)
    assert allocator.overflowed, "torch raises here"


def test_a_step_reserves_what_it_cannot_reuse() -> None:
    weight, temporary, host = Storage(bytes=0), Storage(bytes=0), Storage(bytes=0, on_host=True)
    changes = [(temporary, 30 * MIB), (host, 99 * MIB), (temporary, -30 * MIB)]
    replay = Replay()
    replay.through([(weight, 12 * MIB), *changes])
    assert replay.allocator.reserved_bytes == 42 * MIB
    assert replay.allocator.peak_bytes == 42 * MIB
    assert replay.allocator.allocated_bytes == 12 * MIB


def test_what_is_not_worth_splitting_counts_whole() -> None:
    allocator = CachingAllocator()
    for _ in range(13):
        allocator.allocate(3 * MIB // 2)
    assert allocator.allocated_bytes == 12 * (3 * MIB // 2) + 2 * MIB
    assert allocator.reserved_bytes == 20 * MIB


@pytest.mark.parametrize(
    ("asked", "taken"),
    [
        (0, 0),
        (1, 512),
        (3 * MIB // 2, 3 * MIB // 2),
        (43 * MIB // 2, 22 * MIB),
        (81 * MIB // 4, 81 * MIB // 4),
    ],
)
def test_a_tensor_made_to_measure_takes_its_whole_segment(asked: int, taken: int) -> None:
    assert block_bytes(asked) == taken
