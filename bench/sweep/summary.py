"""What the person sees when a sweep has ended: the table of its trials, or of what a dry run would do."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from bench import formatting, paths
from bench.sweep import progress

if TYPE_CHECKING:
    from bench.config.command_line import Command
    from bench.sweep.forecast import Planned

Rows = list[dict[str, Any]]


def show(new: Rows, reused: Rows, command: Command, interrupted: bool) -> None:
    """The table of a finished sweep, where its rows are, and how to get one of them again.

    Args:
        new: the rows that it wrote.
        reused: rows of earlier sweeps that stand for trials that it passed over.
        command: the sweep.
        interrupted: whether it was cut short.
    """
    console = progress.console()
    rows = reused + new
    if not rows:
        console.print("No trial has ended; no row was written.")
        return
    device = next((row["device_name"] for row in rows if row["device_name"]), "no device")
    console.print(
        f"\n{escape(device)}, {len(rows)} of {command.size or len(rows)} trials\n", highlight=False
    )
    console.print(table(rows), highlight=False)
    if reused:
        console.print(
            f"\n{len(reused)} of these trials had a row already and did not run (resume=off runs all)",
            highlight=False,
        )
    if interrupted:
        console.print(
            "\nInterrupted; the rows above are complete and stay. The same command goes on from here.",
            highlight=False,
        )
    shown = str(command.results_dir / "trials")
    if not paths.is_remote(command.results_dir) and not os.path.relpath(shown).startswith(".."):
        shown = os.path.relpath(shown)
    console.print(f"\nRows       {escape(shown)}  (sweep_id {command.sweep_id})", highlight=False)
    console.print(f"Once more  {escape(rows[-1]['overrides'])}", highlight=False)
    if any(row["status"] in ("error", "timeout") for row in rows):
        logs = paths.local_dir(command.results_dir) / "logs" / command.sweep_id
        console.print(f"Logs       {escape(str(logs))}", highlight=False)


def show_plan(plans: list[Planned]) -> None:
    """The table of a dry run: what would run, what does not fit, how long it all takes."""
    console = progress.console()
    columns = _columns("trial", "plan", "predicted peak GiB", "device GiB", "expected", "reason")
    for label, plan in zip(_apart([plan.label.split(" ") for plan in plans]), plans, strict=True):
        found = plan.forecast
        peak = "" if found is None or found.peak_bytes is None else formatting.format_gib(found.peak_bytes)
        here = "" if not peak or found is None else formatting.format_gib(found.capacity_bytes)
        took = "" if plan.seconds is None else formatting.format_duration(plan.seconds)
        reason = (found.reason or "") if found else ""
        columns.add_row(*map(escape, [label, plan.verdict, peak, here, took, reason]))
    console.print()
    console.print(columns, highlight=False)
    known = [plan.seconds for plan in plans if plan.seconds is not None]
    unknown = len(plans) - len(known)
    text = f"\n{len(plans)} trials, nothing was run. Expected: {formatting.format_duration(sum(known))}"
    if unknown:
        text += f", and {unknown} that no earlier row tells the time of (at most timeout_seconds each)"
    console.print(text, highlight=False)


def show_lost(lost: list[str]) -> None:
    """The trials that left no row, by name, and how to get them."""
    if lost:
        print("\nNo row came of\n  " + "\n  ".join(lost))
        print("Give the same command again to run them.")


def table(rows: Rows) -> Table:
    """One line for each trial; changes are against the first row that is ok."""
    reason = ["reason"] if any(row["reason"] for row in rows) else []
    columns = _columns("trial", "status", "peak GiB", "change", "tokens/s/device [95 %]", "change", *reason)
    first = next((row for row in rows if row["status"] == "ok"), None)
    for label, row in zip(labels(rows), rows, strict=True):
        said = [label, row["status"], *cells(row, first), *filter(None, [row["reason"]])]
        columns.add_row(*map(escape, said), style=progress.COLOURS[row["status"]])
    return columns


def _columns(*names: str) -> Table:
    """An empty table: words to the left and folded where they must be, numbers to the right."""
    columns = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for name in names:
        if name in ("trial", "reason"):
            columns.add_column(name, overflow="fold")
        else:
            columns.add_column(name, justify="left" if name in ("status", "plan") else "right")
    return columns


def labels(rows: Rows) -> list[str]:
    """What tells the rows of one sweep apart: the overrides that they do not all share."""
    several = len({row["replicate"] for row in rows}) > 1
    return [
        words + (f" #{row['replicate'] + 1}" if several else "")
        for words, row in zip(
            _apart([shlex.split(row["overrides"])[2:] for row in rows]), rows, strict=True
        )
    ]


def _apart(lines: list[list[str]]) -> list[str]:
    """Each of these lines without the words that they all share."""
    shared = set.intersection(*map(set, lines)) if len(lines) > 1 else set()
    return [" ".join(word for word in line if word not in shared) or "(defaults)" for line in lines]


def cells(row: dict[str, Any], first: dict[str, Any] | None) -> list[str]:
    """Peak, its change, rate with interval, its change, as text; changes are against `first`."""
    peak = row["peak_allocated_bytes"]
    if row["status"] != "ok" or first is None:
        return ["" if peak is None else formatting.format_gib(peak), "", "", ""]
    if row["tokens_per_sec_per_device"] is None:
        return [formatting.format_gib(peak), _change(row, first, "peak_allocated_bytes"), "", ""]
    rate, low, high = (row[f"tokens_per_sec_per_device{end}"] for end in ("", "_ci_low", "_ci_high"))
    return [
        formatting.format_gib(peak),
        _change(row, first, "peak_allocated_bytes"),
        f"{rate:,.0f} [{low:,.0f}, {high:,.0f}]",
        _change(row, first, "tokens_per_sec_per_device"),
    ]


def _change(row: dict[str, Any], first: dict[str, Any], column: str) -> str:
    if row is first:
        return "first"
    if first[column] is None:
        return ""
    return f"{(row[column] / first[column] - 1) * 100:+.1f} %"
