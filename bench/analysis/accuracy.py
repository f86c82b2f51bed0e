"""How far predictions are from measurements: what is graded, and the grades by technique.

The measured side is the allocator's own count, never the tracker's, so the grade is independent of what
predicts. An error is (predicted - measured) / measured. Under-estimates are counted apart: an over-estimate
wastes memory, an under-estimate kills a run.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from bench.formatting import markdown_table as markdown_table
from bench.machine.gpu_catalogue import workspaces_bytes
from bench.trial.spec import Trial
from bench.trial.vocabulary import CATEGORIES

PREDICTORS = ("simulate", "closed_form", "rule_of_thumb")
UNDER = -0.01  # an under-estimate beyond this counts
AXES = ("model", "workload", "precision", "lora", "checkpointing", "fsdp", "offload", "optimizer")


@dataclass(frozen=True)
class Graded:
    """One measured configuration, with each prediction's error; errors are fractions of the measurement.

    `bound_share` is the roofline's least time over the measured median step; above 1 it is no bound. None
    on a device that the catalogue does not have.
    """

    label: str
    levels: tuple[str, ...]
    measured_bytes: int
    errors: dict[str, float]
    category_errors: dict[str, float]
    bound_share: float | None = None


def grade_trial(
    label: str,
    trial: Trial,
    measured: Mapping[str, Any],
    predicted: Mapping[str, Mapping[str, Any]],
    device_name: str = "",
) -> Graded:
    """Compares predictions with a measurement of the same trial.

    Args:
        label: how the trial is called in a table.
        trial: what was measured.
        measured: its columns; `peak_allocated_bytes` is the allocator's.
        predicted: columns by predictor, for any card: this one's workspaces come on top.
        device_name: what it was measured on.
    """
    peak = int(measured["peak_allocated_bytes"])
    also = workspaces_bytes(device_name, trial)
    simulated = predicted.get("simulate", {})
    return Graded(
        label=label,
        levels=tuple(_levels(trial)),
        measured_bytes=peak,
        errors={
            name: (found["peak_allocated_bytes"] + also) / peak - 1 for name, found in predicted.items()
        },
        category_errors={
            category: (simulated[f"{category}_bytes"] - measured[f"{category}_bytes"]) / peak
            for category in CATEGORIES
            if simulated and measured.get(f"{category}_bytes") is not None
        },
    )


def _levels(trial: Trial) -> Iterator[str]:
    yield f"family={trial.model.family}"
    for axis in AXES[1:]:
        yield f"{axis}={getattr(trial, axis).name}"


@dataclass(frozen=True)
class Grade:
    """A predictor's errors over several configurations: fractions, signed but for the median."""

    count: int
    median: float
    worst: float
    under: int

    @classmethod
    def of(cls, errors: list[float]) -> Grade:
        """From at least one error."""
        return cls(
            count=len(errors),
            median=statistics.median(map(abs, errors)),
            worst=max(errors, key=abs),
            under=sum(error < UNDER for error in errors),
        )


Grades = dict[str, dict[str, Grade]]


def grades_by_technique(all_graded: list[Graded]) -> Grades:
    """Grades by technique, then by predictor; `all` first, then each level in the order of the axes."""
    groups: dict[str, list[Graded]] = {"all": all_graded}
    for one in sorted(all_graded, key=lambda g: g.levels):
        for level in one.levels:
            groups.setdefault(level, []).append(one)
    order = ["all", *sorted(groups.keys() - {"all"}, key=lambda level: _axis_order(level))]
    return {
        level: {
            name: Grade.of([one.errors[name] for one in groups[level] if name in one.errors])
            for name in PREDICTORS
            if any(name in one.errors for one in groups[level])
        }
        for level in order
    }


def _axis_order(level: str) -> tuple[int, str]:
    axis = level.partition("=")[0]
    return (AXES.index(axis) if axis in AXES else 0, level)


def grades_markdown(table: Grades) -> str:
    """The grades as a Markdown table, and what its columns are."""
    header, rows = grades_lines(table)
    said = "Per predictor: median error, worst error, and how many under-estimates are beyond 1 %.\n\n"
    return said + markdown_table(header, rows, header[1:])


def grades_table(grades_by_level: Grades) -> Table:
    """The same for a terminal."""
    header, rows = grades_lines(grades_by_level)
    shown = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for name in header:
        shown.add_column(name, justify="left" if name == header[0] else "right", no_wrap=True)
    for row in rows:
        shown.add_row(*row)
    return shown


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
