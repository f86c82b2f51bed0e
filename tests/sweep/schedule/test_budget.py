"""A sweep with a budget: what begins, what is left out and said, and that the same command goes on."""

from __future__ import annotations

from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins

from bench.config import command_line
from bench.config.command_line import check
from bench.config.compose import CommandError
from bench.processes import isolate
from bench.sweep.schedule import order
from bench.sweep.schedule.budget import Durations
from bench.sweep.schedule.order import most_informative_first
from bench.trial.outcome import Outcome
from bench.trial.spec import Trial
from tests.conftest import door, make_trial
from tests.sweeps import Here, sweep

ESTIMATE = "method=estimate"
LONG = 10_000.0  # seconds


def test_what_would_not_end_in_time_is_left_out_and_the_same_command_runs_it(
    here: Here, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (ESTIMATE, "precision=fp32,bf16,nf4", f"budget_seconds={LONG / 2}")
    with monkeypatch.context() as slow:
        slow.setattr(
            Durations,
            "expected_seconds",
            lambda _self, trial: LONG if trial.precision.name == "bf16" else 1.0,
        )
        assert here.run(*words) == 0
    assert [row["precision"] for row in here.rows()] == ["fp32", "nf4"], "a shorter one still has time"
    out = capsys.readouterr().out
    said = out[out.index("Left out") :]
    assert "1 trial" in said
    assert "precision=bf16" in said and "expected to take 2 h 46 min" in said
    assert f"Go on      python bench/run.py -m results_dir={here.folder} {' '.join(words)}" in said
    assert here.run(*words) == 0
    out = capsys.readouterr().out
    assert [row["precision"] for row in here.rows()] == ["fp32", "nf4", "bf16"]
    assert "2 of these trials had a row already" in out and "Left out" not in out


def test_when_the_time_is_over_no_other_job_is_begun(here: Here, capsys: Any) -> None:
    assert here.run(ESTIMATE, "seed=1,2,3", "replicates=2", "budget_seconds=0.001") == 0
    out = capsys.readouterr().out
    assert "No trial has ended" in out
    assert out.count(": the time was over") == 6
    assert "seed=3 #2: the time was over" in out
    notes = list((here.folder / "logs").glob("*/*.left_out.json"))
    assert len(notes) == 1, "Hydra composed one job, not six"
    assert not here.torn()


def test_a_trial_is_ended_with_the_sweep_and_leaves_no_row(
    here: Here, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = []

    def endless(trial: Trial, *, timeout_seconds: float, **_: Any) -> Outcome:
        limits.append(timeout_seconds)
        return Outcome("timeout", "it outlived its time", wall_seconds=timeout_seconds)

    monkeypatch.setattr(isolate, "run_isolated", endless)
    words = ("seed=1", "budget_seconds=300", "busy=share")
    assert here.run(*words) == 0
    assert here.rows() == []
    assert limits[0] <= 300, "less than its timeout_seconds"
    assert ": ended after " in capsys.readouterr().out
    expected = Durations.read(here.folder).expected_seconds(make_trial(*words[:1], "timing.max_steps=3"))
    assert expected is None, "another trial"
    assert here.run(*words) == 0
    assert len(limits) == 1, "it takes half as long again at least, which there is not"
    assert here.run("seed=1", "timeout_seconds=100", "budget_seconds=3000", "busy=share") == 1
    assert here.statuses() == ["timeout"], "by its own timeout_seconds"


def test_a_trial_is_expected_to_take_what_it_took_or_what_others_of_its_model_took() -> None:
    one, other = make_trial("seed=1"), make_trial("seed=2")
    row = {"model": one.model.label, "method": "measure", "status": "ok", "trial_id": one.trial_id}
    row["overhead_seconds"] = None
    durations = Durations()
    assert durations.expected_seconds(one) is None
    for seconds in (5.0, 7.0):
        durations.add(row | {"wall_seconds": seconds + 9.0, "overhead_seconds": 10.0})
    durations.add(row | {"wall_seconds": 99.0, "status": "error"})
    durations.add(row | {"wall_seconds": 20.0, "trial_id": "another"})
    assert durations.expected_seconds(one) == 6.0
    assert durations.expected_seconds(other) == 7.0, "median of 5, 7 and 20"
    durations.ended[other.trial_id] = 40.0
    assert durations.expected_seconds(other) == 60.0
    durations.add(row | {"wall_seconds": 41.0, "trial_id": other.trial_id})
    assert durations.expected_seconds(other) == 41.0, "it has run to its end since"


def test_informative_runs_what_differs_in_one_axis_before_what_differs_in_two() -> None:
    jobs = [
        [f"replicate={replicate}", "seed=1", f"precision={precision}", f"lora={lora}"]
        for replicate in (0, 1)
        for precision in ("fp32", "bf16", "nf4")
        for lora in ("off", "on")
    ]
    ordered = [
        " ".join(job[2:]).replace("precision=", "").replace("lora=", "")
        for job in most_informative_first(jobs)
    ]
    round_ = ["fp32 off", "fp32 on", "bf16 off", "nf4 off", "bf16 on", "nf4 on"]
    assert ordered == round_ * 2


def test_hydras_own_sweeper_runs_the_jobs_in_that_order_in_batches_and_is_itself_again_after() -> None:
    words = OverridesParser.create().parse_overrides(["precision=fp32,bf16,fp16", "lora=off,on"])
    sweeper = Plugins.instance().class_name_to_class[order._SWEEPER]
    known: list[list[str]] = []
    with order.arranged("informative", known.extend):
        first, second = sweeper.split_arguments(words, 4)
    assert first == [
        ["precision=fp32", "lora=off"],
        ["precision=fp32", "lora=on"],
        ["precision=bf16", "lora=off"],
        ["precision=fp16", "lora=off"],
    ]
    assert known == [*first, *second]
    (given,) = sweeper.split_arguments(words, None)
    assert given[3] == ["precision=bf16", "lora=on"]


@pytest.mark.slow
def test_the_order_is_that_of_the_rows(here: Here) -> None:
    assert here.run(ESTIMATE, "precision=fp32,bf16,fp16", "lora=off,on", "order=informative") == 0
    assert [f"{row['precision']} {row['lora']}" for row in here.rows()] == [
        *("fp32 off", "fp32 on", "bf16 off", "fp16 off"),
        *("bf16 on", "fp16 on"),
    ]


def test_what_a_budget_and_an_order_are_not_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*words: str) -> str:
        with pytest.raises(CommandError) as caught:
            check(list(words), multirun=True, sweep_id="s")
        return str(caught.value)

    monkeypatch.setattr(command_line, "LOCAL_LAUNCHERS", ("joblib",))
    assert "without hydra/launcher=basic" in refused("budget_seconds=9")
    assert "needs Hydra's own sweeper" in refused("order=informative", "hydra/sweeper=basic")


def test_one_trial_has_a_budget_too(here: Here, capsys: Any) -> None:
    assert sweep(ESTIMATE, f"results_dir={here.folder}", "budget_seconds=0.001") == 0
    assert "(defaults)" not in capsys.readouterr().out
    assert here.rows() == []


@pytest.mark.slow
def test_trials_side_by_side_end_in_time_too(here: Here) -> None:
    words = ("-m", "jobs=2", "seed=1,2,3", ESTIMATE, f"results_dir={here.folder}")
    done = door(*words, "budget_seconds=0.001")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": the time was over") == 3
    assert door(*words, "budget_seconds=600").returncode == 0
    assert len(here.rows()) == 3
