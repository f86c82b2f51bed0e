"""What the person sees while a sweep runs: a line for each trial. The table at its end: `summary.py`.

On a terminal the running trial's line is redrawn once a second, not more often: this process must not take
time from what is being timed. Elsewhere (a file, a pipe, a CI log) each trial prints one plain line as it
ends.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from bench import formatting
from bench.formatting import format_duration, format_gib

COLOURS = {"ok": "green", "oom": "yellow", "skipped": "cyan", "timeout": "red", "error": "red"}
_PLAIN_WIDTH = 160


def console() -> Console:
    """The console on stdout; wide where it is no terminal, so that lines do not break in a log."""
    return formatting.console(_PLAIN_WIDTH)


@dataclass
class Display:
    """Where the sweep's lines go.

    `size` trials are expected (None: unknown), of which `done` have ended. `live` redraws the running line
    on a terminal. `counts` is false in a process that a launcher started: it knows one trial of many.
    """

    size: int | None = None
    live: Progress | None = None
    counts: bool = False
    started: float = field(default_factory=time.monotonic)
    done: int = 0

    def begin(self, number: int, size: int | None, overrides: list[str], replicate: int) -> Line:
        """The line of a trial that begins; `number` counts from 0, `size` is the whole sweep's."""
        label = " ".join(overrides) or "(defaults)"
        line = Line(self, number + 1, size, label + (f" #{replicate + 1}" if replicate else ""))
        if self.live:
            line.task = self.live.add_task("")
            line.stage("start")
        return line

    def print_line(self, text: str, style: str | None = None) -> None:
        """Prints a line between those of the trials."""
        if self.live:
            self.live.console.print(escape(text), style=style, highlight=False)
        else:
            print(text, flush=True)

    def pass_over(self) -> None:
        """Counts a trial out that has a row already, and takes no time."""
        if self.size is not None:
            self.size -= 1

    def drop(self, line: Line) -> None:
        """Counts a trial as ended, and takes its running line away."""
        self.done += 1
        if self.live:
            self.live.remove_task(line.task)

    def so_far(self) -> str:
        """Time spent, and time left, from the trials so far where there are any."""
        elapsed = time.monotonic() - self.started
        text = f"{format_duration(elapsed)} so far"
        if self.size is None or not 0 < self.done < self.size:
            return text
        return f"{text}, about {format_duration(elapsed / self.done * (self.size - self.done))} left"


@contextmanager
def shown(size: int | None) -> Iterator[Display]:
    """The display of a sweep of `size` trials; while entered it is live on a terminal."""
    screen = console()
    if not screen.is_terminal:
        yield Display(size, counts=True)
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=screen, refresh_per_second=1, transient=True) as live:
        yield Display(size, live, counts=True)


@dataclass
class Line:
    """One trial's line, from its beginning to its end."""

    display: Display
    number: int
    size: int | None
    label: str
    task: Any = None

    def stage(self, stage: str) -> None:
        """Shows what the trial is doing."""
        if self.display.live:
            text = f"trial {self._position(' of ')}: {self.label}  [{stage}]  {self.display.so_far()}"
            self.display.live.update(self.task, description=escape(text))

    def _position(self, separator: str) -> str:
        if self.size is None:
            return str(self.number)
        return f"{self.number:>{len(str(self.size))}}{separator}{self.size}"

    def end(self, row: dict[str, Any]) -> None:
        """Replaces the running line by the trial's result."""
        took = format_duration(row["wall_seconds"])
        text = f"{self._position('/')}  {row['status']:<8}{self.label}  {_result_text(row)}  ({took}"
        if not self.display.counts:  # no count of the sweep's trials to show
            print(f"{text})", flush=True)
            return
        self.display.drop(self)
        self.display.print_line(f"{text}; {self.display.so_far()})", style=COLOURS[row["status"]])


def _result_text(row: dict[str, Any]) -> str:
    """Peak and rate of a trial that is ok; the reason of any other."""
    if row["status"] == "ok":
        rate = row["tokens_per_sec_per_device"]
        peak = f"{format_gib(row['peak_allocated_bytes'])} GiB"
        return peak if rate is None else f"{peak}  {rate:,.0f} tokens/s"
    return str(row["reason"])
