"""The workflows of .github/: what GitHub would refuse, what a stranger could reach, every step executed.

A night's steps are read from the workflow and executed here on a CPU, over a small sweep, in a copy of the
repository, so that its results and accepted baselines are the copy's own.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from bench.results import baselines, store
from tests.conftest import ROOT

WORKFLOWS = ROOT / ".github" / "workflows"
NIGHTLY = WORKFLOWS / "nightly-gpu.yml"
SWEEP = (
    "replicates=2 device=cpu threads=1 seq_len=32 precision=fp32,bf16 "
    "timing.warmup_steps=2 timing.min_steps=3 timing.max_steps=3"
)
Step = dict[str, Any]


def read(path: Path) -> dict[str, Any]:
    workflow = yaml.safe_load(path.read_text())
    workflow["on"] = workflow.pop(True)  # YAML 1.1 takes the word for a boolean
    return workflow


def steps(workflow: dict[str, Any]) -> Iterator[Step]:
    return (step for job in workflow["jobs"].values() for step in job["steps"])


def commands(path: Path) -> list[str]:
    return [step["run"] for step in steps(read(path)) if "run" in step]


def every_workflow(test: Any) -> Any:
    paths = sorted(WORKFLOWS.iterdir())
    return pytest.mark.parametrize("path", paths, ids=[path.name for path in paths])(test)


# What GitHub would refuse


def actionlint(path: Path) -> subprocess.CompletedProcess[str]:
    beside = str(Path(sys.executable).parent)
    program = shutil.which("actionlint", path=os.pathsep.join([beside, os.environ["PATH"]]))
    assert program, "actionlint is missing: pip install -r requirements.txt"
    config = ROOT / ".github" / "actionlint.yaml"
    return subprocess.run(
        [program, "-no-color", "-config-file", str(config), str(path)],
        capture_output=True,
        text=True,
        check=False,
    )


MISTAKES = (
    ('"17 2 * * *"', '"77 2 * * *"', "invalid CRON format"),
    ("contents: read", "contents: raed", '"raed" is invalid'),
    ("runs-on: [self-hosted, linux, gpu]", "runs-on: [self-hosted, linux, gpus]", '"gpus" is unknown'),
    ("persist-credentials", "persist-credential", 'input "persist-credential" is not defined'),
    ("steps.environment.outcome", "steps.enviroment.outcome", '"enviroment" is not defined'),
    ("run: bash run_all.sh setup", "run: echo ${{ github.head_ref }}", "potentially untrusted"),
)


@every_workflow
def test_actionlint_finds_nothing(path: Path) -> None:
    done = actionlint(path)
    assert (done.returncode, done.stdout) == (0, "")


def test_actionlint_would_find_a_mistake(tmp_path: Path) -> None:
    """With our configuration: it knows our runner's labels, and GitHub's actions."""
    text = NIGHTLY.read_text()
    for right, wrong, _ in MISTAKES:
        assert right in text
        text = text.replace(right, wrong)
    (tmp_path / "broken.yml").write_text(text)
    done = actionlint(tmp_path / "broken.yml")
    assert done.returncode == 1
    assert [said for _, _, said in MISTAKES if said not in done.stdout] == []


# What a stranger could reach


@every_workflow
def test_a_workflow_may_only_read(path: Path) -> None:
    workflow, text = read(path), path.read_text()
    assert workflow["permissions"] == {"contents": "read"}
    assert not any("permissions" in job for job in workflow["jobs"].values())
    assert "pull_request_target" not in workflow["on"]
    assert "workflow_run" not in workflow["on"]
    assert "secrets" not in re.sub("#.*", "", text)
    assert workflow["concurrency"]["group"]
    assert all(job["timeout-minutes"] <= 300 for job in workflow["jobs"].values())
    for step in steps(workflow):
        if "uses" in step:
            assert re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"]), "GitHub's own actions only"
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


@every_workflow
def test_our_own_machine_runs_nothing_that_a_stranger_can_start(path: Path) -> None:
    workflow = read(path)
    own = any(job["runs-on"] != "ubuntu-latest" for job in workflow["jobs"].values())
    assert own == (path == NIGHTLY)
    if own:
        assert set(workflow["on"]) == {"schedule", "workflow_dispatch"}
        assert all(job["if"] == "${{ vars.GPU_RUNNER == 'true' }}" for job in workflow["jobs"].values())


def test_summary_and_artefacts_are_made_whatever_happened() -> None:
    last = list(steps(read(NIGHTLY)))[-2:]
    assert [step.get("run") or step["uses"].partition("@")[0] for step in last] == [
        "bash run_all.sh summary",
        "actions/upload-artifact",
    ]
    assert {step["if"] for step in last} == {"${{ always() }}"}


@every_workflow
def test_a_step_is_one_word_of_run_all(path: Path) -> None:
    words = re.findall(r"^    (\w+)\)", (ROOT / "run_all.sh").read_text(), re.MULTILINE)
    for command in commands(path):
        assert re.fullmatch(rf"bash run_all\.sh ({'|'.join(words)})", command)


def test_ci_runs_what_runs_this_test() -> None:
    (command,) = commands(WORKFLOWS / "ci.yml")
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == command


# Every step executed


@dataclass
class Night:
    """A copy of the repository in which the nightly's steps are executed."""

    root: Path
    environment: dict[str, str]

    def run(self, command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        ours = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        return subprocess.run(
            ["bash", "-e", "-c", command],  # as GitHub does where no shell is named
            cwd=self.root,
            env={**ours, **self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    def accept(self, lighter: int = 0) -> None:
        """Stores the night's rows as the device's baseline, with peaks that many bytes lower."""
        rows = store.records(self.root / "results" / "nightly")
        folder = self.root / "results" / "reference" / baselines.name_of(baselines.device_of(rows))
        shutil.rmtree(folder, ignore_errors=True)
        for number, row in enumerate(rows):
            lower = row | {"peak_allocated_bytes": row["peak_allocated_bytes"] - lighter}
            store.write(lower, folder, f"row-{number}")
        for path in (folder / "trials").iterdir():
            path.rename(folder / path.name)
        (folder / "trials").rmdir()


def _own_rows(folder: str) -> set[str]:
    """The folder of results, where it is in this one: not bench/results/, which is code."""
    return {"results"} if Path(folder) == ROOT else set()


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Night:
    base = tmp_path_factory.mktemp("night")
    root = base / "repository"
    away = shutil.ignore_patterns(".*", "build")
    shutil.copytree(ROOT, root, ignore=lambda folder, names: {*away(folder, names), *_own_rows(folder)})
    # An environment that is installed already: this one.
    (base / "venv" / "bin").mkdir(parents=True)
    python = base / "venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    wanted = b"".join((root / name).read_bytes() for name in ("requirements.txt", "pyproject.toml"))
    (base / "venv" / ".installed").write_text(f"{hashlib.sha256(wanted).hexdigest()}  -\n")
    quick = "--ignore=tests/benchmarks/test_harness.py -k 'closed_form or comparing'"
    summary = base / "summary.md"
    environment = {
        "VENV": str(base / "venv"),
        "SWEEP": SWEEP,
        "PYTEST_ADDOPTS": f"{quick} --benchmark-max-time=0.1",
        "GITHUB_STEP_SUMMARY": str(summary),
    }
    return Night(root, environment)


@pytest.fixture(scope="module")
def first(night: Night) -> dict[str, subprocess.CompletedProcess[str]]:
    """The steps of the workflow, as they stand there and in their order, on a machine's first night."""
    return {command: night.run(command) for command in commands(NIGHTLY)}


def test_the_first_night_passes(night: Night, first: dict[str, subprocess.CompletedProcess[str]]) -> None:
    for command, done in first.items():
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    rows = pd.read_parquet(night.root / "results" / "nightly" / "trials").sort_values("started_at")
    assert list(rows["precision"]) == ["fp32", "bf16", "fp32", "bf16"], "interleaved"
    assert list(rows["replicate"]) == [0, 0, 1, 1]
    assert "No baseline has been accepted for this device yet" in first["bash run_all.sh compare"].stdout
    assert "nothing to compare with" in first["bash run_all.sh benchmarks"].stdout
    assert len(json.loads((night.root / "results/nightly/benchmarks.json").read_text())["benchmarks"]) == 2
    summary = Path(night.environment["GITHUB_STEP_SUMMARY"]).read_text()
    assert "No baseline has been accepted for this device yet" in summary
    assert (night.root / "results" / "nightly" / "report" / "summary.md").read_text() in summary


@pytest.mark.skipif(bool(shutil.which("nvidia-smi")), reason="this machine may have a GPU")
def test_a_night_without_its_gpu_fails(night: Night) -> None:
    (job,) = read(NIGHTLY)["jobs"].values()
    done = night.run("bash run_all.sh reference", **job["env"])
    assert done.returncode == 1
    assert "nvidia-smi finds no GPU" in done.stderr


def test_another_sweep_does_not_mix_with_the_first(
    night: Night, first: dict[str, subprocess.CompletedProcess[str]]
) -> None:
    done = night.run("bash run_all.sh reference")
    assert done.returncode == 1
    assert "results/nightly/trials is there already" in done.stderr


def test_a_baseline_is_accepted_as_the_comparison_says(
    night: Night, first: dict[str, subprocess.CompletedProcess[str]]
) -> None:
    (advice,) = re.findall(r"^    (mkdir .*)$", first["bash run_all.sh compare"].stdout, re.MULTILINE)
    assert night.run(advice).returncode == 0
    done = night.run("bash run_all.sh compare")
    assert done.returncode == 0, done.stderr
    assert "None of 2 trials got worse." in done.stdout


def test_a_mebibyte_more_than_the_baseline_fails_the_night(
    night: Night, first: dict[str, subprocess.CompletedProcess[str]]
) -> None:
    night.accept(lighter=2**20)
    done = night.run("bash run_all.sh compare")
    assert done.returncode == 1
    assert "2 of 2 trials got worse" in done.stdout
    assert "(more memory)" in done.stdout
    comparison = (night.root / "results" / "nightly" / "comparison.md").read_text()
    assert comparison.count("+1,048,576 B") == 2
    assert "2 of 2 trials got worse" in comparison


def test_a_benchmark_ten_times_slower_than_last_time_fails_the_night(
    night: Night, first: dict[str, subprocess.CompletedProcess[str]]
) -> None:
    (stored,) = (night.root / "results" / "nightly" / "benchmarks").glob("*/0001_*.json")
    before = json.loads(stored.read_text())
    for one in before["benchmarks"]:
        one["stats"]["median"] *= 0.1 if "closed_form" in one["name"] else 10
    stored.write_text(json.dumps(before))
    done = night.run("bash run_all.sh benchmarks")
    assert done.returncode == 1, done.stderr
    assert "Performance has regressed" in done.stdout + done.stderr
    regressed = (done.stdout + done.stderr).partition("Performance has regressed")[2]
    assert "test_a_closed_form" in regressed
    assert "test_comparing_two_nights" not in regressed
