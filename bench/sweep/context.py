"""What one sweep knows while it runs, in the process that carries it out.

The door enters a `SweepContext` and Hydra calls the job, which gets nothing but a config: `current` is how
the job finds the context. A process that a launcher started has a context of its own, without a display.
Owns the sweep's display, its request to stop, the nodes that it runs on, what a dry run planned, which
trials left no row, and how long trials took before. `simulator` predicts the trials of a dry run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bench.processes.nodes import ALONE, Nodes
from bench.processes.simulation_pool import Simulator
from bench.sweep.progress import Display, Line
from bench.sweep.schedule.budget import Durations
from bench.sweep.signals import StopRequest

if TYPE_CHECKING:
    from bench.sweep.schedule.forecast import Pending


@dataclass
class SweepContext:
    """One sweep in this process.

    `lost` names the trials that left no row, and why. `ends_in_time` says that the first trial that finds
    the sweep's time over ends it; `jobs` then holds command and replicate of each of its trials.
    """

    display: Display = field(default_factory=Display)
    stop: StopRequest = field(default_factory=StopRequest)
    nodes: Nodes = ALONE
    planned: list[Pending] = field(default_factory=list)
    simulator: Simulator = field(default_factory=Simulator)
    lost: list[str] = field(default_factory=list)
    jobs: list[tuple[str, int]] = field(default_factory=list)
    ends_in_time: bool = False
    _durations: dict[Path, Durations] = field(default_factory=dict)

    def durations(self, results_dir: Path) -> Durations:
        """How long trials took, by the folder's rows as they were at the first question, and by `add`."""
        if results_dir not in self._durations:
            self._durations[results_dir] = Durations.read(results_dir)
        return self._durations[results_dir]

    def add_planned(self, line: Line, plan: Pending) -> None:
        """Keeps what a dry run found out about a trial, which gets no row."""
        self.planned.append(plan)
        self.display.drop(line)

    def add_lost(self, number: int, label: str, reason: str) -> None:
        """Notes that the job of trial `number` (from 0), which a launcher started, left no row, and why."""
        self.lost.append(f"trial {number + 1}: {label or '(defaults)'}: {reason}")
        self.display.done += 1
        self.display.print_line(f"Lost {self.lost[-1]}", style="red")


_current: ContextVar[SweepContext] = ContextVar("sweep_context")


@contextmanager
def entered(context: SweepContext) -> Iterator[SweepContext]:
    """Makes `context` the current one while entered."""
    token = _current.set(context)
    try:
        yield context
    finally:
        _current.reset(token)


def current() -> SweepContext:
    """The context that the door entered. A process that a launcher started has none yet, and gets a new
    one."""
    try:
        return _current.get()
    except LookupError:
        context = SweepContext()
        _current.set(context)
        return context
