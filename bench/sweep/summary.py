"""What the person sees when a sweep has ended: the table of its trials, or of what a dry run would do.

In: rows, or the plans of a dry run. Out: text on stdout. Reads and writes no files.
"""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from bench import formatting, paths
from bench.sweep import progress

if TYPE_CHECKING:
    from rich.console import Console

    from bench.config.command_line import Command
    from bench.sweep.forecast import Planned

Rows = list[dict[str, Any]]

_MOST_FOR_A_WORD = 24  # columns; a longer word, as a path, is broken
_LEAST_FOR_REASONS = 40  # columns; where there is less room, reasons follow the table


def show(new: Rows, reused: Rows, command: Command, given: list[str], interrupted: bool) -> None:
    """Prints the table of an ended sweep, where its rows are, and the command that repeats the sweep.

    Args:
        new: the rows that the sweep wrote.
        reused: rows of earlier sweeps that stand for trials that it passed over.
        command: the sweep.
        given: its command line, as it was given.
        interrupted: whether the sweep was cut short.
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
    show_table(console, rows)
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
    console.print(
        f"\nRows       {escape(shown)}  (sweep_id {command.sweep_id})", highlight=False, soft_wrap=True
    )
    failed = any(row["status"] in ("error", "timeout") for row in rows)
    unfinished = interrupted or failed
    all_of_it = [] if unfinished or any(word.startswith("resume=") for word in given) else ["resume=off"]
    line = shlex.join(["python", "bench/run.py", *given, *all_of_it])
    console.print(
        f"{'Go on' if unfinished else 'Once more':<11}{escape(line)}", highlight=False, soft_wrap=True
    )
    if failed:
        logs = paths.local_dir(command.results_dir) / "logs" / command.sweep_id
        console.print(f"Logs       {escape(str(logs))}", highlight=False, soft_wrap=True)


def show_plan(plans: list[Planned]) -> None:
    """Prints the table of a dry run: what would run, what does not fit, how long all of it takes."""
    console = progress.console()
    lines = []
    for label, plan in zip(_unshared_words([plan.label.split(" ") for plan in plans]), plans, strict=True):
        forecast = plan.forecast
        peak = capacity = reason = ""
        if forecast is not None:
            reason = forecast.reason or ""
            if forecast.peak_bytes is not None:
                peak = formatting.format_gib(forecast.peak_bytes)
                capacity = formatting.format_gib(forecast.capacity_bytes)
        expected = "" if plan.seconds is None else formatting.format_duration(plan.seconds)
        lines.append(_Line([label, plan.verdict, peak, capacity, expected], reason))
    console.print()
    show_lines(console, ["trial", "plan", "predicted peak GiB", "device GiB", "expected"], lines)
    known = [plan.seconds for plan in plans if plan.seconds is not None]
    unknown = len(plans) - len(known)
    text = f"\n{len(plans)} trials, nothing was run. Expected: {formatting.format_duration(sum(known))}"
    if unknown:
        text += f", and {unknown} that no earlier row tells the time of (at most timeout_seconds each)"
    console.print(text, highlight=False)


def show_lost(lost: list[str]) -> None:
    """Prints the names of the trials that left no row, and how to run them."""
    if lost:
        print("\nNo row came of\n  " + "\n  ".join(lost))
        print("Give the same command again to run them.")


def show_table(console: Console, rows: Rows) -> None:
    """Prints a table with a line for each trial; changes are against the first row that is ok."""
    names = ["trial", "status", "peak GiB", "change", "tokens/s/device [95 %]", "change"]
    first = next((row for row in rows if row["status"] == "ok"), None)
    lines = [
        _Line(
            [label, row["status"], *cells(row, first)], row["reason"] or "", progress.COLOURS[row["status"]]
        )
        for label, row in zip(labels(rows), rows, strict=True)
    ]
    show_lines(console, names, lines)


@dataclass(frozen=True)
class _Line:
    """One line of a table: the cells of its columns, the trial's first, and a reason that may be long."""

    cells: list[str]
    reason: str
    style: str = ""


def show_lines(console: Console, names: list[str], lines: list[_Line]) -> None:
    """Prints a table. Where the screen is too narrow for a column of reasons, they follow the table."""
    any_reason = any(line.reason for line in lines)
    wide = _table(names, lines, reasons=any_reason)
    if not any_reason or formatting.fits(console, wide):
        console.print(wide, highlight=False)
        return
    console.print(_table(names, lines, reasons=False), highlight=False)
    console.print()
    for line in lines:
        if line.reason:
            console.print(
                f"{line.cells[0]}: {line.reason}", style=line.style, highlight=False, markup=False
            )


def _table(names: list[str], lines: list[_Line], *, reasons: bool) -> Table:
    """Text to the left, in lines of whole words, numbers to the right."""
    grid = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for name in names:
        if name == "trial":
            longest = max(len(word) for line in lines for word in line.cells[0].split())
            grid.add_column(name, overflow="fold", min_width=min(longest, _MOST_FOR_A_WORD))
        else:
            grid.add_column(name, justify="left" if name in ("status", "plan") else "right")
    if reasons:
        grid.add_column("reason", overflow="fold", min_width=_LEAST_FOR_REASONS)
    for line in lines:
        grid.add_row(*map(escape, [*line.cells, *([line.reason] if reasons else [])]), style=line.style)
    return grid


def labels(rows: Rows) -> list[str]:
    """A label for each row of one sweep: the overrides that not all of its rows share."""
    several = len({row["replicate"] for row in rows}) > 1
    return [
        words + (f" #{row['replicate'] + 1}" if several else "")
        for words, row in zip(
            _unshared_words([shlex.split(row["overrides"])[2:] for row in rows]), rows, strict=True
        )
    ]


def _unshared_words(lines: list[list[str]]) -> list[str]:
    """Each line without the words that all lines share."""
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
