"""The time that a sweep may take (`budget_seconds`), and the trials that it leaves out for want of it.

A trial begins only if it is expected to end before the sweep has to; one that lasts longer than expected is
ended with the sweep, and leaves no row. What was left out leaves a note beside the logs, so that the
sweep's end can name it in whatever process its job ran. What was ended counts, next time, as a trial that
takes half as long again at least: otherwise a trial that is too long for the budget would use it up in each
sweep, and those after it would never run.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench import paths
from bench.formatting import format_duration
from bench.trial.spec import Trial

_NOTE = ".left_out.json"
_LONGER_THAN_ENDED = 1.5
_FORK_SECONDS = 1.0  # at most; what a trial spends beyond that before its work is the imports, once a sweep
_COLUMNS = ("trial_id", "started_at", "model", "method", "status", "wall_seconds", "overhead_seconds")


class CutShortError(Exception):
    """The sweep's time is over, and a trial that began was ended for it, after `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds


@dataclass
class Durations:
    """Seconds that trials took to their end, imports apart: by trial, and by model and method.

    `ended` holds, by trial, after how many seconds it was ended because a sweep's time was over.
    """

    by_trial: dict[str, list[float]] = field(default_factory=dict)
    by_model: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    ended: dict[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls, results_dir: Path) -> Durations:
        """Those of a folder's rows."""
        from bench.results import store  # not at the top: the commands must start fast

        durations = cls()
        for row in store.records(results_dir, columns=_COLUMNS):
            durations.add(row)
        logs = paths.local_dir(results_dir) / "logs"
        for trial in _notes(logs.glob(f"*/*{_NOTE}")):
            if trial.trial_id and trial.ran_seconds:
                longest = max(trial.ran_seconds, durations.ended.get(trial.trial_id, 0.0))
                durations.ended[trial.trial_id] = longest
        return durations

    def add(self, row: dict[str, Any]) -> None:
        """Counts one more row."""
        if row["status"] in ("ok", "oom"):
            imports = max(0.0, (row["overhead_seconds"] or 0.0) - _FORK_SECONDS)
            seconds = row["wall_seconds"] - imports
            self.by_trial.setdefault(row["trial_id"], []).append(seconds)
            self.by_model.setdefault((row["model"], row["method"]), []).append(seconds)

    def expected_seconds(self, trial: Trial) -> float | None:
        """Median of the seconds that this trial took before, else of those of its model's; or None."""
        if known := self.by_trial.get(trial.trial_id):
            return statistics.median(known)
        similar = self.by_model.get((trial.model.label, trial.method))
        expected = statistics.median(similar) if similar else None
        if ended := self.ended.get(trial.trial_id):
            return max(expected or 0.0, _LONGER_THAN_ENDED * ended)
        return expected


@dataclass(frozen=True)
class Deadline:
    """When a sweep has to end (`time.time()`; None: never)."""

    at: float | None

    @property
    def seconds_left(self) -> float | None:
        """Seconds until then, 0 once it is over; None: no limit."""
        return None if self.at is None else max(0.0, self.at - time.time())

    def allows(self, expected_seconds: float | None) -> bool:
        """Whether a trial may begin; one of unknown length may as long as any time is left."""
        left = self.seconds_left
        return left is None or left > (expected_seconds or 0.0)


@dataclass(frozen=True)
class LeftOut:
    """A trial that a sweep left out.

    `command` reproduces it, and `replicate` says which of its executions it is. The times are seconds:
    what was left of the sweep, what the trial was expected to take, and after how many it was ended, if it
    had begun; None where unknown.
    """

    command: str
    replicate: int
    trial_id: str | None = None
    left_seconds: float | None = None
    expected_seconds: float | None = None
    ran_seconds: float | None = None

    @property
    def reason(self) -> str:
        """Why it was left out."""
        if self.ran_seconds == 0:
            return "it waited for the device until the time was over"
        if self.ran_seconds:
            return f"ended after {format_duration(self.ran_seconds)}, when the time was over"
        if self.expected_seconds is None or not self.left_seconds:
            return "the time was over"
        expected, left = format_duration(self.expected_seconds), format_duration(self.left_seconds)
        return f"expected to take {expected}, and {left} were left"


def note(trial: LeftOut, logs: Path, name: str) -> None:
    """Writes a note beside the logs: the trial that would have written the row `name` was left out."""
    logs.mkdir(parents=True, exist_ok=True)
    (logs / f"{name}{_NOTE}").write_text(json.dumps(asdict(trial)) + "\n")


def left_out(logs: Path, jobs: Iterable[tuple[str, int]], rows: Iterable[dict[str, Any]]) -> list[LeftOut]:
    """What a sweep left out.

    Args:
        logs: its folder of logs, with the notes.
        jobs: command and replicate of each of its trials, as far as they are known before they begin.
        rows: those that it wrote, and those that stand for trials that it passed over.
    """
    noted = _notes(logs.glob(f"*{_NOTE}"))
    seen = {(trial.command, trial.replicate) for trial in noted}
    seen |= {(row["overrides"], row["replicate"]) for row in rows}
    return noted + [LeftOut(*job) for job in jobs if job not in seen]


def _notes(files: Iterable[Path]) -> list[LeftOut]:
    return [LeftOut(**json.loads(path.read_text())) for path in sorted(files)]
