"""Isolation: a fresh process each, every kind of death classified, nothing left behind.

The deaths are real: a real worker, really killed, stopped, crashed or starved in the middle of its trial.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from bench.processes import fork_server, isolate
from bench.trial.axes import Model
from bench.trial.outcome import Outcome
from bench.trial.spec import Trial
from tests.conftest import ALONE, ROOT, make_trial

LONG = ("timing.max_steps=100000", "timing.budget_seconds=1000.0", "timing.relative_ci=1e-9")


def tiny(*overrides: str) -> Trial:
    return make_trial(ALONE, *overrides)


def run(*overrides: str, log: Path, timeout_seconds: float = 120.0) -> Outcome:
    return isolate.run_isolated(tiny(*overrides), log=log, timeout_seconds=timeout_seconds)


def workers_of(server: int) -> list[psutil.Process]:
    return psutil.Process(server).children()


def server_pid() -> int:
    return int(fork_server.fork_server_pid() or 0)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "trial.log"


@pytest.fixture
def at_stage(monkeypatch: pytest.MonkeyPatch) -> object:
    """Does something to the trial's workers once the first of them reaches a stage."""

    def arrange(stage: str, action: object, *overrides: str, log: Path, after: float = 0.3) -> Outcome:
        def told(now: str) -> None:
            if now == stage:
                threading.Timer(after, lambda: action(workers_of(server_pid()))).start()  # type: ignore[operator]

        return isolate.run_isolated(tiny(*overrides), log=log, timeout_seconds=120, on_stage=told)

    return arrange


def test_a_trial_that_goes_well(log: Path) -> None:
    outcome = run(log=log)
    assert (outcome.status, outcome.reason, outcome.traceback) == ("ok", None, None)
    assert len(outcome.ranks) == 1
    assert len(outcome.ranks[0]["step_seconds"]) == 2
    assert workers_of(server_pid()) == []


def test_each_trial_is_a_fresh_process_and_peaks_do_not_leak(log: Path) -> None:
    small = run(log=log).ranks[0]
    run("model=llama-20m", "seq_len=16", "micro_batch_size=1", log=log)
    again = run(log=log).ranks[0]
    assert again["peak_allocated_bytes"] == small["peak_allocated_bytes"]
    assert again["peak_host_rss_bytes"] < 2 * small["peak_host_rss_bytes"]


def test_the_parent_sleeps_while_the_trial_runs(log: Path) -> None:
    """The nearest harness' parent polls, which makes its child three times slower on two cores."""
    run(log=log)  # the server is up
    trial = tiny("timing.max_steps=100", "timing.budget_seconds=1.0", "timing.min_steps=50")
    before = time.process_time()
    outcome = isolate.run_isolated(trial, log=log, timeout_seconds=60)
    assert outcome.wall_seconds > 0.5
    assert (time.process_time() - before) / outcome.wall_seconds < 0.02


def test_what_libraries_print_goes_to_the_log(log: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What the fork server's own imports print: tests/sweep/test_run.py, whose command starts one."""
    run("model=gpt2", "model.layers=1", "model.vocab_size=500", "seq_len=8", log=log)
    assert capfd.readouterr() == ("", "")
    assert "loss_type=None" in log.read_text()  # what transformers says of every GPT-2


def test_killed_in_the_middle_of_a_timed_step(at_stage, log: Path) -> None:  # type: ignore[no-untyped-def]
    outcome = at_stage("timed steps", lambda ws: ws[0].kill(), *LONG, log=log)
    assert outcome.status == "error"
    assert outcome.reason == "the worker was killed by SIGKILL at 'timed steps'"
    assert outcome.ranks[0] == {}


def test_a_segmentation_fault(at_stage, log: Path) -> None:  # type: ignore[no-untyped-def]
    outcome = at_stage("timed steps", lambda ws: ws[0].send_signal(signal.SIGSEGV), *LONG, log=log)
    assert (outcome.status, outcome.reason) == (
        "error",
        "the worker was killed by SIGSEGV at 'timed steps'",
    )


def test_a_hang_ends_at_the_timeout(log: Path) -> None:
    run("method=estimate", log=log)  # the server is up
    outcome = run(*LONG, log=log, timeout_seconds=5)
    assert outcome.status == "timeout"
    assert outcome.reason == "still at 'timed steps' after timeout_seconds=5; ended"
    assert workers_of(server_pid()) == []


def test_a_stopped_process_ends_at_the_timeout_too(log: Path) -> None:
    def told(stage: str) -> None:
        if stage == "timed steps":
            workers_of(server_pid())[0].suspend()

    outcome = isolate.run_isolated(tiny(*LONG), log=log, timeout_seconds=3.0, on_stage=told)
    assert outcome.status == "timeout"
    assert workers_of(server_pid()) == []


def test_allocating_past_the_limit_is_out_of_memory(log: Path) -> None:
    outcome = run("memory_limit_bytes=8000000", log=log)
    assert outcome.status == "oom"
    assert "can't allocate memory" in (outcome.reason or "")
    assert outcome.ranks[0]["oom_requested_bytes"] > 0
    assert "step.py" in (outcome.traceback or "")


def test_a_limit_that_suffices_changes_nothing(log: Path) -> None:
    free = run(log=log).ranks[0]["peak_allocated_bytes"]
    limited = run("memory_limit_bytes=4000000000", log=log)
    assert limited.status == "ok"
    assert limited.ranks[0]["peak_allocated_bytes"] == free


def test_an_exception_is_an_error_with_its_last_line_and_traceback(log: Path) -> None:
    gone = replace(tiny(), model=Model("gone", pretrained="/nowhere/at/all"))
    outcome = isolate.run_isolated(gone, log=log, timeout_seconds=120)
    assert outcome.status == "error"
    assert "/nowhere/at/all" in (outcome.reason or "")
    assert "Traceback" in (outcome.traceback or "")
    assert "Traceback" in log.read_text()


def test_divergence_is_an_error_and_not_a_measurement(log: Path) -> None:
    outcome = run("optimizer=sgd", "optimizer.lr=1e30", log=log)
    assert outcome.status == "error"
    assert (outcome.reason or "").startswith(
        "bench.methods.timed_steps.NonFiniteLossError: the loss became"
    )


def test_a_device_that_is_not_there_is_an_error(log: Path) -> None:
    missing = "xpu"  # neither this project's CI nor its GPU runners have one
    outcome = run(f"device={missing}", log=log)
    assert outcome.status == "error"
    assert f"sees no {missing} device here" in (outcome.reason or "")


def poisoned_unless_spawned(connection: Any, trial: Any, rank: int, *more: Any) -> None:
    """Stands in for the worker's entry, as if the fork server had initialised CUDA."""
    import multiprocessing

    if multiprocessing.get_start_method() == "forkserver":
        connection.send(("poisoned", {}))
    else:
        isolate._enter(connection, trial, rank, *more)


def test_a_server_that_touched_the_device_is_passed_over(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages: list[str] = []
    monkeypatch.setattr(isolate, "_enter", poisoned_unless_spawned)
    outcome = isolate.run_isolated(tiny(), log=log, timeout_seconds=120, on_stage=stages.append)
    assert outcome.status == "ok", outcome.reason


def tells_what_it_finds(connection: Any, *_: Any) -> None:
    """Stands in for the worker's entry: what the fork server had imported and initialised."""
    import torch

    asked = {"peft", "bitsandbytes", "transformers", "torch._inductor.compile_fx"}
    found = {"imported": sorted(asked & sys.modules.keys()), "device": torch.cuda._is_in_bad_fork()}
    connection.send(("ok", found))


def test_the_fork_server_has_the_stack_and_no_device(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolate, "_enter", tells_what_it_finds)
    outcome = run(log=log)
    assert outcome.ranks == [{"imported": ["bitsandbytes", "peft", "transformers"], "device": False}], (
        "the stack, no compiler, no device"
    )


def test_ctrl_c_does_not_reach_a_fork_server_that_still_imports(tmp_path: Path) -> None:
    asks = "import signal; print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)"
    before = signal.getsignal(signal.SIGINT)
    with fork_server._server_environment(tmp_path / "log"):
        inherited = subprocess.run([sys.executable, "-S", "-c", asks], capture_output=True, text=True)
    assert inherited.stdout.strip() == "True"
    assert signal.getsignal(signal.SIGINT) is before


TWO = ("fsdp=full_shard", "fsdp.world_size=2")


@pytest.mark.parametrize("rank", [0, 1])
def test_when_one_rank_dies_the_other_is_ended_and_not_waited_for(  # type: ignore[no-untyped-def]
    at_stage, log: Path, rank: int
) -> None:
    def kill(workers: list[psutil.Process]) -> None:
        by_age = sorted(workers, key=lambda w: w.pid)
        by_age[rank].kill()

    outcome = at_stage("timed steps", kill, *TWO, *LONG, log=log)
    assert outcome.status == "error", "a rank that waits for its dead peer would end by timeout"
    assert outcome.reason == f"rank {rank} was killed by SIGKILL at 'timed steps'"
    assert workers_of(server_pid()) == []


def test_a_hung_rank_ends_with_its_peer(at_stage, log: Path) -> None:  # type: ignore[no-untyped-def]
    def told(stage: str) -> None:
        if stage == "timed steps":
            workers_of(server_pid())[1].suspend()

    outcome = isolate.run_isolated(tiny(*TWO, *LONG), log=log, timeout_seconds=6.0, on_stage=told)
    assert outcome.status == "timeout"
    assert workers_of(server_pid()) == []


@pytest.mark.slow  # as tests/sweep/test_run.py, over rows
def test_every_rank_reports(log: Path) -> None:
    outcome = run(*TWO, log=log)
    assert outcome.status == "ok"
    held = [rank["evidence"]["parameter_bytes_held"] for rank in outcome.ranks]
    assert sum(held) == outcome.ranks[0]["evidence"]["parameter_bytes_whole"]


def test_nothing_outlives_a_parent_that_is_killed(tmp_path: Path) -> None:
    arguments = [*LONG, *TWO, f"results_dir={tmp_path}", "timing.min_steps=5"]
    door = subprocess.Popen(
        [sys.executable, str(ROOT / "bench" / "run.py"), *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        family = wait_for_ranks(door.pid, 2)
        os.kill(door.pid, signal.SIGKILL)
        door.wait()
        _, alive = psutil.wait_procs(family, timeout=10)
        assert alive == []
    finally:
        door.kill()


def wait_for_ranks(parent: int, count: int) -> list[psutil.Process]:
    """The parent's descendants, once the fork server has that many workers."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        family = psutil.Process(parent).children(recursive=True)
        servers = {p.ppid() for p in family} - {parent}
        if any(sum(p.ppid() == server for p in family) >= count for server in servers):
            time.sleep(1.0)
            return psutil.Process(parent).children(recursive=True)
        time.sleep(0.1)
    raise AssertionError("the ranks did not start")


@pytest.mark.slow  # as tests/sweep/test_faults.py, test_stopped_at_once
def test_ctrl_c_twice_leaves_no_process_and_exits_130(tmp_path: Path) -> None:
    arguments = ["-m", "seed=1,2", *LONG, f"results_dir={tmp_path}"]
    door = subprocess.Popen(
        [sys.executable, str(ROOT / "bench" / "run.py"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        family = wait_for_ranks(door.pid, 1)
        for _ in range(2):
            os.killpg(door.pid, signal.SIGINT)  # as a terminal sends it, to the whole foreground group
            time.sleep(0.5)
        out, err = door.communicate(timeout=30)
    finally:
        door.kill()
    assert door.returncode == 130, err
    assert "Traceback" not in out + err
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []
