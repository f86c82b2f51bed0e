"""Predictions against the CPU allocator's own count, over what was picked and what was drawn."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from functools import cache
from pathlib import Path

import pytest
from filelock import FileLock

from bench.analysis.grading import accuracy, accuracy_grid
from bench.analysis.grading.accuracy import Grade, Graded
from bench.analysis.grading.accuracy_grid import Overrides
from bench.analysis.grading.predictions import grade_now
from bench.config.compose import trial_from
from bench.processes.simulation_pool import Simulator
from bench.trial.platform import CPU
from bench.trial.skip_rules import skip_reason
from bench.trial.spec import from_definition
from tests.conftest import SHORT, door_here, make_trial
from tests.sweeps import Here

PICKED = accuracy_grid.grid()
DRAWN = 40  # configurations that nobody picked, of which the first few are always run

GradeOnce = Callable[[Overrides], Graded]


@pytest.fixture(scope="module")
def graded_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GradeOnce]:
    """Measures and grades a configuration once, however many tests ask and on whichever xdist worker: who
    comes second waits for the first, and reads what it found."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of all workers of this run
    with ExitStack() as stack:
        simulator = cache(lambda: stack.enter_context(Simulator()))

        def grade(overrides: Overrides) -> Graded:
            found = folder / f"graded-{hashlib.sha256(' '.join(overrides).encode()).hexdigest()}.json"
            with FileLock(found.with_suffix(".lock")):
                if not found.exists():
                    graded = grade_now(overrides, simulator())
                    found.write_text(json.dumps(asdict(graded)))
                stored = json.loads(found.read_text())
            return Graded(**stored | {"levels": tuple(stored["levels"])})

        yield cache(grade)


DRAWN_ALWAYS = accuracy_grid.sample(2, seed=0)  # both of shard_grad_op, over one rank and over two
ALWAYS = [*(o for o in PICKED[::7] if "fsdp=shard_grad_op" not in " ".join(o)), *DRAWN_ALWAYS]
SLOW = [overrides for overrides in PICKED if overrides not in ALWAYS]


@pytest.mark.parametrize(
    "overrides",
    [*ALWAYS, *(pytest.param(overrides, marks=pytest.mark.slow) for overrides in SLOW)],
    ids=" ".join,
)
def test_simulation_is_within_two_percent_and_never_one_percent_under(
    graded_once: GradeOnce, overrides: Overrides
) -> None:
    found = graded_once(overrides)
    assert -0.01 < found.errors["simulate"] <= 0.02
    for category, error in found.category_errors.items():
        assert abs(error) <= 0.02, category


@pytest.mark.slow
@pytest.mark.parametrize("number", range(4, DRAWN))
def test_so_it_is_over_what_was_drawn(graded_once: GradeOnce, number: int) -> None:
    """Drawn here and not where tests are collected: drawing takes seconds of each worker."""
    overrides = accuracy_grid.sample(DRAWN, seed=0)[number]
    test_simulation_is_within_two_percent_and_never_one_percent_under(graded_once, overrides)


def test_the_median_error_of_simulation_is_within_half_a_percent(graded_once: GradeOnce) -> None:
    errors = [abs(graded_once(overrides).errors["simulate"]) for overrides in ALWAYS]
    assert statistics.median(errors) <= 0.005


def test_the_closed_form_is_nearer_than_the_rule_of_thumb(graded_once: GradeOnce) -> None:
    grades = accuracy.grades_by_technique(
        [graded_once(overrides) for overrides in PICKED if overrides in ALWAYS]
    )["all"]
    assert grades["simulate"].median < grades["closed_form"].median < grades["rule_of_thumb"].median


def test_the_grid_covers_every_level_and_four_architectures() -> None:
    trials = [trial_from([*accuracy_grid.BRIEF, *overrides]) for overrides in PICKED]
    assert len(PICKED) >= 60
    assert all(skip_reason(trial, CPU, 0) is None for trial in trials)
    assert {trial.model.family for trial in trials} == {"llama", "opt", "gpt2", "mt5"}
    assert any(trial.model.kv_heads < trial.model.heads for trial in trials)
    levels = {
        "precision": {
            "fp32",
            "fp16",
            "bf16",
            "fp16_pure",
            "bf16_pure",
            "bf16_autocast",
            "fp16_autocast",
            "int8",
            "nf4",
        },
        "checkpointing": {"off", "on", "selective"},
        "fsdp": {"off", "full_shard", "shard_grad_op", "no_shard"},
        "offload": {"off", "params", "activations"},
        "loss": {"full", "chunked"},
        "loop": {"bare", "trainer"},
        "optimizer": {"adamw", "adamw_fused", "adamw_foreach", "adamw_8bit", "sgd", "adafactor"},
    }
    for axis, names in levels.items():
        assert {getattr(trial, axis).name for trial in trials} == names


def test_a_sample_is_the_same_for_the_same_seed() -> None:
    assert (
        accuracy_grid.sample(5, seed=1)
        == accuracy_grid.sample(5, seed=1)
        != accuracy_grid.sample(5, seed=2)
    )


def test_under_estimates_are_counted_apart() -> None:
    assert Grade.of([0.5, -0.02, -0.005, 0.0]) == Grade(count=4, median=0.0125, worst=0.5, under=1)


def test_a_trial_survives_its_definition() -> None:
    trial = make_trial("precision=nf4", "lora=on", "fsdp=full_shard", "fsdp.world_size=2", "seed=7")
    assert from_definition(json.loads(json.dumps(trial.definition()))) == trial
    assert from_definition({**make_trial().definition(), "unheard_of": 1}) == make_trial()


def test_the_door_grades_measured_rows(here: Here) -> None:
    assert here.run("precision=fp32,int8", "lora=on", "device=cpu", SHORT) == 0
    done = door_here(f"results_dir={here.folder}", script="grade.py")
    assert done.returncode == 0, done.stderr
    report = here.folder / "report"
    assert "| precision=int8 | 1 |" in (report / "grades.md").read_text()
    with (report / "grades.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    assert all(abs(float(row["simulate_error"])) < 0.02 for row in rows)


@pytest.mark.parametrize(
    ("word", "code", "said"),
    [
        ("resuls_dir=x", 2, "did you mean results_dir?"),
        ("sample=many", 2, "sample=many: must be a whole number"),
        ("results_dir=nowhere", 1, "nothing to grade"),
    ],
)
def test_the_door_says_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str, code: int, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = door_here(word, script="grade.py")
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr
