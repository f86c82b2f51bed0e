"""Statistics of step times: the rate is tokens over time, and nothing is thrown away."""

from __future__ import annotations

import numpy as np
import pytest

from bench.methods import step_statistics


def test_the_rate_times_the_time_is_the_tokens() -> None:
    """The nearest harness reports 10, 20, 40 times the truth for 10, 20, 40 steps."""
    for steps in (1, 10, 20, 40):
        found = step_statistics.rate_columns([0.5] * steps, tokens_per_step=100, world_size=1)
        processed = found["tokens_per_sec_per_device"] * sum(found["step_seconds"])
        assert processed == pytest.approx(100 * steps)


def test_rates_add_up_over_ranks() -> None:
    found = step_statistics.rate_columns([0.5, 0.5], tokens_per_step=100, world_size=4)
    assert found["tokens_per_sec_per_device"] == 200
    assert found["tokens_per_sec_global"] == 800


def test_a_step_ends_when_its_slowest_rank_does() -> None:
    assert step_statistics.slowest_rank([[1.0, 4.0], [3.0, 2.0]]) == [3.0, 4.0]
    with pytest.raises(ValueError, match="argument"):
        step_statistics.slowest_rank([[1.0], [1.0, 2.0]])


def test_the_interval_covers_the_true_median_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(7)
    trials, covered = 300, 0
    for _ in range(trials):
        low, high = step_statistics.confidence_interval(list(generator.lognormal(0.0, 0.3, size=40)))
        covered += low <= 1.0 <= high
    assert 0.90 <= covered / trials <= 0.99


def test_the_interval_narrows_with_samples_and_brackets_the_rate() -> None:
    generator = np.random.default_rng(3)
    few = list(generator.normal(1.0, 0.1, size=10))
    many = list(generator.normal(1.0, 0.1, size=1000))
    assert step_statistics.relative_width(many) < step_statistics.relative_width(few)
    found = step_statistics.rate_columns(few, tokens_per_step=10, world_size=1)
    low, high = (found[f"tokens_per_sec_per_device_ci_{end}"] for end in ("low", "high"))
    assert low < found["tokens_per_sec_per_device"] < high


def test_one_sample_promises_nothing() -> None:
    assert step_statistics.relative_width([1.0]) == float("inf")


def test_outliers_are_counted_and_kept() -> None:
    samples = [1.0, 1.01, 0.99, 1.0, 1.02, 9.0]
    found = step_statistics.rate_columns(samples, tokens_per_step=1, world_size=1)
    assert found["step_outliers"] == 1
    assert found["step_seconds"] == samples
    assert found["step_seconds_median"] == pytest.approx(1.005)
