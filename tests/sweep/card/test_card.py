"""Card day on a CPU: its parts can run, each has its share of the time, and the same command goes on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from bench.config.command_line import check
from bench.machine import brought
from bench.paths import ROOT
from bench.results import baselines, store
from bench.sweep.card import day as card
from bench.sweep.card.day import STOPPED, Running
from bench.sweep.card.parts import Day, Diary, Part
from tests.conftest import door_here

TEXT = card.PARTS.read_text()


def test_every_sweep_is_a_command_and_the_accepted_trials_are_among_them() -> None:
    day = Day.read(TEXT, toy=False)
    for part in day.parts:
        assert bool(part.command) != bool(part.sweeps)
        for words in part.sweeps:
            size = check(words.split(), multirun=True, sweep_id="s").size
            assert size and size > 1
    for part in Day.read(TEXT, toy=True).parts:
        for words in part.sweeps:
            trials = check(words.split(), multirun=True, sweep_id="s").trials
            assert {trial.model.label for trial in trials} == {"llama-tiny"}
    assert day.ending_seconds + sum(part.seconds for part in day.parts) == 540
    rows = store.records_in(baselines.FOLDER / "nvidia-h100-80gb-hbm3")
    accepted = {row["trial_id"] for row in rows}
    (replicates,) = (part for part in day.parts if part.name == "replicates")
    trials = check(replicates.sweeps[0].split(), multirun=True, sweep_id="s").trials
    assert {trial.trial_id for trial in trials} <= accepted, "speed is judged against the accepted rows"


class Commands:
    """In place of processes: commands that were called, with the comparison run in this process."""

    def __init__(self, **codes: int) -> None:
        self.codes = codes
        self.called: list[str] = []
        self.compared = ""

    def __call__(self, words: list[str], seconds: float) -> int:
        name = Path(next(word for word in words if word.endswith(".py"))).stem
        self.called.append(name)
        if name == "compare":
            done = door_here(*words[1:], script="compare.py")
            self.compared = done.stdout
            return done.returncode
        return self.codes.get(name, 0) if seconds > 0 else STOPPED


def test_a_day_on_a_cpu_stops_in_time_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = Day.read(TEXT, toy=True)
    chosen = [part for part in whole.parts if part.command or part.name in ("quantised", "inference")]
    first_values = (replace(part, sweeps=tuple(map(_one_trial, part.sweeps))) for part in chosen)
    day = Day(tuple(first_values), whole.ending_seconds)
    folder = tmp_path / "a cpu"

    def run(commands: Commands, seconds: float) -> str:
        assert Running(folder, time.monotonic(), seconds, commands).run(day) == 0
        return capsys.readouterr().out

    commands = Commands()
    out = run(commands, 1)
    assert commands.called == [] and out.count("not begun") == len(day.parts)
    assert f"Go on        bash run_all.sh card ({len(day.parts)} of {len(day.parts)} parts)" in out

    commands = Commands(calibrate=STOPPED)
    out = run(commands, 600)
    assert commands.called == ["test_gpu", "calibrate", "compare", "grade"]
    assert "No baseline has been accepted" in commands.compared
    assert "calibration  unfinished" in out and "(1 of 4 parts)" in out
    assert "every trial ended in ok, oom or skipped" in out, "whether it can be contributed"
    rows = store.records(folder)
    assert {row["status"] for row in rows} <= {"ok", "skipped"}
    assert {row["workload"] for row in rows} == {"train", "prefill"}
    assert folder.with_suffix(".tar.gz").stat().st_size > 1000

    commands = Commands()
    out = run(commands, 600)
    assert commands.called == ["calibrate", "compare", "grade"], "what is done is not done again"
    assert len(store.records(folder)) == len(rows)
    assert "Go on" not in out


def _one_trial(words: str) -> str:
    return " ".join(word.partition(",")[0] for word in words.split())


def test_a_failure_is_the_exit_code_and_is_tried_again(tmp_path: Path) -> None:
    part = Part("tests", "the tests", 100, command="-m pytest tests/methods/test_gpu.py")
    day = Day((part,), 10)
    assert Running(tmp_path, time.monotonic(), 100, Commands(test_gpu=1)).run(day) == 1
    assert Diary(tmp_path, "another environment").status(part) == "not begun"
    commands = Commands()
    assert Running(tmp_path, time.monotonic(), 100, commands).run(day) == 0
    assert commands.called == ["test_gpu"]


def test_a_part_gets_its_share_of_what_is_left(tmp_path: Path) -> None:
    given = []

    def call(_words: list[str], seconds: float) -> int:
        given.append(round(seconds - card._GRACE_SECONDS))
        return 0

    parts = tuple(Part(name, name, weight, command="x.py") for name, weight in (("a", 30), ("b", 60)))
    started = time.monotonic() + card._TO_LEAVE_SECONDS
    Running(tmp_path, started, 1000, call).run(Day(parts, 10))
    assert given == [300, 900], "a third of 900, and then all that the first left over"


def test_a_command_whose_time_is_over_is_ended(tmp_path: Path) -> None:
    script = tmp_path / "endless.py"
    script.write_text("import time\ntime.sleep(600)\n")
    started = time.monotonic()
    assert card.call([str(script)], 3.1) == STOPPED
    assert card.call([str(script)], 1.0) == STOPPED, "not begun"
    assert time.monotonic() - started < 300


def test_what_is_missing_is_brought_as_wheels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert brought.missing() == []
    names = ("hydra-core", "brought-by-hand")
    monkeypatch.setattr(brought, "_needed", lambda: names)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "kept")
    words = [f"results_dir={tmp_path / 'card'}", f"wheels={tmp_path / 'wheels'}"]
    assert card.main(words) == 1
    said = capsys.readouterr().out
    assert "Missing: brought-by-hand." in said
    assert "-m pip wheel --no-deps -w wheels brought-by-hand" in said and str(tmp_path / "wheels") in said
    assert "hydra-core==1.3" in brought.advice(["hydra-core"], tmp_path), "the pinned version"
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(tmp_path / "wheels" / "brought_by_hand-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("brought_by_hand.py", "found = 1\n")
        wheel.writestr("brought_by_hand-1.0.dist-info/METADATA", "Name: brought-by-hand\nVersion: 1.0\n")
    brought.unpack(tmp_path / "wheels", tmp_path / "packages")
    assert brought.missing() == []
    assert os.environ["PYTHONPATH"] == f"kept{os.pathsep}{tmp_path / 'packages'}"


@pytest.mark.parametrize("word", ["budget_seconds=0", "budget=5"])
def test_a_wrong_word_ends_it(word: str) -> None:
    assert card.main([word]) == 2


def test_tests_that_passed_do_not_run_again(tmp_path: Path) -> None:
    (tmp_path / "test_two.py").write_text("def test_a(): pass\ndef test_b(): pass\n")

    words = ["-q", "-p", "tests.resumable", "-p", "no:cacheprovider", "-c", "/dev/null"]
    words += [f"--rootdir={tmp_path}", str(tmp_path / "test_two.py")]
    passed = tmp_path / "passed"

    def run(seconds: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pytest", *words],
            cwd=ROOT,
            env=os.environ | {"RESUMABLE_FILE": str(passed), "RESUMABLE_SECONDS": seconds},
            capture_output=True,
            text=True,
            check=False,
        )

    stopped = run("0")
    assert stopped.returncode == 2 and "1 passed" in stopped.stdout, stopped.stdout
    (first,) = passed.read_text().splitlines()
    passed.write_text(f"{first}\n{first.replace('test_a', 'test_b')}\n")
    done = run("600")
    assert done.returncode == 0 and "2 deselected" in done.stdout, done.stdout


@pytest.mark.slow
def test_the_command_itself_on_a_cpu(tmp_path: Path) -> None:
    words = [f"results_dir={tmp_path}", "budget_seconds=60"]
    done = subprocess.run(
        [sys.executable, "-m", "bench.sweep.card.day", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Take home" in done.stdout
