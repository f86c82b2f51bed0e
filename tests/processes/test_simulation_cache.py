"""Earlier simulations answer again, for the same trial under the same code and libraries alone."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from bench.machine import provenance
from bench.processes import simulation_cache, simulation_pool
from bench.processes.simulation_pool import Simulator
from bench.trial.columns import NotSimulated, Operation, Simulation
from bench.trial.platform import CPU, CUDA
from tests.conftest import make_trial

KNOWN = Simulation(
    {"peak_allocated_bytes": 123, "evidence": {"blocks": 2}},
    Counter({Operation("aten::mm", "bfloat16", (1, 2, 3, 4), 48, 52, "forward", "nt"): 3}),
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))
    return tmp_path


def test_what_was_kept_is_found_whole_for_the_same_trial_and_platform() -> None:
    trial = make_trial("method=simulate")
    simulation_cache.opened().put(trial, CUDA, KNOWN)
    assert simulation_cache.opened().get(trial, CUDA) == KNOWN
    assert simulation_cache.opened().get(trial, CPU) is None
    assert simulation_cache.opened().get(make_trial("method=simulate", "seq_len=64"), CUDA) is None


def test_other_code_or_another_library_finds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = make_trial("method=simulate")
    simulation_cache.opened().put(trial, CUDA, KNOWN)
    software = provenance.software()
    with monkeypatch.context() as patch:
        patch.setattr(provenance, "software", lambda: software | {"torch_version": "9.9"})
        assert simulation_cache.opened().get(trial, CUDA) is None
    with monkeypatch.context() as patch:
        patch.setattr(provenance, "code_of", lambda _module: "changed")
        assert simulation_cache.opened().get(trial, CUDA) is None
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert simulation_cache.opened().get(trial, CUDA) is None


def test_a_model_s_configuration_is_part_of_it() -> None:
    trial = make_trial("method=simulate")
    changed = [
        replace(trial, model=replace(trial.model, pretrained="owner/name", config={"hidden_size": size}))
        for size in (1, 2)
    ]
    cache = simulation_cache.opened()
    cache.put(changed[0], CUDA, KNOWN)
    assert cache.get(changed[0], CUDA) == KNOWN
    assert cache.get(changed[1], CUDA) is None
    unread = replace(trial, model=replace(trial.model, pretrained="owner/name"))
    cache.put(unread, CUDA, KNOWN)
    assert cache.get(unread, CUDA) is None, "nobody knows what is behind the name today"


def test_a_torn_file_or_a_folder_that_cannot_be_made_is_no_error(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = make_trial("method=simulate")
    simulation_cache.opened().put(trial, CUDA, KNOWN)
    (file,) = own_cache.rglob("*.json")
    file.write_text(file.read_text()[:20])
    assert simulation_cache.opened().get(trial, CUDA) is None
    monkeypatch.setenv("BENCH_CACHE", str(file / "below"))
    cache = simulation_cache.opened()
    cache.put(trial, CUDA, KNOWN)
    assert cache.get(trial, CUDA) is None


def test_what_nobody_opens_for_a_month_is_deleted(own_cache: Path) -> None:
    old, new = own_cache / "simulations" / "old", own_cache / "simulations" / "new"
    for place in (old, new):
        place.mkdir(parents=True)
    os.utime(old, (0, 0))
    simulation_cache.opened()
    assert not old.exists() and new.exists()


def test_a_simulator_starts_no_process_for_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = make_trial("method=simulate")
    simulation_cache.opened().put(trial, CUDA, KNOWN)
    monkeypatch.setattr(Simulator, "_processes", lambda _self: pytest.fail("it started one"))
    with Simulator() as predict:
        assert predict([trial, trial]) == [KNOWN, KNOWN]


def test_a_trial_that_cannot_be_simulated_says_why_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(simulation_pool, "cores", lambda: [0])
    good = make_trial("method=simulate", "device=cuda", "seq_len=16")
    bad = replace(good, model=replace(good.model, config={"model_type": "no such type"}))
    with Simulator() as predict:
        first, second = predict([bad, good])
    assert isinstance(first, NotSimulated) and "\n" not in first.reason
    assert isinstance(second, Simulation) and second.peak_bytes > 0
