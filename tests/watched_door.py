"""A door that is watched, signalled or robbed of its jobs while it runs."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import psutil

from tests.conftest import ALONE, ROOT


class Door:
    """A running `python bench/run.py` under one of Hydra's launchers."""

    def __init__(self, results_dir: Path, *words: str, launcher: str) -> None:
        self.results_dir = results_dir
        command = [sys.executable, "bench/run.py", *words, ALONE, f"hydra/launcher={launcher}"]
        self.process = subprocess.Popen(
            [*command, f"results_dir={results_dir}"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        out, err = self.process.communicate(timeout=600)
        return self.process.returncode, out, err

    @property
    def rows(self) -> pd.DataFrame:
        return pd.read_parquet(self.results_dir / "trials").sort_values("started_at", ignore_index=True)


def until(seen: Callable[[], object], door: Door) -> None:
    """Waits until `seen`, while the door has not ended."""
    while not seen():
        assert door.process.poll() is None, door.end()
        time.sleep(0.1)


def alive(ours: Callable[[psutil.Process], bool]) -> list[psutil.Process]:
    """The processes of this machine that are `ours` and have not ended."""
    found = []
    for process in psutil.process_iter():
        try:
            if ours(process) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def none_left(found: Callable[[], list[psutil.Process]]) -> None:
    """The door sees a job's result a moment before the job's processes have gone."""
    for _ in range(100):
        if not found():
            break
        time.sleep(0.2)
    assert found() == []
