"""A sweep that is run again: what runs, what does not, what is said; and what is said before it runs."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bench.analysis import studies
from bench.machine import leases, provenance
from bench.paths import ROOT
from bench.results import store
from bench.sweep import diagnosis, resume
from bench.sweep.schedule.budget import Durations
from tests.conftest import door, door_here, make_trial, some
from tests.rows import all_rows
from tests.sweeps import Here

ESTIMATE = "method=estimate"


def test_only_what_has_no_row_runs(here: Here, capsys: Any) -> None:
    assert here.run(ESTIMATE, "precision=fp32,nf4") == 0
    assert here.run(ESTIMATE, "precision=fp32,nf4,bf16") == 0
    out = capsys.readouterr().out
    assert out.count("2 of these trials had a row already") == 1
    assert "3 of 3 trials" in out.split("2 of these")[0], "they stand in the table"
    assert [row["precision"] for row in here.rows()] == ["fp32", "nf4", "bf16"]
    assert here.statuses() == ["ok", "skipped", "ok"]


def test_a_row_of_another_command_stands_in_the_words_of_this_one(here: Here, capsys: Any) -> None:
    assert here.run(ESTIMATE) == 0
    capsys.readouterr()
    assert here.run(ESTIMATE, "precision=fp32,bf16") == 0
    out = capsys.readouterr().out
    table = out[out.index("trial ") :].splitlines()
    assert [line.split()[0] for line in table[1:3]] == ["precision=fp32", "precision=bf16"]
    assert "precision" not in here.rows()[0]["overrides"], "the row itself stays as it was"


def test_replicates_are_counted_one_by_one(here: Here) -> None:
    assert here.run(ESTIMATE, "replicates=2") == 0
    assert here.run(ESTIMATE, "replicates=3") == 0
    assert [row["replicate"] for row in here.rows()] == [0, 1, 2]


def test_off_runs_everything_again(here: Here) -> None:
    assert here.run(ESTIMATE) == here.run(ESTIMATE, "resume=off") == 0
    assert len(here.rows()) == 2


def test_rows_of_another_environment_count_only_if_asked(here: Here, monkeypatch: Any) -> None:
    assert here.run(ESTIMATE) == 0
    monkeypatch.setattr(provenance, "code_of", lambda _module: "other code")
    assert here.run(ESTIMATE, "resume=force") == 0
    assert len(here.rows()) == 1
    assert here.run(ESTIMATE) == 0
    first, second = here.rows()
    assert first["trial_id"] == second["trial_id"]
    assert first["environment"] != second["environment"]


def test_any_change_that_defines_the_trial_is_another_trial(here: Here) -> None:
    assert here.run(ESTIMATE) == here.run(ESTIMATE, "timing.max_steps=4") == 0
    assert len(here.rows()) == 2


def test_the_code_that_a_trial_runs_is_part_of_the_environment() -> None:
    names = {path.relative_to(ROOT).as_posix() for path in provenance.sources("bench.processes.worker")}
    modules = ("processes/worker", "methods/measure", "workload/techniques/lora", "methods/step_statistics")
    assert {f"bench/{module}.py" for module in modules} <= names
    others = {"report", "reports/figures", "sweep/main", "sweep/job", "compare", "analysis/studies"}
    assert all((ROOT / "bench" / f"{module}.py").is_file() for module in (*modules, *others))
    assert not names & {f"bench/{module}.py" for module in others}


def test_a_dry_run_says_what_would_run_and_writes_no_row(here: Here, capsys: Any) -> None:
    words = ("precision=fp32,nf4", "model=llama-tiny,llama-65b")
    assert here.run("precision=fp32") == 0
    capsys.readouterr()
    assert here.run(*words, "dry_run=true") == 0
    lines = capsys.readouterr().out.splitlines()

    def said(precision: str, model: str) -> str:
        return next(line for line in lines if f"precision={precision}" in line and f"model={model}" in line)

    assert "skipped" in said("nf4", "llama-tiny")
    assert "does not fit" in said("fp32", "llama-65b")
    assert "4 trials, nothing was run" in "".join(lines)
    assert len(here.rows()) == 1


def test_what_has_a_row_is_not_planned(here: Here, capsys: Any) -> None:
    assert here.run("precision=fp32") == 0
    capsys.readouterr()
    assert here.run("precision=fp32,bf16", "dry_run=true", "budget_seconds=0.01") == 0
    out = capsys.readouterr().out
    assert "done (ok)" in out
    assert "budget_seconds=0.01 is enough for 0 of the 1 that would run" in out
    (row,) = here.rows()
    took = row["wall_seconds"] - max(0.0, row["overhead_seconds"] - 1.0)
    trial = make_trial("precision=bf16")
    assert Durations.read(here.folder).expected_seconds(trial) == took, "what its model's trial took"


def test_what_cannot_fit_is_left_out_if_asked_and_tried_if_not(here: Here) -> None:
    words = ("memory_limit_bytes=20000000", "seq_len=128")
    assert here.run(*words, "skip_predicted_oom=true") == 0
    (row,) = here.rows()
    assert row["status"] == "skipped"
    assert row["reason"].startswith("predicted not to fit: the simulated peak is 2")
    assert row["predicted_peak_bytes"] > row["memory_limit_bytes"]
    assert here.run(*words, "skip_predicted_oom=true") == 0
    assert len(here.rows()) == 1, "its row stands for it"
    assert here.run(*words) == 0
    assert here.statuses() == ["skipped", "oom"], "but not for a trial that is to be tried"


def test_what_fits_is_not_left_out(here: Here) -> None:
    assert here.run("skip_predicted_oom=true") == 0
    assert here.statuses() == ["ok"]


@pytest.mark.usefixtures("every_core")
def test_trials_side_by_side_divide_the_cores() -> None:
    cores = os.sched_getaffinity(0)
    if len(cores) < 2:
        pytest.skip("one core cannot be divided")
    one, other = make_trial("seed=1"), make_trial("seed=2")
    with (
        leases.hold_devices(one, jobs=2, busy="flag") as first,
        leases.hold_devices(other, jobs=2, busy="flag") as second,
    ):
        assert len(first.cores) == len(second.cores) == len(cores) // 2
        assert not set(first.cores) & set(second.cores)
        assert not first.shared and not second.shared


@pytest.mark.parametrize("method", some(["estimate", "measure"], every=2))
@pytest.mark.usefixtures("every_core")
def test_jobs_side_by_side(here: Here, method: str) -> None:
    done = door(
        *("-m", "jobs=2", "seed=1,2,3", f"method={method}"),
        *("timing.min_steps=3", "timing.max_steps=3", f"results_dir={here.folder}"),
    )
    assert done.returncode == 0, done.stderr
    rows = here.rows()
    assert [row["status"] for row in rows] == ["ok"] * 3
    if method == "measure":
        assert {row["threads"] for row in rows} == {max(1, len(os.sched_getaffinity(0)) // 2)}
    assert not any(row["device_shared"] for row in rows)
    assert "jobs" not in rows[0]["overrides"]


def test_notes_of_passed_over_trials_name_their_rows(here: Here) -> None:
    assert here.run(ESTIMATE) == here.run(ESTIMATE) == 0
    (note,) = (here.folder / "logs").glob("*/*.reused.json")
    (row,) = here.rows()
    assert json.loads(note.read_text())["sweep_id"] == row["sweep_id"]


def test_the_doctor_finds_what_is_wrong_and_says_how_to_mend_it(here: Here) -> None:
    assert here.run("optimizer=sgd", "optimizer.lr=1e30,0.01") == 1
    trials = here.folder / "trials"
    (trials / "photo.parquet").write_bytes(b"no row")
    done = door_here(f"results_dir={here.folder}", "trial=false", script="doctor.py")
    assert done.returncode == 1
    assert "✓ torch" in done.stdout
    assert "✗ files" in done.stdout and f"{trials}/photo.parquet" in done.stdout
    assert "✗ failed" in done.stdout
    assert "optimizer.lr=1e+30" in done.stdout
    assert "\n2 of " in done.stdout
    (trials / "photo.parquet").unlink()
    for path in trials.glob("*.parquet"):
        if store.records_of([path])[0]["status"] == "error":
            path.unlink()
    assert door_here(f"results_dir={here.folder}", "trial=false", script="doctor.py").returncode == 0


def test_the_doctor_tries_a_trial() -> None:
    found = diagnosis._trial()
    assert not found.wrong, found
    assert found.found.startswith("int8 + LoRA trains on ")


def test_the_doctors_words() -> None:
    done = door("resuls_dir=x", script="doctor.py")
    assert done.returncode == 2
    assert "did you mean results_dir?" in done.stderr


def test_an_empty_folder_is_no_fault(tmp_path: Path) -> None:
    done = door_here(f"results_dir={tmp_path}", "trial=false", script="doctor.py")
    assert done.returncode == 0
    assert "holds no rows yet" in done.stdout


def test_a_failure_counts_until_it_is_made_good_and_one_that_came_later_counts() -> None:
    def row(status: str, hour: int) -> dict[str, Any]:
        return all_rows()[0] | {"status": status, "started_at": datetime(2026, 1, 1, hour, tzinfo=UTC)}

    for given, kept in ((("error", "ok"), ["ok"]), (("ok", "error"), ["ok", "error"])):
        rows = [row(status, hour) for hour, status in enumerate(given)]
        assert [one["status"] for one in resume.without_resolved_failures(rows)] == kept
        (trial,) = studies.trials(pd.DataFrame(rows)).to_dict("records")
        assert trial["status"] == kept[-1]
