"""Measured trials predicted anew: rows of a folder, or what is measured now, each in a fresh process."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.analysis.accuracy import Graded, grade_trial
from bench.analysis.accuracy_grid import BRIEF, Overrides
from bench.config.compose import trial_from
from bench.machine import gpu_catalogue
from bench.methods.estimate.closed_form import closed_form
from bench.methods.estimate.rule_of_thumb import rule_of_thumb
from bench.processes import isolate
from bench.processes.simulation_pool import Simulator
from bench.results import store
from bench.trial.columns import Columns, Simulation
from bench.trial.platform import CPU, CUDA, Platform
from bench.trial.skip_rules import skip_reason
from bench.trial.spec import Trial, from_text

_TIMEOUT_SECONDS = 600.0


class NotGradedError(RuntimeError):  # reads as what happened
    """A trial could not be measured or predicted; the message names it and says why."""


def measured_trials(results_dir: Path) -> list[dict[str, Any]]:
    """The rows of the folder that can be graded, each trial once: measured, ok, and with a peak."""
    rows = {
        row["trial_id"]: row
        for row in store.records(results_dir)
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
        raise NotGradedError(f"{row['trial_id']}: this version makes no trial of its definition")
    platform = CPU if row["peak_reserved_bytes"] is None else CUDA
    simulation = submit_simulations(trial, platform, simulator)
    predicted = predictions(trial, platform, simulation)
    device_name = row["device_name"] or ""
    found = grade_trial(row["overrides"], trial, row, predicted, device_name)
    card = gpu_catalogue.by_device_name(device_name)
    if card is None or not row["step_seconds_median"]:
        return found
    from bench.methods.roofline import step_seconds  # needs torch

    bound = step_seconds(simulation.result().work, card)
    return replace(found, bound_share=bound / row["step_seconds_median"])


def grade_now(overrides: Overrides, simulator: Simulator) -> Graded:
    """A configuration measured on the CPU, briefly, and graded; it is simulated meanwhile.

    Raises:
        NotGraded: it could not be measured or predicted.
    """
    trial = trial_from([*BRIEF, *overrides])
    simulation = submit_simulations(trial, CPU, simulator)
    ranks = _ranks(trial)
    largest = max(ranks, key=lambda columns: columns["tracked_peak_bytes"] or 0)
    peak = max(columns["peak_allocated_bytes"] or 0 for columns in ranks)
    measured: Mapping[str, Any] = {**largest, "peak_allocated_bytes": peak}
    return grade_trial(" ".join(overrides), trial, measured, predictions(trial, CPU, simulation))


def submit_simulations(trial: Trial, platform: Platform, simulator: Simulator) -> Future[Simulation]:
    """The simulation of a measured trial, on its way.

    Args:
        trial: what was measured, or is about to be.
        platform: what it is measured on.
        simulator: where it is simulated.

    Raises:
        NotGraded: it cannot be simulated.
    """
    imagined = replace(trial, method="simulate", device=platform.device_type)
    reason = skip_reason(imagined, platform, device_count=0)
    if reason:
        raise NotGradedError(f"method=simulate: skipped, {reason}")
    return simulator.begin(imagined, platform)


def predictions(trial: Trial, platform: Platform, simulation: Future[Simulation]) -> dict[str, Columns]:
    """Columns by predictor.

    Args:
        trial: what was measured.
        platform: what it was measured on.
        simulation: what `begun` gave.

    Raises:
        NotGraded: the simulation failed.
    """
    try:
        simulated = simulation.result(_TIMEOUT_SECONDS).columns
    except Exception as error:
        raise NotGradedError(f"method=simulate: error, {type(error).__name__}: {error}") from error
    return {
        "simulate": simulated,
        "closed_form": closed_form(trial, platform),
        "rule_of_thumb": rule_of_thumb(trial),
    }


def _ranks(trial: Trial) -> list[Columns]:
    with tempfile.TemporaryDirectory() as folder:
        outcome = isolate.run_isolated(trial, log=Path(folder) / "log", timeout_seconds=_TIMEOUT_SECONDS)
    if outcome.status != "ok":
        raise NotGradedError(f"method={trial.method}: {outcome.status}, {outcome.reason}")
    return outcome.ranks
