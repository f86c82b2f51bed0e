"""What this machine cannot carry out is found before anything is built, and no trial runs twice at once."""

from __future__ import annotations

import multiprocessing
import os

import pytest

from bench.config.compose import CommandError
from bench.machine import host, leases
from bench.sweep.main import _require_machine
from bench.sweep.schedule import forecast
from bench.sweep.signals import StopRequest
from tests.conftest import make_trial


def test_more_threads_than_cores_are_refused() -> None:
    cores = os.cpu_count() or 1
    _require_machine(make_trial(f"threads={cores}"))
    with pytest.raises(CommandError, match=rf"threads={cores + 1}: this machine has {cores} core"):
        _require_machine(make_trial(f"threads={cores + 1}"))


def test_a_device_that_is_not_there_is_refused_where_something_is_measured() -> None:
    with pytest.raises(CommandError, match=r"device=cuda:99: this machine has .*method=simulate"):
        _require_machine(make_trial("device=cuda:99"))
    _require_machine(make_trial("device=cuda:99", "method=simulate"))


def test_only_what_could_fill_the_host_is_simulated_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "usable_memory_bytes", lambda: 16 * 2**30)
    assert not forecast.may_fill_host(make_trial("device=cpu"))
    assert forecast.may_fill_host(make_trial("device=cpu", "lora=on", "lora.rank=1000000"))
    assert forecast.may_fill_host(make_trial("device=cpu", "model=llama-7b"))
    assert not forecast.may_fill_host(make_trial("device=cuda", "model=llama-7b"))
    assert not forecast.may_fill_host(make_trial("device=cpu", "model=llama-7b", "method=simulate"))
    limited = make_trial("device=cpu", "model=llama-7b", "memory_limit_bytes=1GB")
    assert not forecast.may_fill_host(limited), "the limit refuses by itself"


def _hold(identity: str, held: object, release: object) -> None:
    with leases.hold_trial(identity):
        held.set()  # type: ignore[attr-defined]
        release.wait(60)  # type: ignore[attr-defined]


def test_a_trial_is_held_by_one_process_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    context = multiprocessing.get_context("fork")
    held, release = context.Event(), context.Event()
    other = context.Process(target=_hold, args=("a trial", held, release))
    other.start()
    assert held.wait(60)
    with leases.hold_trial("another trial") as waited:
        assert not waited
    with leases.hold_trial("a trial", lambda _who: release.set()) as waited:
        assert waited, "so it looks again whether a row is there now"
    other.join(60)


def test_ctrl_c_waits_only_for_a_trial_that_runs(capsys: pytest.CaptureFixture[str]) -> None:
    stop = StopRequest()
    with pytest.raises(KeyboardInterrupt):
        stop._announce_and_record(2, None)
    with stop.finishing():
        stop._announce_and_record(2, None)
        assert "the trial that runs is finished first" in capsys.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            stop._announce_and_record(2, None)
    with pytest.raises(KeyboardInterrupt):
        stop.check()
