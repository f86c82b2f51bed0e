"""Predicted trials beside the measured ones of the same rows: errors, and peaks that were expected.

In: DataFrames of studies.py. Out: grades, and columns of expected peaks in bytes. Pure.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from bench.analysis.grading.accuracy import Graded, grade_trial
from bench.analysis.studies import PEAK, definition_without, device_type, row_dicts
from bench.machine.gpu_catalogue import workspaces_bytes
from bench.methods.estimate.closed_form import expected_peak_bytes
from bench.trial.spec import from_text


def errors(trials: pd.DataFrame) -> list[Graded]:
    """The errors of predictions among these trials of measured ones, for the same kind of device."""
    predicted = _predictions(trials)
    fits = trials[(trials["status"] == "ok") & trials[PEAK].notna() & (trials["method"] == "measure")]
    return [
        grade_trial(row["label"], trial, row, predicted[key], row["device"])
        for row in row_dicts(fits)
        if (key := _subject(row)) in predicted and isinstance(row["definition"], str)
        if (trial := from_text(row["definition"])) is not None
    ]


def _subject(row: dict[str, Any]) -> str:
    """A key that a measured trial and its predictions share."""
    rest = definition_without(row["facts"], "method", "formula", "whole", "timing", "device")
    return f"{device_type(row['device'])} {rest}"


def _predictions(trials: pd.DataFrame) -> dict[str, dict[str, dict[str, Any]]]:
    """The predicted trials that have a peak, by subject and predictor."""
    fits = trials[(trials["status"] == "ok") & trials[PEAK].notna() & (trials["method"] != "measure")]
    predicted: dict[str, dict[str, dict[str, Any]]] = {}
    for row in row_dicts(fits):
        predictor = row["formula"] if row["method"] == "estimate" else row["method"]
        predicted.setdefault(_subject(row), {})[predictor] = row
    return predicted


def with_expected_peaks(trials: pd.DataFrame) -> pd.DataFrame:
    """The trials with `expected_bytes` (what a measured one was expected to need) and `expected_by`.

    A predicted row of the same trial says it, the best predictor's first. For a trial that ran out of
    memory and has none, the closed form does: whoever reads that it did not fit wants to know what would.
    """
    predicted = _predictions(trials)
    expected = [
        _expected_peak(row, predicted.get(_subject(row), {})) if row["method"] == "measure" else None
        for row in row_dicts(trials)
    ]
    sizes = [float("nan") if peak is None else peak[0] for peak in expected]
    return trials.assign(expected_bytes=sizes, expected_by=[peak[1] if peak else "" for peak in expected])


def _expected_peak(row: dict[str, Any], predicted: dict[str, dict[str, Any]]) -> tuple[int, str] | None:
    trial = from_text(row["definition"]) if isinstance(row["definition"], str) else None
    if trial is None:
        return None
    for predictor, words in (("simulate", "simulated"), ("closed_form", "closed form")):
        if predictor in predicted:
            return int(predicted[predictor][PEAK]) + workspaces_bytes(row["device"], trial), words
    size = expected_peak_bytes(trial, row["device"]) if row["status"] == "oom" else None
    return None if size is None else (size, "closed form")
