"""What the person sees: a line while each trial runs, one table when the sweep has ended.

On a terminal the running line is live, redrawn once a second: the parent must not take time from what is
being timed. Elsewhere (a file, a pipe, a CI log) there is one plain line for each trial as it ends.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench import places

if TYPE_CHECKING:
    from bench.commands import Command
    from bench.diagnosis import Finding
    from bench.forecast import Planned

_GIB = 2**30
_COLOURS = {"ok": "green", "oom": "yellow", "skipped": "cyan", "timeout": "red", "error": "red"}
_PLAIN_WIDTH = 160


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=_PLAIN_WIDTH)


@dataclass
class _Sweep:
    """The sweep that this process shows; under launchers with processes of their own there is none."""

    size: int | None
    live: Progress | None
    started: float = field(default_factory=time.monotonic)
    done: int = 0
    lost: list[str] = field(default_factory=list)

    planned: list[Planned] = field(default_factory=list)

    def so_far(self) -> str:
        """Time spent, and time left from the trials so far where that can be known."""
        elapsed = time.monotonic() - self.started
        text = f"{_duration(elapsed)} so far"
        if self.size is None or not 0 < self.done < self.size:
            return text
        return f"{text}, about {_duration(elapsed / self.done * (self.size - self.done))} left"


_sweep: _Sweep | None = None


@contextmanager
def progress(size: int | None) -> Iterator[None]:
    """Shows the sweep's progress while entered; `size` trials are expected (None: nobody knows)."""
    global _sweep
    console = _console()
    if not console.is_terminal:
        _sweep = _Sweep(size, None)
        yield
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, refresh_per_second=1, transient=True) as live:
        _sweep = _Sweep(size, live)
        yield


@dataclass
class Line:
    """One trial's line, from its beginning to its end."""

    number: int
    size: int | None
    label: str
    task: Any = None

    def stage(self, stage: str) -> None:
        """Shows what the trial is doing."""
        if _sweep and _sweep.live:
            text = f"trial {self._place(' of ')}: {self.label}  [{stage}]  {_sweep.so_far()}"
            _sweep.live.update(self.task, description=escape(text))

    def _place(self, of: str) -> str:
        if self.size is None:
            return str(self.number)
        return f"{self.number:>{len(str(self.size))}}{of}{self.size}"

    def end(self, row: dict[str, Any]) -> None:
        """Replaces the running line by what came of it."""
        took = _duration(row["wall_seconds"])
        text = f"{self._place('/')}  {row['status']:<8}{self.label}  {_facts(row)}  ({took}"
        if not _sweep:
            print(f"{text})", flush=True)
            return
        _sweep.done += 1
        text += f"; {_sweep.so_far()})"
        if _sweep.live:
            _sweep.live.remove_task(self.task)
            _sweep.live.console.print(escape(text), style=_COLOURS[row["status"]], highlight=False)
        else:
            print(text, flush=True)


def begin(number: int, size: int | None, overrides: list[str], replicate: int) -> Line:
    """A trial begins; `number` counts from 0."""
    label = " ".join(overrides) or "(defaults)"
    line = Line(number + 1, size, label + (f" #{replicate + 1}" if replicate else ""))
    if _sweep and _sweep.live:
        line.task = _sweep.live.add_task("")
        line.stage("start")
    return line


def lost(number: int, label: str, reason: str) -> None:
    """Trial `number` (from 0), under a launcher of jobs elsewhere, left no row, and why."""
    assert _sweep, "jobs are waited for by the door"
    _sweep.done += 1
    _sweep.lost.append(f"trial {number + 1}: {label or '(defaults)'}: {reason}")
    say(f"Lost {_sweep.lost[-1]}", style="red")


def say(text: str, style: str | None = None) -> None:
    """A line between those of the trials."""
    if _sweep and _sweep.live:
        _sweep.live.console.print(escape(text), style=style, highlight=False)
    else:
        print(text, flush=True)


def show_lost() -> None:
    """The trials that left no row, by name, and how to get them."""
    if _sweep and _sweep.lost:
        print("\nNo row came of\n  " + "\n  ".join(_sweep.lost))
        print("Give the same command again to run them.")


def passed_over() -> None:
    """A trial has a row already; the time left is that of the others."""
    if _sweep and _sweep.size is not None:
        _sweep.size -= 1


def planned(line: Line, plan: Planned) -> None:
    """What a dry run found out about a trial takes the place of its row."""
    if not _sweep:
        return
    _sweep.planned.append(plan)
    _sweep.done += 1
    if _sweep.live:
        _sweep.live.remove_task(line.task)


def _facts(row: dict[str, Any]) -> str:
    if row["status"] == "ok":
        rate = row["tokens_per_sec_per_device"]
        peak = f"{_gib(row['peak_allocated_bytes'])} GiB"
        return peak if rate is None else f"{peak}  {rate:,.0f} tokens/s"
    return str(row["reason"])


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _gib(size: float) -> str:
    """GiB to three significant digits or more."""
    gib = size / _GIB
    return f"{gib:.1f}" if gib >= 100 else f"{gib:.2f}" if gib >= 1 else f"{gib:.4f}"


Rows = list[dict[str, Any]]


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


def table(rows: Rows) -> Table:
    """One line for each trial; changes are against the first row that is ok."""
    columns = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    columns.add_column("trial", overflow="fold")
    columns.add_column("status")
    columns.add_column("peak GiB", justify="right")
    columns.add_column("change", justify="right")
    columns.add_column("tokens/s/device [95 %]", justify="right")
    columns.add_column("change", justify="right")
    if any(row["reason"] for row in rows):
        columns.add_column("reason", overflow="fold")
    first = next((row for row in rows if row["status"] == "ok"), None)
    for label, row in zip(labels(rows), rows, strict=True):
        said = [label, row["status"], *cells(row, first), *filter(None, [row["reason"]])]
        columns.add_row(*map(escape, said), style=_COLOURS[row["status"]])
    return columns


def cells(row: dict[str, Any], first: dict[str, Any] | None) -> list[str]:
    """Peak, its change, rate with interval, its change, as text; changes are against `first`."""
    peak = row["peak_allocated_bytes"]
    if row["status"] != "ok" or first is None:
        return ["" if peak is None else _gib(peak), "", "", ""]
    if row["tokens_per_sec_per_device"] is None:
        return [_gib(peak), _change(row, first, "peak_allocated_bytes"), "", ""]
    rate, low, high = (row[f"tokens_per_sec_per_device{end}"] for end in ("", "_ci_low", "_ci_high"))
    return [
        _gib(peak),
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


def show(new: Rows, reused: Rows, command: Command, interrupted: bool) -> None:
    """The table of a finished sweep, where its rows are, and how to get one of them again.

    Args:
        new: the rows that it wrote.
        reused: rows of earlier sweeps that stand for trials that it passed over.
        command: the sweep.
        interrupted: whether it was cut short.
    """
    console = _console()
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
    if not places.remote(command.results_dir) and not os.path.relpath(shown).startswith(".."):
        shown = os.path.relpath(shown)
    console.print(f"\nRows       {escape(shown)}  (sweep_id {command.sweep_id})", highlight=False)
    console.print(f"Once more  {escape(rows[-1]['overrides'])}", highlight=False)
    if any(row["status"] in ("error", "timeout") for row in rows):
        logs = places.beside(command.results_dir) / "logs" / command.sweep_id
        console.print(f"Logs       {escape(str(logs))}", highlight=False)


def show_plan() -> None:
    """The table of a dry run: what would run, what does not fit, how long it all takes."""
    console, plans = _console(), _sweep.planned if _sweep else []
    columns = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    columns.add_column("trial", overflow="fold")
    columns.add_column("plan")
    columns.add_column("predicted peak GiB", justify="right")
    columns.add_column("device GiB", justify="right")
    columns.add_column("expected", justify="right")
    columns.add_column("reason", overflow="fold")
    for label, plan in zip(_apart([plan.label.split(" ") for plan in plans]), plans, strict=True):
        found = plan.forecast
        peak = "" if found is None or found.peak_bytes is None else _gib(found.peak_bytes)
        here = "" if not peak or found is None else _gib(found.capacity_bytes)
        took = "" if plan.seconds is None else _duration(plan.seconds)
        reason = (found.reason or "") if found else ""
        columns.add_row(*map(escape, [label, plan.verdict, peak, here, took, reason]))
    console.print()
    console.print(columns, highlight=False)
    known = [plan.seconds for plan in plans if plan.seconds is not None]
    unknown = len(plans) - len(known)
    text = f"\n{len(plans)} trials, nothing was run. Expected: {_duration(sum(known))}"
    if unknown:
        text += f", and {unknown} that no earlier row tells the time of (at most timeout_seconds each)"
    console.print(text, highlight=False)


def finding(found: Finding) -> None:
    """One line of the doctor's."""
    mark, colour = ("✗", "red") if found.wrong else ("✓", "green")
    console = _console()
    console.print(f"[{colour}]{mark}[/] {found.what:<18}{escape(found.found)}", highlight=False)
    if found.remedy:
        console.print(f"  {'':<18}→ {escape(found.remedy)}", highlight=False)
