"""What the person sees when a sweep has ended: the table of its trials, and how to go on.

In: rows. Out: text on stdout. Reads and writes no files.
"""

from __future__ import annotations

import os
import shlex
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from bench import formatting, paths
from bench.methods.estimate.closed_form import expected_peak_bytes
from bench.sweep import progress
from bench.trial.outcome import STATUSES
from bench.trial.platform import ranks_share_device
from bench.trial.spec import from_text, subject_of_rows
from bench.trial.vocabulary import PRECISION_COLUMNS, precision_words

if TYPE_CHECKING:
    from rich.console import Console

    from bench.config.command_line import Command
    from bench.sweep.schedule.budget import LeftOut

Rows = list[dict[str, Any]]

_MOST_LEFT_OUT = 20  # trials that are named
_MOST_FOR_A_WORD = 24  # columns; a longer word, as a path, is broken
_LEAST_FOR_REASONS = 40  # columns; where there is less room, reasons follow the table


def show(
    new: Rows,
    reused: Rows,
    command: Command,
    given: list[str],
    interrupted: bool,
    left_out: Sequence[LeftOut] = (),
) -> None:
    """Prints the table of an ended sweep, where its rows are, and the command that repeats the sweep.

    Args:
        new: the rows that the sweep wrote.
        reused: rows of earlier sweeps that stand for trials that it passed over.
        command: the sweep.
        given: its command line, as it was given.
        interrupted: whether the sweep was cut short.
        left_out: the trials for which its budget_seconds were too short.
    """
    console = progress.console()
    rows = reused + new
    if not rows:
        console.print("No trial has ended; no row was written.")
        if left_out:
            _show_left_out(console, left_out, rows, command)
            _show_command(console, "Go on", given)
        return
    counted = f"{len(rows)} of {command.size or len(rows)} trials"
    console.print(f"\n{escape(subject_of_rows(rows))}\n{counted}\n", highlight=False)
    show_table(console, rows)
    for note in notes(rows):
        console.print(f"\n{escape(note)}", highlight=False)
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
    if left_out:
        _show_left_out(console, left_out, rows, command)
    shown = str(command.results_dir / "trials")
    if not paths.is_remote(command.results_dir) and not os.path.relpath(shown).startswith(".."):
        shown = os.path.relpath(shown)
    console.print(
        f"\nRows       {escape(shown)}  (sweep_id {command.sweep_id})", highlight=False, soft_wrap=True
    )
    failed = any(row["status"] in ("error", "timeout") for row in rows)
    unfinished = interrupted or failed or bool(left_out)
    all_of_it = [] if unfinished or any(word.startswith("resume=") for word in given) else ["resume=off"]
    _show_command(console, "Go on" if unfinished else "Once more", [*given, *all_of_it])
    if failed:
        logs = paths.local_dir(command.results_dir) / "logs" / command.sweep_id
        console.print(f"Logs       {escape(str(logs))}", highlight=False, soft_wrap=True)


def _show_command(console: Console, what_for: str, given: list[str]) -> None:
    line = shlex.join([*paths.command("run"), *given])
    console.print(f"{what_for:<11}{escape(line)}", highlight=False, soft_wrap=True)


def _show_left_out(console: Console, left_out: Sequence[LeftOut], rows: Rows, command: Command) -> None:
    """Prints which trials the sweep's time was too short for, and why, without words that all share."""
    count = formatting.count_of(len(left_out), "trial")
    budget = formatting.format_duration(command.budget_seconds or 0.0)
    console.print(f"\nLeft out, for the sweep may take {budget}: {count}", highlight=False)
    commands = [*(trial.command for trial in left_out), *(row["overrides"] for row in rows)]
    words = unshared_words([shlex.split(command)[2:] for command in commands])
    for trial, label in list(zip(left_out, words, strict=False))[:_MOST_LEFT_OUT]:
        number = f" #{trial.replicate + 1}" if trial.replicate else ""
        console.print(f"  {escape(label)}{number}: {trial.reason}", highlight=False)
    if len(left_out) > _MOST_LEFT_OUT:
        console.print(f"  and {len(left_out) - _MOST_LEFT_OUT} more", highlight=False)
    console.print("The same command runs them, and nothing that has a row.", highlight=False)


def show_lost(lost: list[str]) -> None:
    """Prints the names of the trials that left no row, and how to run them."""
    if lost:
        print("\nNo row came of\n  " + "\n  ".join(lost))
        print("Give the same command again to run them.")


def notes(rows: Rows) -> list[str]:
    """What has to be known to read the table of these rows: what a precision means, whose speed is none."""
    found = list(
        dict.fromkeys(
            f"precision={row['precision']}: {precision_words(*(row[name] for name in PRECISION_COLUMNS))}."
            for row in rows
            if row["precision"] != "fp32"
        )
    )
    if any(map(_shares_device, rows)):
        found.append(
            "Several ranks shared one device: their tokens/s say nothing about as many devices, and are "
            "not compared."
        )
    return found


def _shares_device(row: dict[str, Any]) -> bool:
    return ranks_share_device(row["device_name"] or "", row["world_size"])


def merged(rows: Rows) -> Rows:
    """One row for each trial: of its replicates the largest peak, the median rate, and the worst status.

    The interval of the rate spans those of all replicates: that of one process says nothing about the
    differences between processes. The other columns are those of the replicate with the worst status.
    """
    trials: dict[str, Rows] = {}
    for row in rows:
        trials.setdefault(f"{row['trial_id']} {row['overrides']}", []).append(row)
    return [_merged_replicates(replicates) for replicates in trials.values()]


def _merged_replicates(replicates: Rows) -> dict[str, Any]:
    def values(column: str) -> list[Any]:
        return [row[column] for row in replicates if row[column] is not None]

    worst = max(replicates, key=lambda row: STATUSES.index(row["status"]))
    rate = "tokens_per_sec_per_device"
    return worst | {
        "replicates": len(replicates),
        "peak_allocated_bytes": max(values("peak_allocated_bytes"), default=None),
        rate: statistics.median(values(rate)) if values(rate) else None,
        f"{rate}_ci_low": min(values(f"{rate}_ci_low"), default=None),
        f"{rate}_ci_high": max(values(f"{rate}_ci_high"), default=None),
    }


def _reason(row: dict[str, Any]) -> str | None:
    """The row's reason; of a trial that ran out of memory with what it was predicted to need."""
    reason = str(row["reason"]) if row["reason"] else None
    trial = from_text(row["definition"]) if row["status"] == "oom" and row["definition"] else None
    size = trial and expected_peak_bytes(trial, row["device_name"] or "")
    return f"predicted to need {formatting.format_bytes(size)} (closed form). {reason}" if size else reason


def show_table(console: Console, rows: Rows) -> None:
    """Prints a line for each trial, replicates merged; changes are against the first trial that is ok."""
    trials = merged(rows)
    names = ["trial", "status", "peak GiB", "change", "tokens/s/device [95 %]", "change"]
    first = next((row for row in trials if row["status"] == "ok"), None)
    lines = [
        TableLine(
            [label, row["status"], *cells(row, first)], _reason(row) or "", progress.COLOURS[row["status"]]
        )
        for label, row in zip(labels(trials), trials, strict=True)
    ]
    show_lines(console, names, lines)


@dataclass(frozen=True)
class TableLine:
    """One line of a table: the cells of its columns, the trial's first, and a reason that may be long."""

    cells: list[str]
    reason: str
    style: str = ""


def show_lines(console: Console, names: list[str], lines: list[TableLine]) -> None:
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


def _table(names: list[str], lines: list[TableLine], *, reasons: bool) -> Table:
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


def labels(trials: Rows) -> list[str]:
    """A label for each merged trial of one sweep: the overrides that not all share, and its replicates."""
    return [
        words + (f" (×{row['replicates']})" if row["replicates"] > 1 else "")
        for words, row in zip(
            unshared_words([shlex.split(row["overrides"])[2:] for row in trials]), trials, strict=True
        )
    ]


def unshared_words(lines: list[list[str]]) -> list[str]:
    """Each line without the words that all lines share."""
    shared = set.intersection(*map(set, lines)) if len(lines) > 1 else set()
    return [" ".join(word for word in line if word not in shared) or "(defaults)" for line in lines]


def cells(row: dict[str, Any], first: dict[str, Any] | None) -> list[str]:
    """Peak, its change, rate with interval, its change, as text; changes are against `first`.

    A trial that ran out of memory needs more than the peak that it reached.
    """
    peak = row["peak_allocated_bytes"]
    if row["status"] != "ok" or first is None:
        more = "> " if row["status"] == "oom" else ""
        return ["" if peak is None else f"{more}{formatting.format_gib(peak)}", "", "", ""]
    if row["tokens_per_sec_per_device"] is None:
        return [formatting.format_gib(peak), _change(row, first, "peak_allocated_bytes"), "", ""]
    rate, low, high = (row[f"tokens_per_sec_per_device{end}"] for end in ("", "_ci_low", "_ci_high"))
    comparable = row is first or not (_shares_device(row) or _shares_device(first))
    return [
        formatting.format_gib(peak),
        _change(row, first, "peak_allocated_bytes"),
        f"{rate:,.0f} [{low:,.0f}, {high:,.0f}]",
        _change(row, first, "tokens_per_sec_per_device") if comparable else "",
    ]


def _change(row: dict[str, Any], first: dict[str, Any], column: str) -> str:
    if row is first:
        return "first"
    if first[column] is None:
        return ""
    return f"{(row[column] / first[column] - 1) * 100:+.1f} %"
