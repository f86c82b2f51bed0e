"""The fault matrix: each fault for real, and then nothing torn, lost or left, and the sweep completed.

`pytest tests/sweep/test_faults.py` ends with the matrix as a table.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench.processes import fork_server, isolate
from bench.results import parquet, store
from bench.results.row_file import RowFile
from tests.conftest import ALONE, BRIEF, ROOT, SHORT, some
from tests.rows import all_rows
from tests.sweeps import Here, workers

LONG = ("timing.max_steps=100000", "timing.budget_seconds=1000.0", "timing.relative_ci=1e-9")
SEEDS = "seed=1,2"


def completes(sweep: Here, *words: str, trials: int = 2) -> None:
    """Nothing is torn or left behind, and running the sweep again ends it with one final row a trial."""
    assert sweep.orphans() == []
    before = sweep.finished()
    assert sweep.run(*words) == 0
    assert sweep.torn() == []
    assert sweep.orphans() == []
    assert set(Counter(sweep.finished()).values()) == {1}
    assert len(sweep.finished()) == trials
    assert set(before) <= set(sweep.finished())


@pytest.mark.parametrize(
    "stage", some(["build", "warm-up", "timed steps", "attribution", "allocator"], every=5, first=3)
)
def test_worker_killed(here: Here, stage: str) -> None:
    def kill(label: str, now: str) -> None:
        if now == stage and "seed=1" in label:
            workers()[0].kill()

    assert here.run(SEEDS, at=kill) == 1
    assert here.statuses() == ["error", "ok"]
    completes(here, SEEDS)
    assert here.statuses() == ["error", "ok", "ok"]


@pytest.mark.slow  # a rank that is killed or hangs: tests/processes/test_isolate.py
@pytest.mark.parametrize("what", ["suspend", "kill"])
def test_rank_lost_or_hung_in_a_collective(here: Here, what: str) -> None:
    def act(label: str, now: str) -> None:
        if now == "timed steps":
            getattr(workers()[1], what)()

    words = ("fsdp=full_shard", "fsdp.world_size=2")
    assert here.run(*words, *LONG, "timeout_seconds=4", at=act) == 1
    assert here.statuses() == ["error" if what == "kill" else "timeout"]
    assert here.orphans() == []
    completes(here, *words, trials=1)


def strange(connection: Any, trial: Any, rank: int, *more: Any) -> None:
    """Stands in for the worker's entry: a library that misbehaves in the way that `seed` says."""
    from bench.processes import worker

    class Unprintable(BaseException):
        def __str__(self) -> str:
            raise RuntimeError("no words")

        def __reduce__(self) -> str:
            raise TypeError("no pickle either")

    def raises(*_: Any) -> None:
        raise Unprintable

    def leaves(*_: Any) -> None:
        sys.exit("a library that thinks it is a program")

    def shouts(*words: Any) -> None:
        for stream in (sys.stdout, sys.stderr):
            stream.write("x" * 8_000_000 + "\udcff\x00\x1b[2J\n")
        measure(*words)

    measure = worker.measure
    worker.measure = {1: raises, 2: leaves, 3: shouts}[trial.seed]
    isolate._enter(connection, trial, rank, *more)


def test_library_misbehaves(here: Here, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(isolate, "_enter", strange)
        assert here.run("seed=1,2,3") == 1
    assert here.statuses() == ["error", "error", "ok"]
    assert "Unprintable" in here.rows()[0]["reason"]
    assert "thinks it is a program" in here.rows()[1]["reason"]
    out, err = capfd.readouterr()
    assert "xxx" not in out + err, "what libraries print goes to the log"
    completes(here, "seed=1,2,3", trials=3)


def test_loss_is_not_a_number(here: Here) -> None:
    words = ("optimizer=sgd", "optimizer.lr=1e30")
    assert here.run(*words) == 1
    said = "bench.methods.timed_steps.NonFiniteLossError: the loss became"
    assert here.rows()[0]["reason"].startswith(said)
    assert here.run(*words) == 1, "it is tried again"
    assert here.statuses() == ["error", "error"]
    assert here.torn() == here.orphans() == []


@contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a disk that fills up is a mounted one, and this process may not mount")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Takes all the room that is left."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError as error:
                assert error.errno == errno.ENOSPC
    return filler


def test_disk_full_in_the_middle(here: Here, capfd: Any) -> None:
    def full(label: str, now: str) -> None:
        if now == "timed steps" and not (here.folder / "filler").exists():
            fill(here.folder)

    with small_disk(here.folder, 900):
        assert here.run("seed=1,2,3", at=full) == 1
        assert here.statuses() == ["ok"], "the row's room was taken before its trial"
        assert "No space left" in capfd.readouterr().err
        assert here.torn() == here.orphans() == []
        (here.folder / "filler").unlink()
        completes(here, "seed=1,2,3", trials=3)


def test_folder_read_only(here: Here, capfd: Any) -> None:
    with small_disk(here.folder, 900):
        subprocess.run(["mount", "-o", "remount,ro", str(here.folder)], check=True)
        assert here.run(SEEDS) == 2
        assert "Read-only file system" in capfd.readouterr().err
        subprocess.run(["mount", "-o", "remount,rw", str(here.folder)], check=True)
        completes(here, SEEDS)


def test_row_that_cannot_reach_its_place_is_kept_elsewhere(tmp_path: Path) -> None:
    row = all_rows()[0]
    with RowFile(tmp_path, "name") as file:
        (tmp_path / "trials").rename(tmp_path / "gone")
        with pytest.raises(OSError, match=r"the row was kept: move (\S+) there") as caught:
            file.keep(parquet.to_parquet(row))
    refuge = Path(str(caught.value).split("move ")[1].split(" there")[0])
    assert store.records_of([refuge])[0]["trial_id"] == row["trial_id"]


KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from bench.results import parquet
from bench.results.row_file import RowFile
from tests.rows import all_rows

setattr(os, sys.argv[2], lambda *_: os.kill(os.getpid(), signal.SIGKILL))
with RowFile(Path(sys.argv[1]), "name") as here:
    here.keep(parquet.to_parquet(all_rows()[0]))
"""


@pytest.mark.parametrize("call", some(["pwrite", "ftruncate", "fsync", "close"], every=4))
def test_sweep_killed_while_it_writes_a_row(here: Here, call: str) -> None:
    command = [sys.executable, "-c", KILLED_WHILE_WRITING, str(here.folder), call]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    written = list((here.folder / "trials").glob("*.parquet"))
    assert all(store.records_of([path]) for path in written)
    assert len(written) == (call == "close")
    assert len(here.torn()) == (call != "close"), "a hidden place, which nobody reads"
    for path in written:
        path.unlink()
    assert here.run("method=estimate") == 0
    assert here.torn() == [], "the next sweep clears it away"


def test_foreign_and_truncated_files(here: Here, capfd: Any) -> None:
    trials = here.folder / "trials"
    trials.mkdir(parents=True)
    (trials / "foreign.parquet").write_text("not parquet")
    assert here.run(SEEDS) == 0
    row = next(trials.glob("2*.parquet"))
    row.write_bytes(row.read_bytes()[:-100])  # as a copy that was cut short
    here.foreign = {row.name, "foreign.parquet"}
    capfd.readouterr()
    assert here.run(SEEDS) == 0, "the row that it cannot read is no row"
    assert f"{row.name}: not a row of this project" in capfd.readouterr().err
    assert len(here.rows()) == 2
    assert "foreign.parquet: not a row of this project" in capfd.readouterr().err
    assert len(here.finished()) == 2
    assert sorted(path.name for path in trials.iterdir() if path.name in ("foreign.parquet", row.name))


def test_clock_that_jumped_back(here: Here) -> None:
    assert here.run("seed=1") == 0
    (path,) = (here.folder / "trials").glob("*.parquet")
    (row,) = here.rows()
    row["started_at"] = row["started_at"].replace(year=row["started_at"].year + 1)
    path.unlink()
    store.write(row, here.folder, path.stem)
    assert here.run(SEEDS) == 0
    assert len(here.rows()) == 2
    completes(here, SEEDS)


def interrupt() -> None:
    """Ctrl-C, as a terminal sends it: to the whole foreground group, the fork server included."""
    os.kill(int(fork_server.fork_server_pid() or 0), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_once_finishes_the_row(here: Here) -> None:
    def press(label: str, now: str) -> None:
        if now == "warm-up":
            interrupt()

    assert here.run(SEEDS, at=press) == 130
    assert here.statuses() == ["ok"]
    completes(here, SEEDS)


@pytest.mark.parametrize("asked", ["twice", "SIGTERM", "SIGHUP"])
def test_stopped_at_once(here: Here, asked: str, capfd: Any) -> None:
    def press(label: str, now: str) -> None:
        if now != "timed steps":
            return
        if asked == "twice":
            interrupt()
            interrupt()
        else:
            os.kill(os.getpid(), getattr(signal, asked))

    number = signal.SIGINT if asked == "twice" else getattr(signal, asked)
    assert here.run("seed=1", *LONG, at=press) == 128 + number
    assert here.statuses() == []
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err
    completes(here, "seed=1", trials=1)


def test_reader_of_the_lines_goes_away(here: Here) -> None:
    words = ("-m", *BRIEF, ALONE, "method=estimate", "seed=1,2,3", SHORT, f"results_dir={here.folder}")
    door = subprocess.Popen(
        [sys.executable, str(ROOT / "bench" / "run.py"), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert door.stdout and door.stderr
    assert "1/3  ok" in door.stdout.readline()
    door.stdout.close()
    assert door.stderr.read() == ""
    assert door.wait(timeout=60) == 128 + signal.SIGPIPE
    assert 1 <= len(here.rows()) <= 2
    completes(here, "method=estimate", "seed=1,2,3", trials=3)


def test_two_sweeps_at_once_into_one_folder(here: Here) -> None:
    words = ("-m", *BRIEF, ALONE, "method=estimate", "seed=1,2,3", SHORT, f"results_dir={here.folder}")
    command = [sys.executable, str(ROOT / "bench" / "run.py"), *words]
    both = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(timeout=300) for process in both] == [0, 0]
    assert here.torn() == []
    assert len(set(here.finished())) == 3
    before = len(here.rows())
    assert here.run("method=estimate", "seed=1,2,3") == 0
    assert len(here.rows()) == before, "a row of either stands for the trial"


def test_device_in_use_is_waited_for(here: Here) -> None:
    holding = threading.Event()
    waited: list[str] = []

    def see(label: str, now: str) -> None:
        if now.startswith("waits for"):
            waited.append(now)
            holding.set()

    with holder_of_all_cores() as holder:
        threading.Thread(target=lambda: (holding.wait(60), holder.kill())).start()
        assert here.run("seed=1", at=see) == 0
    assert waited == [f"waits for process {holder.pid}"], "and a killed holder holds nothing"
    assert here.rows()[0]["device_shared"] is not True


def test_device_in_use_is_shared_if_asked_and_the_row_says_so(here: Here) -> None:
    with holder_of_all_cores():
        assert here.run("seed=1", "busy=share") == 0
    assert here.rows()[0]["device_shared"] is True


HOLDS_ALL_CORES = """
import sys
from bench.machine import leases
from bench.config.compose import trial_from

with leases.hold_devices(trial_from([]), jobs=1, busy="flag"):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder_of_all_cores() -> Iterator[subprocess.Popen[str]]:
    """Another process that has leased all cores; it is ended on leaving."""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLDS_ALL_CORES], cwd=ROOT, **pipes) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            yield holder
        finally:
            holder.kill()
