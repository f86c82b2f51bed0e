"""The table of predicted times, by hand."""

from __future__ import annotations

from bench.analysis.grading.accuracy import Graded
from bench.analysis.grading.time_accuracy import time_lines


def graded(measured: float, error: float | None, *levels: str, fitted: bool = False) -> Graded:
    return Graded(
        label="x",
        levels=levels,
        measured_bytes=1,
        errors={},
        category_errors={},
        time_error=error,
        measured_seconds_per_token=measured,
        time_is_fitted=fitted,
    )


def test_errors_by_technique_and_apart_from_what_was_fitted() -> None:
    trials = [
        graded(1.0, 0.0, "precision=fp32", fitted=True),
        graded(2.0, -0.25, "precision=fp32"),
        graded(3.0, 0.1, "precision=nf4"),
        graded(4.0, None, "precision=int8"),
    ]
    header, lines = time_lines(trials)
    assert header == ["technique", "trials", "median", "worst", "too short", "rank correlation"]
    by_name = {line[0]: line[1:] for line in lines}
    assert by_name["all"] == ["3", "10.0%", "-25.0%", "1", "1.000"]
    assert by_name["all that nothing was fitted to"] == ["2", "17.5%", "-25.0%", "1", ""]
    assert by_name["precision=nf4"] == ["1", "10.0%", "+10.0%", "0", ""]
    assert "precision=int8" not in by_name


def test_a_wrong_order_lowers_the_rank_correlation() -> None:
    trials = [graded(1.0, 1.5, "a=b"), graded(2.0, 0.0, "a=b"), graded(3.0, 0.0, "a=b")]
    assert time_lines(trials)[1][0][-1] == "0.500"


def test_without_a_predicted_time_there_is_no_table() -> None:
    assert time_lines([graded(1.0, None)])[1] == []
