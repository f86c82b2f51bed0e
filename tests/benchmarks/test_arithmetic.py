"""What costs no device: pure functions that tables and plans call thousands of times.

pytest -m '' tests/benchmarks --benchmark-enable --benchmark-only -k arithmetic
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from bench.analysis.comparison import Thresholds, compare
from bench.memory.cuda_allocator import CachingAllocator
from bench.methods.estimate.closed_form import closed_form
from bench.trial.platform import CUDA
from tests.conftest import make_trial

pytestmark = pytest.mark.slow


def test_a_closed_form(benchmark: Any) -> None:
    """README and design say microseconds."""
    trial = make_trial("model=llama-7b", "precision=bf16", "lora=on", "checkpointing=on")
    found = benchmark(closed_form, trial, CUDA)
    assert sum(found[f"{name}_bytes"] for name in ("parameter", "gradient", "optimizer")) > 7 * 10**9


def test_the_caching_allocator(benchmark: Any) -> None:
    """Ten thousand requests, half of them released on the way, as a step makes them."""
    sizes = random.Random(0).choices((512, 2**19, 2**20, 2**23, 2**26), k=10_000)

    def replay() -> int:
        allocator, held = CachingAllocator(), []
        for number, size in enumerate(sizes):
            held.append(allocator.allocate(size))
            if number % 2:
                allocator.release(held.pop(0))
        return allocator.reserved_bytes

    assert benchmark(replay) >= sum(sizes[5_000:])


def test_comparing_two_nights(benchmark: Any) -> None:
    """Twenty-four trials with five replicates on either side, each with its exact rank-sum test."""
    draw = random.Random(0)

    def night() -> list[dict[str, Any]]:
        return [
            {
                "method": "measure",
                "trial_id": str(trial),
                "device_name": "a card",
                "overrides": "",
                "status": "ok",
                "peak_allocated_bytes": 2**30,
                "tokens_per_sec_per_device": draw.gauss(1000, 10),
            }
            for trial in range(24)
            for _ in range(5)
        ]

    assert len(benchmark(compare, night(), night(), Thresholds())) == 24
