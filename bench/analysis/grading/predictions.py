"""Predicts measured trials and grades the predictions.

In: measured rows of a results folder, or configurations that are measured now in fresh processes. Out:
`Graded` trials of accuracy.py.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.analysis.grading.accuracy import Graded, grade_trial
from bench.analysis.grading.accuracy_grid import BRIEF, TIMED, Overrides
from bench.config.compose import trial_from
from bench.machine import gpu_catalogue
from bench.methods.estimate.closed_form import closed_form
from bench.methods.estimate.rule_of_thumb import rule_of_thumb
from bench.methods.predict_time import predicted_step
from bench.processes import isolate
from bench.processes.simulation_pool import Simulator
from bench.results import store
from bench.timing import devices
from bench.timing.data_sheet import FITTED_TRIALS, DataSheet
from bench.timing.roofline import step_seconds
from bench.trial.columns import Columns, Simulation
from bench.trial.platform import CPU, CUDA, Platform
from bench.trial.skip_rules import skip_reason
from bench.trial.spec import Trial, from_text

_TIMEOUT_SECONDS = 600.0


class NotGradedError(RuntimeError):
    """A trial could not be measured or predicted; the message names it and says why."""


def measured_trials(results_dir: Path) -> list[dict[str, Any]]:
    """The latest row of each trial in the folder that can be graded: measured, ok, and with a peak."""
    rows = {
        row["trial_id"]: row
        for row in store.records(results_dir)
        if row["method"] == "measure" and row["status"] == "ok"
        if row["definition"] and row["peak_allocated_bytes"] is not None
    }
    return list(rows.values())


def grade_row(row: dict[str, Any], simulator: Simulator, gpu: str = "") -> Graded:
    """Predicts a measured row's trial now, and grades the predictions.

    Args:
        row: the measured row.
        simulator: the pool that simulates it.
        gpu: the calibrated device that it was measured on; empty: the card that the row names.

    Raises:
        NotGradedError: this version cannot predict it.
    """
    trial = from_text(row["definition"])
    if trial is None:
        raise NotGradedError(f"{row['trial_id']}: this version makes no trial of its definition")
    platform = CPU if row["peak_reserved_bytes"] is None else CUDA
    simulation = submit_simulation(trial, platform, simulator)
    predicted = predictions(trial, platform, simulation)
    device_name = row["device_name"] or ""
    graded = grade_trial(row["overrides"], trial, row, predicted, device_name)
    seconds = row["step_seconds_median"]
    card = gpu_catalogue.by_device_name(device_name)
    if not seconds:
        return graded
    if card is not None:
        bound = step_seconds(simulation.result().work, card)
        graded = replace(graded, bound_share=bound / seconds)
    name = gpu or (card.name if card is not None else "")
    graded = _with_time(graded, trial, simulation.result(), seconds, name)
    fitted = isinstance(devices.named(name), DataSheet) if name else False
    return replace(graded, time_is_fitted=fitted and row["trial_id"] in FITTED_TRIALS)


def _with_time(graded: Graded, trial: Trial, simulation: Simulation, seconds: float, gpu: str) -> Graded:
    """With the error of the predicted time, if `gpu` names a device."""
    if not gpu:
        return graded
    predicted = predicted_step(replace(trial, gpu=gpu), simulation).seconds
    per_token = seconds / (simulation.columns.get("tokens_per_step") or trial.tokens_per_step)
    return replace(graded, time_error=predicted / seconds - 1, measured_seconds_per_token=per_token)


def grade_now(overrides: Overrides, simulator: Simulator, gpu: str = "") -> Graded:
    """Measures a configuration briefly on the CPU, simulates it meanwhile, and grades the predictions.

    Args:
        overrides: the configuration's key=value arguments.
        simulator: the pool that simulates it.
        gpu: a calibration of this CPU, to grade the predicted time, too: the trial is timed for longer, and
            simulated only afterwards.

    Raises:
        NotGradedError: it could not be measured or predicted.
    """
    trial = trial_from([*BRIEF, *(TIMED if gpu else ()), *overrides])
    simulation = None if gpu else submit_simulation(trial, CPU, simulator)
    ranks = _measured_ranks(trial)
    simulation = simulation or submit_simulation(trial, CPU, simulator)
    largest = max(ranks, key=lambda columns: columns["tracked_peak_bytes"] or 0)
    peak = max(columns["peak_allocated_bytes"] or 0 for columns in ranks)
    measured: Mapping[str, Any] = {**largest, "peak_allocated_bytes": peak}
    graded = grade_trial(" ".join(overrides), trial, measured, predictions(trial, CPU, simulation))
    seconds = max(statistics.median(columns["step_seconds"]) for columns in ranks)
    return _with_time(graded, trial, simulation.result(), seconds, gpu)


def submit_simulation(trial: Trial, platform: Platform, simulator: Simulator) -> Future[Simulation]:
    """Starts the simulation of a measured trial.

    Args:
        trial: the trial that was measured, or is about to be.
        platform: the platform that it is measured on.
        simulator: the pool that simulates it.

    Raises:
        NotGradedError: it cannot be simulated.
    """
    simulated = replace(trial, method="simulate", device=platform.device_type)
    reason = skip_reason(simulated, platform, device_count=0)
    if reason:
        raise NotGradedError(f"method=simulate: skipped, {reason}")
    return simulator.begin(simulated, platform)


def predictions(trial: Trial, platform: Platform, simulation: Future[Simulation]) -> dict[str, Columns]:
    """The predicted columns by predictor.

    Args:
        trial: the trial that was measured.
        platform: the platform that it was measured on.
        simulation: what `submit_simulation` returned.

    Raises:
        NotGradedError: the simulation failed.
    """
    try:
        simulated = simulation.result(_TIMEOUT_SECONDS).columns
    except Exception as error:
        raise NotGradedError(f"method=simulate: error, {type(error).__name__}: {error}") from error
    if trial.model.by_config:  # no formula knows its architecture
        return {"simulate": simulated}
    return {
        "simulate": simulated,
        "closed_form": closed_form(trial, platform),
        "rule_of_thumb": rule_of_thumb(trial),
    }


def _measured_ranks(trial: Trial) -> list[Columns]:
    """Measures the trial in fresh processes: the columns of each rank."""
    with tempfile.TemporaryDirectory() as folder:
        outcome = isolate.run_isolated(trial, log=Path(folder) / "log", timeout_seconds=_TIMEOUT_SECONDS)
    if outcome.status != "ok":
        raise NotGradedError(f"method={trial.method}: {outcome.status}, {outcome.reason}")
    return outcome.ranks
