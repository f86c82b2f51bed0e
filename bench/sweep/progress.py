"""What the person sees while a sweep runs: a line for each trial (what it ends with: `sweep_screen.py`).

On a terminal the running line is live, redrawn once a second: the parent must not take time from what is
being timed. Elsewhere (a file, a pipe, a CI log) there is one plain line for each trial as it ends.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from bench import formatting
from bench.formatting import format_duration, format_gib

if TYPE_CHECKING:
    from bench.sweep.diagnosis import Finding
    from bench.sweep.forecast import Planned


COLOURS = {"ok": "green", "oom": "yellow", "skipped": "cyan", "timeout": "red", "error": "red"}
_PLAIN_WIDTH = 160


def console() -> Console:
    """The console on stdout; wide where it is no terminal, so that lines do not break in a log."""
    return formatting.console(_PLAIN_WIDTH)


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
        text = f"{format_duration(elapsed)} so far"
        if self.size is None or not 0 < self.done < self.size:
            return text
        return f"{text}, about {format_duration(elapsed / self.done * (self.size - self.done))} left"


_sweep: _Sweep | None = None


@contextmanager
def progress(size: int | None) -> Iterator[None]:
    """Shows the sweep's progress while entered; `size` trials are expected (None: nobody knows)."""
    global _sweep
    here = console()
    if not here.is_terminal:
        _sweep = _Sweep(size, None)
        yield
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=here, refresh_per_second=1, transient=True) as live:
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
        took = format_duration(row["wall_seconds"])
        text = f"{self._place('/')}  {row['status']:<8}{self.label}  {_facts(row)}  ({took}"
        if not _sweep:
            print(f"{text})", flush=True)
            return
        _sweep.done += 1
        text += f"; {_sweep.so_far()})"
        if _sweep.live:
            _sweep.live.remove_task(self.task)
            _sweep.live.console.print(escape(text), style=COLOURS[row["status"]], highlight=False)
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
    print_line(f"Lost {_sweep.lost[-1]}", style="red")


def print_line(text: str, style: str | None = None) -> None:
    """A line between those of the trials."""
    if _sweep and _sweep.live:
        _sweep.live.console.print(escape(text), style=style, highlight=False)
    else:
        print(text, flush=True)


def losses() -> list[str]:
    """The trials that left no row, and why."""
    return _sweep.lost if _sweep else []


def plans() -> list[Planned]:
    """What a dry run found out, trial by trial."""
    return _sweep.planned if _sweep else []


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
        peak = f"{format_gib(row['peak_allocated_bytes'])} GiB"
        return peak if rate is None else f"{peak}  {rate:,.0f} tokens/s"
    return str(row["reason"])


def finding(found: Finding) -> None:
    """One line of the doctor's."""
    mark, colour = ("✗", "red") if found.wrong else ("✓", "green")
    here = console()
    here.print(f"[{colour}]{mark}[/] {found.what:<18}{escape(found.found)}", highlight=False)
    if found.remedy:
        here.print(f"  {'':<18}→ {escape(found.remedy)}", highlight=False)
