"""Sweeps on a real Slurm: one node, this machine, started by tests/slurm/start.sh.

.venv/bin/pytest -m slurm
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.conftest import ALONE, BRIEF, ROOT, SHORT, run_into
from tests.watched_door import Door, alive, none_left, until

SLURM = "submitit_slurm"
README = ("-m", "precision=fp16,int8", "lora=on,off")
LONG = ("timing.min_steps=60", "timing.max_steps=60")  # a trial that can be caught while it runs

pytestmark = pytest.mark.slurm


def missing() -> str | None:
    if os.geteuid() != 0:
        return "needs root, to start a Slurm node"
    if any(shutil.which(program) is None for program in ("munged", "slurmctld", "slurmd", "sbatch")):
        return "no Slurm on this machine: apt-get install slurm-wlm"
    if importlib.util.find_spec("submitit") is None:
        return "needs pip install -e '.[slurm]'"
    return None


@contextmanager
def cluster(nodes: int) -> Iterator[None]:
    """This machine as a cluster of so many nodes; one that was there already stays."""
    if reason := missing():
        pytest.skip(reason)
    folder = Path(f"/tmp/bench-slurm-{nodes}")
    ours = not folder.exists()
    scripts = ROOT / "tests" / "slurm"
    subprocess.run(["bash", str(scripts / "start.sh"), str(folder), str(nodes)], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        yield
    if ours:
        subprocess.run(["bash", str(scripts / "stop.sh"), str(folder)], check=True)


@pytest.fixture
def slurm() -> Iterator[None]:
    with cluster(nodes=1):
        yield


@pytest.fixture
def two_nodes() -> Iterator[None]:
    with cluster(nodes=2):
        yield


def queue(form: str = "%i") -> list[str]:
    """What squeue says of each job, array or not."""
    asked = ["squeue", "--array", "--noheader", f"--format={form}"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()


def processes_of_jobs() -> list[psutil.Process]:
    return alive(lambda process: "SLURM_JOB_ID" in process.environ())


def speaking_into(log: str) -> list[psutil.Process]:
    """The processes of jobs whose standard output is a file with this name's end."""
    found = []
    for process in processes_of_jobs():
        with suppress(OSError):  # it has ended meanwhile
            if Path(f"/proc/{process.pid}/fd/1").readlink().name.endswith(log):
                found.append(process)
    return found


@pytest.mark.usefixtures("slurm")
def test_the_readmes_sweep(tmp_path: Path) -> None:
    door = Door(
        tmp_path / "its results", *README, "timing.min_steps=3", "timing.max_steps=3", launcher=SLURM
    )
    code, out, err = door.end()
    assert (code, err) == (0, "")
    rows = door.rows
    assert list(rows["status"]) == ["ok"] * 4
    assert set(zip(rows["precision"], rows["lora"], strict=True)) == {
        *(("fp16", "on"), ("fp16", "off"), ("int8", "on"), ("int8", "off")),
    }
    assert rows["sweep_id"].nunique() == 1
    assert "4 of 4 trials" in out
    assert "results_dir" not in "".join(rows["overrides"])
    assert not [*tmp_path.rglob("*.pkl")], "no pickle stays among the results"


@pytest.mark.usefixtures("slurm")
def test_a_job_killed_by_scancel_is_named_and_the_same_command_completes_the_sweep(tmp_path: Path) -> None:
    door = Door(tmp_path, *README, *LONG, launcher=SLURM)
    until(lambda: [*tmp_path.glob("logs/*/*-0003-*.log")], door)  # its worker has started
    (job,) = [word for word in queue() if word.endswith("_3")]
    subprocess.run(["scancel", job], check=True)
    code, out, err = door.end()
    assert (code, err) == (1, "")
    assert "3 of 4 trials" in out
    told = out[out.index("No row came of") :]
    assert (
        f"trial 4: precision=int8 lora=off {' '.join(LONG)} {ALONE}: its job {job} ended as CANCELLED"
        in told
    )
    assert "the same command again" in told
    none_left(processes_of_jobs)
    assert len(door.rows) == len([*(tmp_path / "trials").iterdir()]) == 3, (
        "nothing torn, nothing half written"
    )

    again = Door(tmp_path, *README, *LONG, launcher=SLURM)
    code, out, err = again.end()
    assert (code, err) == (0, "")
    assert "3 of these trials had a row already" in out
    assert list(again.rows["status"]) == ["ok"] * 4
    assert len(again.rows[["precision", "lora"]].drop_duplicates()) == 4


@pytest.mark.usefixtures("slurm")
@pytest.mark.parametrize(("number", "left"), [(signal.SIGINT, 0), (signal.SIGHUP, 3)])
def test_ctrl_c_cancels_the_jobs_and_a_lost_login_does_not(tmp_path: Path, number: int, left: int) -> None:
    held = "+hydra.launcher.additional_parameters.hold=true"
    door = Door(tmp_path, "-m", "seed=1,2,3", held, launcher="slurm")
    until(lambda: len(queue()) == 3, door)
    until(lambda: [*tmp_path.glob("logs/*/.submitit/*_2/*_submitted.pkl")], door)
    time.sleep(1)  # between submitting and waiting
    door.process.send_signal(number)
    code, out, _ = door.end()
    assert code == 128 + number
    assert "No trial has ended" in out
    assert len(queue()) == left
    if left:
        subprocess.run(["scancel", out.split("scancel ")[1].split()[0]], check=True)


@pytest.mark.usefixtures("slurm")
def test_jobs_that_never_started_are_named(tmp_path: Path) -> None:
    held = "+hydra.launcher.additional_parameters.hold=true"
    door = Door(tmp_path, "-m", "seed=1", "replicates=2", held, launcher="slurm")
    until(lambda: len(queue()) == 2, door)
    subprocess.run(["scancel", queue("%F")[0]], check=True)
    code, out, _ = door.end()
    assert code == 1
    assert f"trial 2: seed=1 {ALONE} #2: its job" in out
    assert out.count("ended as CANCELLED") == 4, "when it is seen, and at the end"


@pytest.mark.usefixtures("slurm")
def test_what_slurm_refuses_is_said_in_its_words(tmp_path: Path) -> None:
    code, out, err = Door(tmp_path, "seed=1", "hydra.launcher.partition=nowhere", launcher=SLURM).end()
    assert (code, out) == (2, "")
    assert err.startswith("sbatch: error: invalid partition specified: nowhere\n")
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith(
        "bench/run.py: slurm: sbatch: error: Batch job submission failed"
    )


@pytest.mark.usefixtures("two_nodes")
def test_the_ranks_of_a_trial_are_spread_over_the_nodes_of_its_job(tmp_path: Path) -> None:
    """Against the same trials with both ranks on one node: the same mathematics, the same bytes."""
    words = ("-m", "fsdp=full_shard,no_shard", *BRIEF, SHORT)
    here = run_into(tmp_path / "here", *words)
    assert here.code == 0
    # Both nodes are this machine, whose cores can be leased once.
    spread = Door(tmp_path / "spread", *words, "hydra.launcher.nodes=2", "busy=share", launcher=SLURM)
    code, _, err = spread.end()
    assert (code, err) == (0, "")
    assert list(spread.rows["status"]) == ["ok", "ok"]
    assert len([*(tmp_path / "spread" / "trials").iterdir()]) == 2, (
        "one row of each trial, from one of the nodes"
    )
    for (_, one), (_, two) in zip(here.rows.iterrows(), spread.rows.iterrows(), strict=True):
        assert one["fsdp"] == two["fsdp"]
        assert json.loads(two["evidence"])["nodes"] == 2
        assert "nodes" not in json.loads(one["evidence"])
        assert one["world_size"] == two["world_size"] == len(two["per_rank"]) == 2
        assert list(one["losses"]) == list(two["losses"])
        for kind in ("parameter", "gradient", "optimizer"):
            assert one[f"{kind}_max_bytes"] == two[f"{kind}_max_bytes"]
        assert one["environment"] != two["environment"], "neither stands for the other when a sweep goes on"


@pytest.mark.usefixtures("two_nodes")
def test_a_rank_killed_on_another_node_ends_the_trial(tmp_path: Path) -> None:
    long = ("timing.min_steps=100000", "timing.max_steps=100000")
    words = ("fsdp=full_shard", *long, "hydra.launcher.nodes=2", "busy=share", "timeout_seconds=120")
    door = Door(tmp_path, *words, launcher=SLURM)
    until(lambda: speaking_into(".rank1.log"), door)
    time.sleep(5)  # the ranks have met
    (rank,) = speaking_into(".rank1.log")
    rank.kill()
    code, _, _ = door.end()
    assert code == 1
    (row,) = door.rows.to_dict("records")
    assert row["status"] == "error"
    assert "was killed by SIGKILL" in row["reason"]
    none_left(processes_of_jobs)
