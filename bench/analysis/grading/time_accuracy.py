"""The errors of predicted step times against measured ones, and their statistics by technique.

In: `Graded` trials that have a predicted time. Out: lines of a table. An error is
(predicted - measured) / measured seconds; its sign is kept, since a prediction that is too short promises
too much. The rank correlation (Spearman) of seconds per token says whether a plan would rank rightly.
"""

from __future__ import annotations

import statistics

import pandas as pd

from bench.analysis.grading.accuracy import AXES, Graded


def time_lines(all_graded: list[Graded]) -> tuple[list[str], list[list[str]]]:
    """A header and a line for each technique, after all trials and those that nothing was fitted to."""
    timed = [graded for graded in all_graded if graded.time_error is not None]
    header = ["technique", "trials", "median", "worst", "too short", "rank correlation"]
    if not timed:
        return header, []
    groups = {"all": timed}
    if any(graded.time_is_fitted for graded in timed):
        groups["all that nothing was fitted to"] = [one for one in timed if not one.time_is_fitted]
    levels = {level for graded in timed for level in graded.levels}
    for level in sorted(levels, key=_axis_order):
        groups[level] = [graded for graded in timed if level in graded.levels]
    return header, [_line(name, group) for name, group in groups.items() if group]


def _axis_order(level: str) -> tuple[int, str]:
    axis = level.partition("=")[0]
    return (AXES.index(axis) if axis in AXES else 0, level)


def _line(name: str, group: list[Graded]) -> list[str]:
    errors = [graded.time_error for graded in group if graded.time_error is not None]
    return [
        name,
        str(len(errors)),
        f"{statistics.median(map(abs, errors)):.1%}",
        f"{max(errors, key=abs):+.1%}",
        str(sum(error < 0 for error in errors)),
        _rank_correlation(group),
    ]


def _rank_correlation(group: list[Graded]) -> str:
    """Spearman's, of seconds per token; empty for fewer than three trials, or if all are equal."""
    measured = pd.Series([graded.measured_seconds_per_token for graded in group])
    predicted = measured * pd.Series([1 + (graded.time_error or 0.0) for graded in group])
    if measured.nunique() < 3:
        return ""
    return f"{measured.rank().corr(predicted.rank()):.3f}"
