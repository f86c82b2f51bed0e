"""A comparison as a table and in sentences, for the terminal and for a pull request. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from bench.analysis.comparison import Comparison, Row, by_trial, unmatched
from bench.formatting import count_of, markdown_table
from bench.trial.spec import subject_of_rows


def subject(rows: Iterable[Row]) -> str:
    """What a set of rows measured, and on what: models, workloads, shapes and devices."""
    return subject_of_rows(row for trial in by_trial(rows).values() for row in trial)


def comparison_lines(compared: list[Comparison]) -> tuple[list[str], list[list[str]]]:
    """The comparison as a header and rows of text, the worst first."""
    header = ["trial", "verdict", "peak MiB", "change", "tokens/s/device", "change", "p", "replicates"]
    rows = []
    for trial in compared:
        before, after = trial.peaks
        old, new = trial.rates
        rows.append(
            [
                trial.label,
                ", ".join(trial.regressions) or "no worse",
                "" if before is None or after is None else f"{before / 2**20:.2f} -> {after / 2**20:.2f}",
                "" if trial.memory_change is None else f"{trial.memory_change:+,} B",
                "" if old is None or new is None else f"{old:,.0f} -> {new:,.0f}",
                "" if trial.speed_change is None else f"{trial.speed_change:+.1%}",
                "" if trial.p is None else f"{trial.p:.3f}",
                f"{trial.replicates[0]} -> {trial.replicates[1]}",
            ]
        )
    return header, rows


def comparison_markdown(compared: list[Comparison]) -> str:
    """The comparison as a Markdown table, for a pull request; empty if nothing was compared."""
    if not compared:
        return ""
    header, rows = comparison_lines(compared)
    return markdown_table(header, [[f"`{row[0]}`", *row[1:]] for row in rows])


def verdict(compared: list[Comparison], before: list[Row], after: list[Row]) -> list[str]:
    """The result in sentences; the last one says whether anything got worse.

    Args:
        compared: what `compare` returned.
        before: the baseline's rows.
        after: the candidate's rows.
    """
    gone = unmatched(before, after)
    if not compared:
        counts = f"{len(before)} rows of the baseline, {len(after)} of the candidate"
        return [f"Nothing to compare: no measured trial is in both sets ({counts})."]
    notes = []
    if gone:
        notes.append(
            f"{count_of(len(gone), 'trial')} of the baseline found no counterpart among the candidate's: "
            f"{gone[0]}{', ...' if len(gone) > 1 else ''} (require_all=true makes that a failure)."
        )
    unreplicated = sum(trial.p is None for trial in compared)
    if unreplicated:
        notes.append(f"Speed is not judged for {unreplicated} trials without replicates (replicates=5).")
    worse = [trial for trial in compared if trial.regressions]
    if worse:
        reasons = ", ".join(worse[0].regressions)
        worst = f"the worst: {worse[0].label} ({reasons})"
        return [*notes, f"{len(worse)} of {len(compared)} trials got worse; {worst}"]
    return [*notes, f"None of {len(compared)} trials got worse."]
