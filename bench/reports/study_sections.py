"""The sections of one study: what is fastest, what each technique changes, what does not fit. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from bench.analysis import findings, loops, studies, tables
from bench.analysis.neighbours import timed_alone
from bench.analysis.studies import PEAK, RATE
from bench.formatting import count_of, format_bytes, format_change, format_difference, format_peak
from bench.reports import charts, figures, figures_across
from bench.reports.document import Figure, Section, Table
from bench.trial.outcome import STATUSES


def status_counts(statuses: pd.Series[Any]) -> str:
    """How many trials ended how, in words."""
    counts = statuses.value_counts()
    return ", ".join(f"{counts[status]} {status}" for status in STATUSES if status in counts)


def study_sections(study: pd.DataFrame, number: int) -> list[Section]:
    """The sections of one study; `number` makes their anchors and their tables' names unique.

    Args:
        study: trials of `predicted.with_expected_peaks`.
        number: which study of the report this is, from 1 on.
    """
    anchor = f"study-{number}"
    counts = status_counts(study["status"])
    text = [f"{count_of(len(study), 'trial')} that differ in techniques alone: {counts}."]
    subject, title = findings.subject_of(study), str(study["title"].iloc[0])
    if subject != title:
        text.append("The model is a toy: its ratios say little about large ones.")
    if studies.baseline_trial(study)["status"] != "ok":
        text.append(
            "The plain trial did not run. So a change is shown where two trials differ in one technique "
            "alone and both ran, and nowhere else."
        )
    if any(not timed_alone(row) for row in studies.row_dicts(study)):
        text.append(
            "Where several ranks shared one device, no change of speed is shown: their tokens/s say "
            "nothing about as many devices."
        )
    return [
        Section(anchor, subject, tuple(text)),
        *_fastest(study, number),
        *_headline(study, number),
        *_loops(study, number),
        *_figures(study, number),
    ]


def _fastest(study: pd.DataFrame, number: int) -> Iterator[Section]:
    """What is fastest within so many bytes."""
    edge = tables.fastest_within(study)
    if edge.empty:
        return
    header = ["from this peak on", "fastest", "tokens/s per device [95 %]", "command"]
    lines = [
        [format_bytes(row[PEAK]), str(row["label"]), _rate(row), str(row["overrides"])]
        for row in studies.row_dicts(edge)
    ]
    text = (
        "For so much memory as there is, the last line that it suffices for. The peak is of tensors: "
        "context and fragmentation come on top. A trial is left out where its interval overlaps that of a "
        "smaller one: these rows do not tell that it is faster.",
    )
    table = Table(f"fastest-{number}", header, lines, code=("command",), numbers=(header[0], header[2]))
    yield Section(f"study-{number}-fastest", "Fastest within so much memory", text, (table,), level=3)


def _headline(study: pd.DataFrame, number: int) -> list[Section]:
    failed = study[study["status"] == "oom"]
    found = (
        (
            "headline",
            "One technique added at a time",
            "Each line adds the technique that leaves the lowest peak; changes are from the line above.",
            _changes(f"ladder-{number}", "added", _ladder(tables.ladder(study))),
        ),
        (
            "techniques",
            "What each technique changes",
            "Against a trial that lacks this technique and is otherwise alike: the plainest such pair that "
            "ran. A change of speed in brackets is not told apart: the intervals overlap.",
            _changes(f"alone-{number}", "technique", _by_technique(tables.by_technique(study))),
        ),
        (
            "out-of-memory",
            "What ran out of memory",
            "What each trial had reached when it asked for more, and what it was predicted to need.",
            _out_of_memory(f"out-of-memory-{number}", failed),
        ),
    )
    return [
        Section(f"study-{number}-{name}", title, (text,), (table,), level=3)
        for name, title, text, table in found
        if table.rows
    ]


def _loops(study: pd.DataFrame, number: int) -> Iterator[Section]:
    """What a Trainer adds to the same step."""
    found = loops.by_loop(study)
    if found.empty:
        return
    kept = [name for name in studies.BYTES if found[name].any()]
    names = [name.removesuffix("_bytes") for name in kept]
    header = ["trial", "loop", "bare", "Trainer", *names, "change of speed", "what it does"]
    lines = [
        [
            str(row["label"]),
            str(row["loop"]),
            format_bytes(row["bare_bytes"]),
            format_bytes(row["trainer_bytes"]),
            *(format_difference(row[name]) for name in kept),
            _speed(row),
            "; ".join(row["mechanisms"]),
        ]
        for row in studies.row_dicts(found)
    ]
    text = (
        "The same model, tokens and techniques, stepped by transformers' Trainer, or by TRL's. Categories "
        "are what it holds more at its peak; the last column is what it is known to do otherwise. A change "
        "of speed in brackets is not told apart: the intervals overlap.",
    )
    table = Table(f"loops-{number}", header, lines, numbers=tuple(header[2:-1]))
    yield Section(f"study-{number}-loops", "Loop against loop", text, (table,), level=3)


def _speed(row: Mapping[str, Any]) -> str:
    change = format_change(row["rate_change"], 1)
    return f"({change})" if change and not row["rates_differ"] else change


_CHANGED = ("peak", "change", "tokens/s per device [95 %]", "change of speed")
Cells = list[dict[str, str]]


def _changes(name: str, first: str, lines: Cells) -> Table:
    """A table of trials with their changes; columns in which no line has anything are left out."""
    header = [first, "against", "peak", "predicted", *_CHANGED[1:], "status", "command"]
    kept = [column for column in header if any(line.get(column) for line in lines)]
    cells = [[line.get(column, "") for column in kept] for line in lines]
    return Table(name, kept, cells, code=("command",), numbers=(*_CHANGED, "predicted"))


def _ladder(rungs: pd.DataFrame) -> Cells:
    return [
        _cells(row) | {"added": f"+ {row['added']}" if row["added"] else str(row["label"])}
        for row in studies.row_dicts(rungs)
    ]


def _by_technique(single: pd.DataFrame) -> Cells:
    lines = []
    for row in studies.row_dicts(single):
        cells = _cells(row) | {"technique": str(row["added"]), "against": str(row["against"])}
        if cells["change of speed"] and not row["rates_differ"]:
            cells["change of speed"] = f"({cells['change of speed']})"
        lines.append(cells)
    return lines


def _out_of_memory(name: str, failed: pd.DataFrame) -> Table:
    lines = [
        [str(row["label"]), _peak(row), _expected(row), str(row["overrides"])]
        for row in studies.row_dicts(failed)
    ]
    header = ["trial", "needs", "predicted", "command"]
    return Table(name, header, lines, code=("command",), numbers=tuple(header[1:3]))


def _cells(row: Mapping[str, Any]) -> dict[str, str]:
    return {
        "peak": _peak(row),
        "predicted": _expected(row) if row["status"] == "oom" else "",
        "change": format_change(row["peak_change"], 1),
        "tokens/s per device [95 %]": _rate(row),
        "change of speed": format_change(row["rate_change"], 1),
        "status": str(row["status"]),
        "command": str(row["overrides"]),
    }


def _peak(row: Mapping[str, Any]) -> str:
    """The peak; of a trial that ran out of memory, that it needs more than it reached."""
    if pd.isna(row[PEAK]):
        return ""
    return format_peak(row[PEAK], row["status"])


def _expected(row: Mapping[str, Any]) -> str:
    if pd.isna(row["expected_bytes"]):
        return ""
    return f"{format_bytes(row['expected_bytes'])} ({row['expected_by']})"


def _rate(row: Mapping[str, Any]) -> str:
    if pd.isna(row[RATE]):
        return ""
    return f"{row[RATE]:,.0f} [{row[f'{RATE}_ci_low']:,.0f}, {row[f'{RATE}_ci_high']:,.0f}]"


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
            "Up and to the left is better. The dashed line joins the named trials: by the medians no other "
            "beats these in both (Pareto). Vertical bars are 95 % intervals.",
        ),
        (
            "pairs",
            "Technique by technique",
            figures_across.techniques_by_technique(tables.pairs(study)),
            "What the technique of the line changes where that of the column is in force; alone on the "
            "diagonal. The peak is large, tokens/s small (a question mark: intervals overlap). Blue "
            "saves memory, orange costs memory. Words stand where no change can be told; an empty cell was "
            "not run.",
        ),
    )
    steps = tuple(
        (
            f"step-{nth}",
            f"Memory through one step: {row['label']}",
            figures.memory_over_step(row),
            "What the step held, block by block: why its peak is where it is. Each stretch is as high as "
            "the most that it held.",
        )
        for nth, row in enumerate(_drawn_steps(study), 1)
    )
    for name, title, chart, caption in (drawn[0], *steps, *drawn[1:]):
        if chart is not None:
            figure = Figure(f"{name}-{number}", caption, charts.spec(chart))
            yield Section(f"{anchor}-{name}", title, figures=(figure,), level=3)


def _drawn_steps(study: pd.DataFrame) -> list[dict[str, Any]]:
    """The trials whose step is drawn: with the fewest techniques, and with the lowest peak."""
    shown = study[(study["status"] == "ok") & study["timeline"].notna()]
    shown = shown.assign(many=shown["steps"].map(len))
    ends = [shown.sort_values(["many", PEAK]).head(1), shown.sort_values(PEAK).head(1)]
    return studies.row_dicts(pd.concat(ends).drop_duplicates("trial_id"))
