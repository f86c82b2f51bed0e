"""The errors of predicted peaks against measured ones, and their statistics by technique.

In: trials with measured and predicted columns. Out: `Graded` trials, and tables of them. The measured peak
is the allocator's own count, never the tracker's, because the tracker also makes the prediction. An error
is (predicted - measured) / measured. Under-estimates are counted apart: an over-estimate wastes memory, an
under-estimate makes a run fail.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bench.formatting import markdown_table as markdown_table
from bench.machine.gpu_catalogue import workspaces_bytes
from bench.trial.spec import Trial
from bench.trial.vocabulary import CATEGORIES, TECHNIQUE_AXES

PREDICTORS = ("simulate", "closed_form", "rule_of_thumb")
UNDER = -0.01  # an error below this counts as an under-estimate
AXES = ("model", "workload", *(axis for axis in TECHNIQUE_AXES if axis != "kv_cache"))


@dataclass(frozen=True)
class Graded:
    """One measured trial with the errors of its predictions, as fractions of the measured peak.

    Attributes:
        label: the trial's name in a table.
        levels: its level on each axis, `precision=int8` and the like; the model's is its family.
        measured_bytes: the measured peak.
        errors: by predictor.
        category_errors: the simulation's, by memory category.
        bound_share: the roofline's least time over the measured median step; above 1 the roofline was
            wrong. None on a device that is not in the catalogue.
        time_error: of the predicted step's time; None where the device is neither of the catalogue nor
            calibrated.
        measured_seconds_per_token: of the measured median step.
        time_is_fitted: whether a constant of the prediction was fitted to this trial.
    """

    label: str
    levels: tuple[str, ...]
    measured_bytes: int
    errors: dict[str, float]
    category_errors: dict[str, float]
    bound_share: float | None = None
    time_error: float | None = None
    measured_seconds_per_token: float | None = None
    time_is_fitted: bool = False


def grade_trial(
    label: str,
    trial: Trial,
    measured: Mapping[str, Any],
    predicted: Mapping[str, Mapping[str, Any]],
    device_name: str = "",
) -> Graded:
    """The errors of predictions against a measurement of the same trial.

    Args:
        label: the trial's name in a table.
        trial: the trial that was measured.
        measured: its measured columns; `peak_allocated_bytes` is the allocator's.
        predicted: the predicted columns by predictor. They hold for any card, so the operator workspaces
            of this one are added.
        device_name: the device it was measured on.
    """
    peak = int(measured["peak_allocated_bytes"])
    workspaces = workspaces_bytes(device_name, trial)
    simulated = predicted.get("simulate", {})
    return Graded(
        label=label,
        levels=tuple(_levels(trial)),
        measured_bytes=peak,
        errors={
            name: (columns["peak_allocated_bytes"] + workspaces) / peak - 1
            for name, columns in predicted.items()
        },
        category_errors={
            category: (simulated[f"{category}_bytes"] - measured[f"{category}_bytes"]) / peak
            for category in CATEGORIES
            if simulated and measured.get(f"{category}_bytes") is not None
        },
    )


def _levels(trial: Trial) -> Iterator[str]:
    yield f"family={(trial.model.config or {}).get('model_type', trial.model.family)}"
    for axis in AXES[1:]:
        yield f"{axis}={getattr(trial, axis).name}"


@dataclass(frozen=True)
class Grade:
    """Statistics of a predictor's errors, as fractions.

    Attributes:
        count: the number of errors.
        median: of their absolute values.
        worst: the largest error by absolute value, with its sign.
        under: the number of under-estimates beyond `UNDER`.
    """

    count: int
    median: float
    worst: float
    under: int

    @classmethod
    def of(cls, errors: list[float]) -> Grade:
        """The statistics of these errors, of which there is at least one."""
        return cls(
            count=len(errors),
            median=statistics.median(map(abs, errors)),
            worst=max(errors, key=abs),
            under=sum(error < UNDER for error in errors),
        )


Grades = dict[str, dict[str, Grade]]


def grades_by_technique(all_graded: list[Graded]) -> Grades:
    """Grades by level, then by predictor: first `all`, then each level in the order of `AXES`."""
    groups: dict[str, list[Graded]] = {"all": all_graded}
    for graded in sorted(all_graded, key=lambda graded: graded.levels):
        for level in graded.levels:
            groups.setdefault(level, []).append(graded)
    order = ["all", *sorted(groups.keys() - {"all"}, key=_axis_order)]
    return {
        level: {
            name: Grade.of([graded.errors[name] for graded in groups[level] if name in graded.errors])
            for name in PREDICTORS
            if any(name in graded.errors for graded in groups[level])
        }
        for level in order
    }


def _axis_order(level: str) -> tuple[int, str]:
    axis = level.partition("=")[0]
    return (AXES.index(axis) if axis in AXES else 0, level)


def grades_markdown(table: Grades) -> str:
    """The grades as a Markdown table, after a sentence that explains its columns."""
    header, rows = grades_lines(table)
    legend = "Per predictor: median error, worst error, and how many under-estimates are beyond 1 %.\n\n"
    return legend + markdown_table(header, rows, header[1:])


def grades_lines(table: Grades) -> tuple[list[str], list[list[str]]]:
    """The grades as a header and rows of text."""
    header = ["technique", "trials"]
    for name in PREDICTORS:
        header += [name.replace("_", " "), "worst", "under"]
    rows = []
    for level, by_predictor in table.items():
        row = [level, str(max(grade.count for grade in by_predictor.values()))]
        for name in PREDICTORS:
            grade = by_predictor.get(name)
            row += (
                ["", "", ""]
                if grade is None
                else [f"{grade.median:.2%}", f"{grade.worst:+.2%}", str(grade.under)]
            )
        rows.append(row)
    return header, rows
