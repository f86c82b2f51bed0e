"""Measured trials predicted anew, each in a fresh process: rows of a folder, or what is measured now."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import gpus, isolate, results
from bench.config import trial_from
from bench.estimate import closed_form, rule_of_thumb
from bench.grading import BRIEF, Graded, Overrides, graded
from bench.trial import Trial, from_definition

_TIMEOUT_SECONDS = 600.0


class NotGraded(RuntimeError):  # noqa: N818  # reads as what happened
    """A trial could not be measured or predicted; the message names it and says why."""


def measured_trials(results_dir: Path) -> list[dict[str, Any]]:
    """The rows of the folder that can be graded, each trial once: measured, ok, and with a peak."""
    rows = {
        row["trial_id"]: row
        for row in results.records(results_dir)
        if row["method"] == "measure" and row["status"] == "ok"
        if row["definition"] and row["peak_allocated_bytes"] is not None
    }
    return list(rows.values())


def grade_row(row: dict[str, Any]) -> Graded:
    """A measured row, graded by predictions made now.

    Raises:
        NotGraded: this version cannot predict it.
    """
    trial = from_definition(json.loads(row["definition"]))
    target = "cpu" if row["peak_reserved_bytes"] is None else "cuda"
    predicted = predictions(trial, target)
    found = graded(row["overrides"], trial, row, predicted)
    card = gpus.by_device_name(row["device_name"] or "")
    if card is None or not row["step_seconds_median"]:
        return found
    from bench.roofline import step_seconds  # needs torch

    bound = step_seconds(predicted["simulate"]["work"], card)
    return replace(found, bound_share=bound / row["step_seconds_median"])


def grade_now(overrides: Overrides) -> Graded:
    """A configuration measured on the CPU, briefly, and graded.

    Raises:
        NotGraded: it could not be measured or predicted.
    """
    trial = trial_from([*BRIEF, *overrides])
    ranks = _ranks(trial)
    largest = max(ranks, key=lambda columns: columns["tracked_peak_bytes"])
    peak = max(columns["peak_allocated_bytes"] for columns in ranks)
    measured = largest | {"peak_allocated_bytes": peak}
    return graded(" ".join(overrides), trial, measured, predictions(trial, "cpu"))


def predictions(trial: Trial, target: str) -> dict[str, dict[str, Any]]:
    """Columns by predictor: simulation in a fresh process, formulas here.

    Args:
        trial: what was measured.
        target: the type of device that it was measured on.

    Raises:
        NotGraded: the simulation failed.
    """
    imagined = replace(trial, method="simulate", device=target)
    return {
        "simulate": _ranks(imagined)[0],
        **(
            {}
            if trial.workload.inference
            else {"closed_form": closed_form(trial, target), "rule_of_thumb": rule_of_thumb(trial)}
        ),
    }


def _ranks(trial: Trial) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        outcome = isolate.run(trial, log=Path(folder) / "log", timeout_seconds=_TIMEOUT_SECONDS)
    if outcome.status != "ok":
        raise NotGraded(f"method={trial.method}: {outcome.status}, {outcome.reason}")
    return outcome.ranks
