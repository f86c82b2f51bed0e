"""The search for the largest micro-batch, over peaks that are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from bench.analysis.plans import largest_micro_batch
from bench.analysis.plans.largest_micro_batch import MOST_SEQUENCES, Search, search_largest
from bench.methods.estimate.closed_form import closed_form
from bench.trial.columns import Simulation
from bench.trial.platform import CUDA
from bench.trial.spec import Trial
from tests.conftest import make_trial


def sought(peak: Callable[[int], int], space: int, expected: int = 0) -> tuple[int, list[int]]:
    """The largest size, and the sizes that were simulated for it."""
    asked: list[int] = []

    def predict(trials: list[Trial]) -> list[Simulation]:
        asked.extend(trial.micro_batch_size for trial in trials)
        peaks = [peak(trial.micro_batch_size) for trial in trials]
        return [Simulation({"forward_tracked_peak_bytes": n, "peak_allocated_bytes": n}) for n in peaks]

    trial = make_trial("micro_batch_size=1")
    one = Search(trial, space, {1: predict([trial])[0]}, expected)
    search_largest([one], predict)
    return one.largest, asked


@pytest.mark.parametrize(
    ("peak", "rounds"),
    [
        (lambda n: 1000 + 10 * n, 4),  # a line: its two points, the answer, the one beyond it
        (lambda n: max(1000 + 10 * n, 50 * n), 6),  # bends upward: the line promises too much
        (lambda n: 1000 + 10 * n - 9 * max(0, n - 20), 6),  # bends downward: the line promises too little
        (lambda n: 1000 + 64 * -(-10 * n // 64), 8),  # rounded up, as an allocator does
        (lambda n: 3000, 3),  # fits whatever the size: up to the most that is tried
        (lambda n: 100 * n * n, 6),
        (lambda n: 3001 * n - 1, 2),  # one fits, two do not
    ],
)
def test_it_is_the_largest_that_fits_and_few_are_simulated(peak: Callable[[int], int], rounds: int) -> None:
    largest, asked = sought(peak, space=3000)
    fitting = [n for n in range(1, MOST_SEQUENCES + 1) if peak(n) <= 3000]
    assert largest == fitting[-1]
    assert len(asked) == len(set(asked)) <= rounds


def test_what_does_not_fit_is_not_searched() -> None:
    assert sought(lambda n: 4000, space=3000) == (0, [1])


@pytest.mark.parametrize(("expected", "simulated"), [(200, 3), (190, 5), (210, 5), (1, 4), (4096, 5)])
def test_what_a_formula_expects_is_where_it_looks_first(expected: int, simulated: int) -> None:
    largest, asked = sought(lambda n: 1000 + 10 * n, 3000, expected)
    assert largest == 200
    assert len(asked) == len(set(asked)) <= simulated


def test_the_formula_expects_what_fits_by_the_formula() -> None:
    trial = make_trial("model=llama-7b", "precision=bf16_pure", "lora=on")
    size = largest_micro_batch.initial_guess(trial, 40 * 2**30)
    peaks = [
        closed_form(replace(trial, micro_batch_size=n), CUDA)["peak_allocated_bytes"]
        for n in (size, size + 1)
    ]
    assert peaks[0] <= 40 * 2**30 < peaks[1]
    assert largest_micro_batch.initial_guess(trial, 2**30) == 0
