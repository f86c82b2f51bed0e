"""Pairs of trials that differ in one technique alone: the only ground for saying what a technique does.

In: the trials of `studies.py`. Out: `Neighbours`, and ratios with their intervals. A change of the peak
needs two trials that are ok. A change of the speed also needs ranks with a device each: two ranks on the
same cores say nothing about two devices. Pure.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bench.analysis.studies import PEAK, RATE, definition_without, row_dicts
from bench.trial.platform import ranks_share_device
from bench.trial.vocabulary import TECHNIQUE_AXES

LOW, HIGH = f"{RATE}_ci_low", f"{RATE}_ci_high"

_TOY_PARAMETERS = 100e6  # a model with fewer is a toy: its ratios say little about large ones

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Neighbours:
    """Two trials of one study; `after` is `before` with one technique more.

    Attributes:
        axis: the technique's axis.
        technique: the technique in words.
        before, after: the trials as dicts from column to value; `index` is their place in the study.
    """

    axis: str
    technique: str
    before: Row
    after: Row

    @property
    def peak_change(self) -> float:
        """The change of the peak, a fraction; not a number unless both trials are ok."""
        return change(self.before, self.after, PEAK)

    @property
    def rate_change(self) -> float:
        """The change of the rate, a fraction; not a number where it has no ground."""
        return rate_change(self.before, self.after)

    @property
    def rates_differ(self) -> bool:
        """Whether the rates can be told apart."""
        return rates_differ(self.before, self.after)


def change(before: Row, after: Row, column: str) -> float:
    """The change of a column, a fraction; not a number unless both trials are ok and have a value."""
    if before["status"] != "ok" or after["status"] != "ok" or not before[column]:
        return math.nan
    return float(after[column] / before[column] - 1)


def rate_change(before: Row, after: Row) -> float:
    """The change of the rate, a fraction; not a number where a trial's ranks shared one device."""
    return change(before, after, RATE) if timed_alone(before) and timed_alone(after) else math.nan


def rates_differ(before: Row, after: Row) -> bool:
    """Whether both rates have a ground, and their intervals do not overlap."""
    if math.isnan(rate_change(before, after)):
        return False
    return bool(after[LOW] > before[HIGH] or after[HIGH] < before[LOW])


def timed_alone(row: Row) -> bool:
    """Whether each of the trial's ranks had a device of its own."""
    return not ranks_share_device(str(row["device"]), row["world_size"])


def is_toy(row: Row) -> bool:
    """Whether the trial's model is too small for its ratios to say much about large ones."""
    return bool(row["param_count"] < _TOY_PARAMETERS)  # an unknown count is not


def neighbours(study: pd.DataFrame) -> Iterator[Neighbours]:
    """Every pair of trials of the study of which one has one technique more, and which else are alike."""
    rows = [row | {"index": index} for index, row in zip(study.index, row_dicts(study), strict=True)]
    without: dict[Hashable, Row] = {}
    for row in rows:
        for axis in TECHNIQUE_AXES:
            if axis not in row["steps"]:
                without.setdefault(_all_but(axis, row), row)
    for row in rows:
        for axis, technique in row["steps"].items():
            before = without.get(_all_but(axis, row))
            if before is not None:
                yield Neighbours(axis, technique, before, row)


def _all_but(axis: str, row: Row) -> Hashable:
    """A key that trials share which are alike on all technique axes but one."""
    others = [
        (key, value)
        for key, value in row["facts"].items()
        if (part := key.partition(".")[0]) in TECHNIQUE_AXES and part != axis
    ]
    return axis, json.dumps(sorted(others), default=str)


def plainest(study: pd.DataFrame) -> list[Neighbours]:
    """For each technique, its pairs with the fewest other techniques, the largest saving first.

    That is the technique beside the study's plain trial if that is ok, else beside the plainest trial that
    is. A technique none of whose pairs ran on both sides has none.
    """
    fewest: dict[str, list[Neighbours]] = {}
    for pair in neighbours(study):
        if math.isnan(pair.peak_change):
            continue
        found = fewest.setdefault(pair.technique, [])
        if found and len(found[0].before["steps"]) > len(pair.before["steps"]):
            found.clear()
        if not found or len(found[0].before["steps"]) == len(pair.before["steps"]):
            found.append(pair)
    return sorted((pair for pairs in fewest.values() for pair in pairs), key=lambda pair: pair.peak_change)


@dataclass(frozen=True)
class Ratio:
    """A measured trial's column over that of one which differs in one axis alone.

    Attributes:
        value: the ratio.
        low, high: its interval; both are the value where the column is exact.
        comparable: whether all ranks had a device of their own.
        toy: whether the model is a toy.
        model, device: what was measured, and on what.
    """

    value: float
    low: float
    high: float
    comparable: bool
    toy: bool
    model: str
    device: str


def ratios(trials: pd.DataFrame, axis: str, before: str, after: str, column: str) -> list[Ratio]:
    """Of pairs of measured trials that differ in one axis alone: `column` at `after` over that at `before`.

    Args:
        trials: what `studies.trials` returns.
        axis: a technique's axis.
        before: the level in the denominator.
        after: the level in the numerator.
        column: a column of numbers.
    """
    fits = trials[(trials["status"] == "ok") & (trials["method"] == "measure") & (trials[column] > 0)]
    # Two ways to shard are compared at the same number of ranks.
    ignored = ("fsdp.name",) if axis == "fsdp" and "off" not in (before, after) else (axis,)
    levels: dict[str, dict[str, Row]] = {}
    for row in row_dicts(fits[fits[axis].isin([before, after])]):
        key = f"{row['device']} {definition_without(row['facts'], *ignored, 'timing', 'device')}"
        levels.setdefault(key, {})[row[axis]] = row
    return [_ratio(pair[before], pair[after], column) for pair in levels.values() if len(pair) == 2]


def _ratio(before: Row, after: Row, column: str) -> Ratio:
    value = after[column] / before[column]
    low = high = value
    if column == RATE:  # the widest that the two intervals allow
        low, high = after[LOW] / before[HIGH], after[HIGH] / before[LOW]
    return Ratio(
        value=value,
        low=low,
        high=high,
        comparable=column != RATE or (timed_alone(before) and timed_alone(after)),
        toy=is_toy(after),
        model=str(after["model"]),
        device=str(after["device"]),
    )
