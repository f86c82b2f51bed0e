"""kill -9 of the sweep at random moments, again and again, and then it completes.

`KILLS=200 LATEST_SECONDS=16 pytest -s -m slow tests/sweep/test_kills.py` kills as often, at moments
drawn from as many seconds, and ends with what came of it. A sweep that survives to its end is
followed by another into the same folder.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import psutil
import pytest

from bench.results import store
from tests.conftest import ALONE, BRIEF, ROOT, SHORT

KILLS = int(os.environ.get("KILLS", "2"))
LATEST_SECONDS = float(os.environ.get("LATEST_SECONDS", "9"))  # a trial starts in four
TRIALS = 20  # of a sweep


def sweep_of(number: int, results_dir: Path) -> list[str]:
    seeds = f"seed=range({number * TRIALS},{(number + 1) * TRIALS})"
    return [
        sys.executable,
        str(ROOT / "bench" / "run.py"),
        "-m",
        *BRIEF,
        ALONE,
        SHORT,
        seeds,
        f"results_dir={results_dir}",
    ]


@pytest.mark.slow
def test_each_trial_ends_with_one_row(tmp_path: Path) -> None:
    chance = random.Random(KILLS)
    killed = sweeps = orphans = torn = 0
    while killed < KILLS:
        door = subprocess.Popen(
            sweep_of(sweeps, tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        try:
            door.communicate(timeout=chance.uniform(0, LATEST_SECONDS))
            assert door.returncode == 0
            sweeps += 1  # it was faster than the murderer
        except subprocess.TimeoutExpired:
            family = psutil.Process(door.pid).children(recursive=True)
            os.kill(door.pid, signal.SIGKILL)
            door.communicate()
            killed += 1
            orphans += len(psutil.wait_procs(family, timeout=20)[1])
            files = list((tmp_path / "trials").glob("*.parquet"))
            torn += len(files) - len(store.records_of(files))
            print(f"{killed} kills, {len(files)} rows", flush=True)
    for number in range(sweeps + 1):
        done = subprocess.run(sweep_of(number, tmp_path), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    rows = store.records(tmp_path)
    trials = (sweeps + 1) * TRIALS
    begun = len(list((tmp_path / "logs").glob("*/2*.log")))
    print(
        f"{killed} kills, {trials} trials of {sweeps + 1} sweeps, {len(rows)} rows; "
        f"{begun} executions begun, {begun - len(rows)} of them lost; {torn} torn, {orphans} orphans"
    )
    assert set(Counter(row["trial_id"] for row in rows).values()) == {1}
    assert [row["status"] for row in rows] == ["ok"] * trials
    assert begun - len(rows) <= killed
    assert torn == orphans == 0
