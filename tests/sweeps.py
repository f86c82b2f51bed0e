"""A sweep in this very process, on its warm fork server: the door's own code without its start-up."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest

from bench.processes import fork_server
from bench.results import store
from bench.sweep import main, progress

Hook = Callable[[str, str], None]


@dataclass(frozen=True)
class Aftermath:
    """What a run left: its exit code, the rows that are there, and what should not be."""

    code: int
    rows: set[tuple[str, str, int]]
    torn: int
    orphans: int


@dataclass
class Survived:
    """One fault of the matrix, over all its tries."""

    tries: int = 0
    lost: int = 0
    torn: int = 0
    orphans: int = 0
    resumed: int = 0

    def add(self, runs: list[Aftermath]) -> None:
        """One try: rows that were there after some run and not after the last, and what the last left."""
        last = runs[-1]
        self.tries += 1
        self.lost += len(set().union(*(run.rows for run in runs)) - last.rows)
        self.torn += last.torn
        self.orphans += last.orphans
        self.resumed += last.code == 0


MATRIX: dict[str, Survived] = {}


class Here:
    """Runs sweeps into one folder, and says what is in it afterwards."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.runs: list[Aftermath] = []
        self.foreign: set[str] = set()  # files that a test put there itself
        self._monkeypatch = monkeypatch

    def run(self, *words: str, at: Hook | None = None) -> int:
        """The exit code of `bench/run.py -m words`; `at` is called with each stage of each trial."""
        from tests.conftest import briefly

        with self._monkeypatch.context() as patch:
            if at is not None:
                shown = progress.Line.stage

                def stage(line: progress.Line, now: str) -> None:
                    shown(line, now)
                    at(line.label, now)

                patch.setattr(progress.Line, "stage", stage)
            code = sweep("-m", f"results_dir={self.folder}", *briefly(*words))
        self.runs.append(self._aftermath(code))
        return code

    def _aftermath(self, code: int) -> Aftermath:
        if not (self.folder / "trials").is_dir():
            return Aftermath(code, set(), 0, len(self.orphans()))
        rows = {(r["trial_id"], r["sweep_id"], r["replicate"]) for r in self.rows()}
        return Aftermath(code, rows, len(self.torn()), len(self.orphans()))

    def statuses(self) -> list[str]:
        return [row["status"] for row in self.rows()]

    def rows(self) -> list[dict[str, Any]]:
        return store.records(self.folder)

    def frame(self) -> pd.DataFrame:
        """The rows, oldest first, as anyone would read them: plain pandas, nothing of ours."""
        return pd.read_parquet(self.folder / "trials").sort_values("started_at", ignore_index=True)

    def finished(self) -> list[str]:
        """Ids of the trials that have a final row, once for each such row."""
        return sorted(row["trial_id"] for row in self.rows() if row["status"] in ("ok", "oom", "skipped"))

    def torn(self) -> list[str]:
        """Files under `trials` that are not whole rows, hidden ones included."""
        files = [path for path in (self.folder / "trials").iterdir() if path.is_file()]
        whole = {path for path in files if path.suffix == ".parquet" and store.records_of([path])}
        return sorted({path.name for path in set(files) - whole} - self.foreign)

    def orphans(self) -> list[psutil.Process]:
        """Processes of trials that are still there."""
        return workers()


def workers() -> list[psutil.Process]:
    """The fork server's children, oldest first."""
    pid = fork_server.fork_server_pid()
    return sorted(psutil.Process(pid).children(), key=lambda worker: worker.pid) if pid else []


def sweep(*words: str) -> int:
    """The exit code of `bench/run.py WORDS`, in this process."""
    from bench.run import job

    argv = ["bench/run.py", *words]
    with pytest.MonkeyPatch.context() as patch, _signals_restored():
        patch.setattr(sys, "argv", argv)
        return main.main(job, argv)


@contextmanager
def _signals_restored() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
