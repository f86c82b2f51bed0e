"""Sweeps on a real Ray: a cluster of this machine, which each command starts and ends.

.venv/bin/pytest -m ray
"""

from __future__ import annotations

import importlib.util
import os
import signal
from pathlib import Path

import psutil
import pytest

from tests.conftest import run_into
from tests.watched_door import Door, alive, none_left, until

README = ("-m", "precision=fp16,int8", "lora=on,off")
LONG = ("timing.min_steps=60", "timing.max_steps=60")
WHOLE = "+hydra.launcher.ray.remote.num_cpus=1"

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs pip install -e '.[ray]'"),
]


def of_ray() -> list[psutil.Process]:
    """Ray's processes and what they started."""

    def ours(process: psutil.Process) -> bool:
        of_a_job = "RAY_JOB_ID" in process.environ() or "ray::" in " ".join(process.cmdline())
        return of_a_job and process.pid != os.getpid()

    return alive(ours)


def test_the_readmes_sweep(tmp_path: Path) -> None:
    sweep = run_into(tmp_path / "rows", *README, "hydra/launcher=ray", WHOLE)
    assert sweep.code == 0, sweep.err
    assert "Traceback" not in sweep.err
    rows = sweep.rows
    assert list(rows["status"]) == ["ok"] * 4
    assert rows["sweep_id"].nunique() == 1
    assert "4 of 4 trials" in sweep.out


def test_a_task_whose_process_dies_is_named_and_the_same_command_completes_the_sweep(
    tmp_path: Path,
) -> None:
    once = "+hydra.launcher.ray.remote.max_retries=0"
    door = Door(tmp_path, *README, *LONG, WHOLE, once, launcher="ray")
    until(lambda: [*tmp_path.glob("logs/*/*-0003-*.log")], door)  # its worker has started
    busy = [process for process in of_ray() if "ray::_run_job" in " ".join(process.cmdline())]
    assert busy
    for process in busy:
        process.kill()
    code, out, _ = door.end()
    assert code == 1
    rows = door.rows
    assert len(rows) == 4 - len(busy)
    told = out[out.index("No row came of") :]
    assert "trial 4: precision=int8 lora=off" in told
    assert told.count("its task failed") == len(busy)
    none_left(of_ray)

    again = Door(tmp_path, *README, *LONG, WHOLE, once, launcher="ray")
    code, out, _ = again.end()
    assert code == 0
    assert f"{len(rows)} of these trials had a row already" in out
    assert list(again.rows["status"]) == ["ok"] * 4
    assert len(again.rows[["precision", "lora"]].drop_duplicates()) == 4


def test_ctrl_c_ends_all_of_it(tmp_path: Path) -> None:
    door = Door(tmp_path, "-m", "seed=1,2,3", *LONG, WHOLE, launcher="ray")
    until(lambda: [*tmp_path.glob("logs/*/*-0000-*.log")], door)
    door.process.send_signal(signal.SIGINT)
    code, _, err = door.end()
    assert code == 130
    assert "Traceback" not in err
    none_left(of_ray)
