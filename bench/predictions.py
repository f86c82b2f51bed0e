"""Measured trials predicted anew: rows of a folder, or what is measured now, each in a fresh process."""

from __future__ import annotations

import tempfile
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import gpus, isolate, results
from bench.config import trial_from
from bench.estimate import closed_form, rule_of_thumb
from bench.grading import BRIEF, Graded, Overrides, graded
from bench.pool import Simulator
from bench.rules import skip_reason
from bench.trial import Trial, from_text

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


def grade_row(row: dict[str, Any], simulator: Simulator) -> Graded:
    """A measured row, graded by predictions made now.

    Raises:
        NotGraded: this version cannot predict it.
    """
    trial = from_text(row["definition"])
    if trial is None:
        raise NotGraded(f"{row['trial_id']}: this version makes no trial of its definition")
    target = "cpu" if row["peak_reserved_bytes"] is None else "cuda"
    predicted = predictions(trial, target, begun(trial, target, simulator))
    device_name = row["device_name"] or ""
    found = graded(row["overrides"], trial, row, predicted, device_name)
    card = gpus.by_device_name(device_name)
    if card is None or not row["step_seconds_median"]:
        return found
    from bench.roofline import step_seconds  # needs torch

    bound = step_seconds(predicted["simulate"]["work"], card)
    return replace(found, bound_share=bound / row["step_seconds_median"])


def grade_now(overrides: Overrides, simulator: Simulator) -> Graded:
    """A configuration measured on the CPU, briefly, and graded; it is simulated meanwhile.

    Raises:
        NotGraded: it could not be measured or predicted.
    """
    trial = trial_from([*BRIEF, *overrides])
    simulation = begun(trial, "cpu", simulator)
    ranks = _ranks(trial)
    largest = max(ranks, key=lambda columns: columns["tracked_peak_bytes"])
    peak = max(columns["peak_allocated_bytes"] for columns in ranks)
    measured = largest | {"peak_allocated_bytes": peak}
    return graded(" ".join(overrides), trial, measured, predictions(trial, "cpu", simulation))


def begun(trial: Trial, target: str, simulator: Simulator) -> Future[dict[str, Any]]:
    """The simulation of a measured trial, on its way.

    Args:
        trial: what was measured, or is about to be.
        target: the type of device that it is measured on.
        simulator: where it is simulated.

    Raises:
        NotGraded: it cannot be simulated.
    """
    imagined = replace(trial, method="simulate", device=target)
    reason = skip_reason(imagined, target, device_count=0)
    if reason:
        raise NotGraded(f"method=simulate: skipped, {reason}")
    return simulator.begin(imagined, target)


def predictions(trial: Trial, target: str, simulation: Future[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Columns by predictor.

    Args:
        trial: what was measured.
        target: the type of device that it was measured on.
        simulation: what `begun` gave.

    Raises:
        NotGraded: the simulation failed.
    """
    try:
        simulated = simulation.result(_TIMEOUT_SECONDS)
    except Exception as error:
        raise NotGraded(f"method=simulate: error, {type(error).__name__}: {error}") from error
    return {
        "simulate": simulated,
        "closed_form": closed_form(trial, target),
        "rule_of_thumb": rule_of_thumb(trial),
    }


def _ranks(trial: Trial) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        outcome = isolate.run(trial, log=Path(folder) / "log", timeout_seconds=_TIMEOUT_SECONDS)
    if outcome.status != "ok":
        raise NotGraded(f"method={trial.method}: {outcome.status}, {outcome.reason}")
    return outcome.ranks
