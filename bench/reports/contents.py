"""The contents of a report, section by section. In: rows and claims. Out: a `Report`. Pure but for time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from bench.analysis import accuracy, findings, literature, studies, tables
from bench.analysis.tables import PEAK, RATE
from bench.formatting import count_of, format_bytes, format_change
from bench.reports import charts, figures, figures_across
from bench.reports.document import Figure, Report, Section, Table
from bench.trial.outcome import STATUSES

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
    trials = studies.trials(rows)
    every = studies.studies(trials)
    errors = tables.errors(trials)
    sections: list[Section | None] = [_devices(rows, trials)]
    shown = studies.comparable_studies(every)[:_STUDIES]
    for number, study in enumerate(shown, 1):
        sections += _study(study, number)
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
                _status_counts(measured["status"]),
                _distinct(measured["git_commit"].str.slice(0, 10)),
            ]
        )
    header = ["device", "memory", "driver", "versions", "measured on (UTC)", "trials", "statuses", "commit"]
    replicated = f", {len(rows)} rows with replicates" if len(rows) > len(trials) else ""
    text = (
        f"{count_of(len(trials), 'trial')}{replicated}: {_status_counts(trials['status'])}.",
        "ok: measured or predicted. oom: ran out of memory, which is a result. skipped: cannot exist, for "
        "the reason in the last table. Peaks are the allocator's own, of the largest rank, in a steady "
        "step; tokens per second are per device, the median with its 95 % interval.",
    )
    return Section("measured", "What was measured on what", text, (Table("devices", header, lines),))


def _distinct(values: pd.Series[Any]) -> str:
    return ", ".join(sorted({str(value) for value in values.dropna()}))


def _status_counts(statuses: pd.Series[Any]) -> str:
    counts = statuses.value_counts()
    return ", ".join(f"{counts[status]} {status}" for status in STATUSES if status in counts)


def _date_range(first: datetime, last: datetime) -> str:
    days = [f"{day:%Y-%m-%d}" for day in (first, last)]
    return days[0] if days[0] == days[1] else " to ".join(days)


def _study(study: pd.DataFrame, number: int) -> list[Section]:
    title = str(study["title"].iloc[0])
    anchor = f"study-{number}"
    reference = studies.reference_trial(study)
    counts = _status_counts(study["status"])
    text = [f"{count_of(len(study), 'trial')} that differ in techniques alone: {counts}."]
    if reference is not None and not reference["baseline"]:
        text.append(f"The plain one does not run; changes are against {reference['label']}.")
    headline = [_ladder(study, number), _alone(study, number)]
    return [
        Section(anchor, title, tuple(text)),
        Section(
            f"{anchor}-headline",
            "One technique added at a time",
            ("Each rung adds the technique that leaves the lowest peak; then each technique alone.",),
            tuple(table for table in headline if table.rows),
            level=3,
        ),
        *_figures(study, number),
    ]


_HEADER = ["peak", "change", "tokens/s per device [95 %]", "change of speed", "status", "command"]


def _ladder(study: pd.DataFrame, number: int) -> Table:
    lines = [
        [f"+ {row['added']}" if row["added"] else str(row["label"]), *_cells(row)]
        for row in studies.row_dicts(tables.ladder(study))
    ]
    return _headline(f"ladder-{number}", "added", lines)


def _alone(study: pd.DataFrame, number: int) -> Table:
    single = tables.alone(study).sort_values("peak_change")
    lines = [[f"{row['added']} alone", *_cells(row)] for row in studies.row_dicts(single)]
    return _headline(f"alone-{number}", "technique", lines)


def _headline(name: str, first: str, lines: list[list[str]]) -> Table:
    return Table(name, [first, *_HEADER], lines, code=("command",), numbers=tuple(_HEADER[:4]))


def _cells(row: Mapping[Any, Any]) -> list[str]:
    rate = ""
    if pd.notna(row[RATE]):
        rate = f"{row[RATE]:,.0f} [{row[f'{RATE}_ci_low']:,.0f}, {row[f'{RATE}_ci_high']:,.0f}]"
    return [
        format_bytes(row[PEAK]) if pd.notna(row[PEAK]) else "",
        format_change(row["peak_change"], 1),
        rate,
        format_change(row["rate_change"], 1),
        str(row["status"]),
        str(row["overrides"]),
    ]


def _figures(study: pd.DataFrame, number: int) -> Iterator[Section]:
    anchor = f"study-{number}"
    drawn = (
        (
            "memory",
            "Memory by category",
            figures.memory_bars(study),
            "Peak memory at its instant, by what it holds, fewest techniques first. A dashed outline ran "
            "out of memory; a dashed line is the device's capacity, where it is in sight.",
        ),
        (
            "trade-off",
            "Memory against throughput",
            figures.speed_against_memory(study),
            "Up and to the left is better. The dashed line is the Pareto frontier: no other trial "
            "beats these in both. Vertical bars are 95 % intervals.",
        ),
        (
            "pairs",
            "Technique by technique",
            figures_across.techniques_by_technique(tables.pairs(study)),
            "Change of the peak (large) and of tokens/s (small) when two techniques are combined; alone on "
            "the diagonal. Blue saves memory, orange costs memory, an empty cell was not run.",
        ),
    )
    for name, title, chart, caption in drawn:
        if chart is not None:
            figure = Figure(f"{name}-{number}", caption, charts.spec(chart))
            yield Section(f"{anchor}-{name}", title, figures=(figure,), level=3)


def _other_trials(others: int) -> Section | None:
    if not others:
        return None
    text = f"In the last table only: {count_of(others, 'trial')} of other models, shapes or methods."
    return Section("more", "More studies", (text,))


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


def _claims(judged: list[literature.Finding]) -> Section:
    header, rows = literature.lines(judged)
    text = (
        literature.summary(judged),
        "A ratio is after over before; below 1 is less. Pairs are measured trials of these rows that "
        "differ in that technique alone, at their own scale, which may be far from the paper's.",
    )
    return Section("claims", "What the literature claims", text, (Table("claims", header, rows),))


def _noise(trials: pd.DataFrame) -> Section:
    warnings = findings.warnings(trials)
    if warnings.empty:
        return Section("noise", "Noise and warnings", ("Nothing to warn of.",))
    lines = [[str(cell) for cell in row] for row in warnings.to_numpy()]
    table = Table("warnings", list(warnings.columns), lines, numbers=("trials",))
    return Section("noise", "Noise and warnings", (), (table,))
