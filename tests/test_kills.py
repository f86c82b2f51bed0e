"""kill -9 of the sweep at random moments, again and again, and then it completes.

`KILLS=200 pytest -s -m slow tests/test_kills.py` kills as often, and ends with what came of it.
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

from bench import results
from tests.conftest import ALONE, BRIEF, ROOT

KILLS = int(os.environ.get("KILLS", "2"))
TRIALS = 2 + KILLS
LATEST_SECONDS = float(os.environ.get("LATEST_SECONDS", "9"))  # a trial starts in four


@pytest.mark.slow
def test_each_trial_ends_with_one_row(tmp_path: Path) -> None:
    words = ["-m", *BRIEF, ALONE, f"seed=range({TRIALS})", f"results_dir={tmp_path}"]
    command = [sys.executable, str(ROOT / "bench" / "run.py"), *words]
    chance = random.Random(KILLS)
    killed = orphans = torn = 0
    while killed < KILLS:
        door = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            door.communicate(timeout=chance.uniform(0, LATEST_SECONDS))
            assert door.returncode == 0
            break  # it was faster than the murderer
        except subprocess.TimeoutExpired:
            family = psutil.Process(door.pid).children(recursive=True)
            os.kill(door.pid, signal.SIGKILL)
            door.communicate()
            killed += 1
        orphans += len(psutil.wait_procs(family, timeout=20)[1])
        files = list((tmp_path / "trials").glob("*.parquet"))
        torn += len(files) - len(results.records_of(files))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = results.records(tmp_path)
    begun = len(list((tmp_path / "logs").glob("*/2*.log")))
    print(
        f"\n{killed} kills, {TRIALS} trials, {len(rows)} rows; "
        f"{begun} executions begun, {begun - len(rows)} of them lost; {torn} torn, {orphans} orphans"
    )
    assert set(Counter(row["trial_id"] for row in rows).values()) == {1}
    assert [row["status"] for row in rows] == ["ok"] * TRIALS
    assert begun - len(rows) <= killed
    assert torn == orphans == 0
