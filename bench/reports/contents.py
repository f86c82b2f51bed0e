"""The contents of a report, section by section. In: rows and claims. Out: a `Report`. Pure but for time."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from bench.analysis import claims_table, findings, literature, predicted, studies, tables
from bench.analysis.grading import accuracy
from bench.analysis.studies import PEAK, RATE
from bench.formatting import count_of, format_bytes, format_change
from bench.reports import charts, figures_across
from bench.reports.document import Figure, Report, Section, Table
from bench.reports.study_sections import status_counts, study_sections
from bench.trial.vocabulary import PRECISION_COLUMNS, precision_words

_STUDIES = 3  # that have sections of their own; a page of a hundred would be too long
_SHOWN_ERRORS = 10


def build_report(
    rows: pd.DataFrame, claims: Iterable[literature.Claim], simulated: dict[str, float | None]
) -> Report:
    """The report of these rows.

    Args:
        rows: what `store.read` returns, with at least `studies.COLUMNS`; not empty.
        claims: the ledger of claims.
        simulated: the simulated values of the claims (`literature.read_values`).
    """
    trials = predicted.with_expected_peaks(studies.trials(rows))
    every = studies.studies(trials)
    errors = predicted.errors(trials)
    sections: list[Section | None] = [_devices(rows, trials)]
    shown = studies.comparable_studies(every)[:_STUDIES]
    for number, study in enumerate(shown, 1):
        sections += study_sections(study, number)
    sections += [
        _other_trials(len(trials) - sum(map(len, shown))),
        _curves(trials),
        _predictions(errors),
        _claims(literature.judge_claims(claims, simulated, trials)),
        _noise(trials),
    ]
    kept = [section for section in sections if section is not None]
    return Report(datetime.now(UTC), findings.findings(every, errors), kept, tables.rows_table(trials))


def _devices(rows: pd.DataFrame, trials: pd.DataFrame) -> Section:
    lines = []
    for device, measured in trials.groupby("device", sort=False):
        memory, started = measured["device_memory_bytes"], measured["started_at"]
        lines.append(
            [
                str(device),
                "" if memory.isna().all() else format_bytes(memory.max()),
                _distinct(measured["driver_version"]),
                ", ".join(
                    f"{package} {_distinct(measured[f'{package}_version'])}"
                    for package in ("torch", "transformers", "peft", "bitsandbytes", "accelerate")
                    if measured[f"{package}_version"].notna().any()
                ),
                _date_range(started.min(), started.max()),
                str(len(measured)),
                status_counts(measured["status"]),
                _distinct(measured["git_commit"].str.slice(0, 10)),
            ]
        )
    header = ["device", "memory", "driver", "versions", "measured on (UTC)", "trials", "statuses", "commit"]
    replicated = f", {len(rows)} rows with replicates" if len(rows) > len(trials) else ""
    text = (
        f"{count_of(len(trials), 'trial')}{replicated}: {status_counts(trials['status'])}.",
        "ok: measured or predicted. oom: ran out of memory, which is a result. skipped: cannot exist, for "
        "the reason in the last table. Peaks are the allocator's own, of the largest rank, in a steady "
        "step; of a trial that ran out of memory what it had reached, so it needs more. Tokens per second "
        "are per device, the median with its 95 % interval, which spans those of all replicates.",
        _precisions(trials),
    )
    return Section("measured", "What was measured on what", text, (Table("devices", header, lines),))


def _precisions(trials: pd.DataFrame) -> str:
    """What the precisions mean of which these trials are, in words."""
    kinds = trials[["precision", *PRECISION_COLUMNS]].dropna(subset="param_dtype")
    kinds = kinds.astype(object).where(kinds.notna(), None).drop_duplicates("precision")
    meanings = [f"{name}: {precision_words(*dtypes)}" for name, *dtypes in kinds.to_numpy()]
    return f"{'; '.join(meanings)}." if meanings else ""


def _distinct(values: pd.Series[Any]) -> str:
    return ", ".join(sorted({str(value) for value in values.dropna()}))


def _date_range(first: datetime, last: datetime) -> str:
    days = [f"{day:%Y-%m-%d}" for day in (first, last)]
    return days[0] if days[0] == days[1] else " to ".join(days)


def _other_trials(others: int) -> Section | None:
    if not others:
        return None
    text = (
        f"In the last table only: {count_of(others, 'trial')} of other models, shapes or methods "
        "(predictions of measured trials among them: the section on predictions grades those)."
    )
    return Section("more", "More trials", (text,))


def _curves(trials: pd.DataFrame) -> Section | None:
    drawn = [
        Figure(
            f"{axis}-{short}", f"{title} over {axis}; other things equal along a line.", charts.spec(chart)
        )
        for axis in tables.CURVES
        for lines in (tables.curves(trials, axis),)
        for column, short, title in ((PEAK, "peak", "Peak memory"), (RATE, "rate", "Tokens/s per device"))
        if (chart := figures_across.cost_curve(lines, axis, column)) is not None
    ]
    return Section("curves", "Cost curves", figures=tuple(drawn)) if drawn else None


def _predictions(errors: list[accuracy.Graded]) -> Section:
    if not errors:
        text = (
            "These rows hold no prediction of a measured trial. Add method=simulate to the same command, "
            "or let python bench/grade.py predict them anew.",
        )
        return Section("predictions", "Prediction against measurement", text)
    header, rows = accuracy.grades_lines(accuracy.grades_by_technique(errors))
    chart = figures_across.predicted_against_measured(errors)
    assert chart is not None
    caption = "Predicted over measured peak; on the line both agree, below it a run could die."
    worst = sorted(errors, key=lambda graded: -max(map(abs, graded.errors.values())))[:_SHOWN_ERRORS]
    cases = [
        [
            graded.label,
            format_bytes(graded.measured_bytes),
            *(format_change(graded.errors.get(name, float("nan")), 2) for name in accuracy.PREDICTORS),
        ]
        for graded in worst
    ]
    names = [name.replace("_", " ") for name in accuracy.PREDICTORS]
    return Section(
        "predictions",
        "Prediction against measurement",
        (
            f"{count_of(len(errors), 'measured trial')}: median and worst error, "
            "under-estimates beyond 1 %.",
        ),
        (
            Table("errors", header, rows, numbers=tuple(header[1:])),
            Table("worst-errors", ["trial", "measured", *names], cases, numbers=("measured", *names)),
        ),
        (Figure("predictions", caption, charts.spec(chart)),),
    )


def _claims(judged: list[literature.Finding]) -> Section | None:
    tested = claims_table.tested(judged)
    if not tested:
        return None
    simulated = any(finding.simulated is not None for finding in tested)
    shown = judged if simulated else tested
    left_out = len(judged) - len(shown)
    text = [
        claims_table.summary(shown),
        "A ratio is after over before; below 1 is less. Pairs are measured trials of these rows that "
        "differ in that technique alone. Their verdict is of their own model and device, which may be far "
        "from the paper's.",
    ]
    if left_out:
        text.append(f"python bench/claims.py puts {left_out} more to the test, by simulation.")
    header, rows = claims_table.lines(shown)
    return Section("claims", "What the literature claims", tuple(text), (Table("claims", header, rows),))


def _noise(trials: pd.DataFrame) -> Section:
    warnings = findings.warnings(trials)
    if warnings.empty:
        return Section("noise", "Noise and warnings", ("Nothing to warn of.",))
    lines = [[str(cell) for cell in row] for row in warnings.to_numpy()]
    table = Table("warnings", list(warnings.columns), lines, numbers=("trials",))
    return Section("noise", "Noise and warnings", (), (table,))
