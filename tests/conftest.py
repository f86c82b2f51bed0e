"""Shared by all tests: how a Trial, a run or a whole command is made."""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

# Where the processor has them, oneDNN's kernels for AMX and AVX512-FP16 take up to half a MiB of scratch
# memory an operation, a per cent or two of a tiny model's peak. What is graded is the same everywhere.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")

# Simulations are kept for the length of a test run, by all its processes, and never beyond.
if "BENCH_CACHE" not in os.environ:
    os.environ["BENCH_CACHE"] = tempfile.mkdtemp(prefix="bench-cache-")
    atexit.register(shutil.rmtree, os.environ["BENCH_CACHE"], ignore_errors=True)

import pandas as pd
import pytest
import torch

from bench.config.compose import register_resolvers, trial_from
from bench.machine import host
from bench.trial.spec import Trial
from tests.schedule import in_order
from tests.schedule import pytest_xdist_make_scheduler as pytest_xdist_make_scheduler
from tests.sweeps import MATRIX, Here, Survived, sweep

ROOT = Path(__file__).resolve().parents[1]

EVERY_CORE = host.cores()

register_resolvers()
torch.set_num_threads(
    1
)  # the models are tiny, and two pools of threads on two cores spin against each other


def some(cases: Sequence[Any], every: int, first: int = 0) -> list[Any]:
    """Parameters of a test: every so manieth is always run, the others are slow (see CONTRIBUTING.md)."""
    always = range(first, len(cases), every)
    return [case if n in always else _slowly(case) for n, case in enumerate(cases)]


def _slowly(case: Any) -> Any:
    values = case if isinstance(case, tuple) and not all(isinstance(v, str) for v in case) else (case,)
    return pytest.param(*values, marks=pytest.mark.slow)


def make_trial(*overrides: str) -> Trial:
    """The trial that `python bench/run.py OVERRIDES` would execute, timed as briefly as possible."""
    brief = ["timing.min_steps=2", "timing.max_steps=2", "timing.warmup_steps=2"]
    return trial_from([*brief, *overrides])


def pytest_configure() -> None:
    """Tests that run side by side (xdist) have a core each, they and all that they start: two pools of
    threads on the same cores would spin against each other, and devices are leased core by core."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker and hasattr(os, "sched_setaffinity"):
        number = int(worker.removeprefix("gw"))
        os.sched_setaffinity(0, {EVERY_CORE[number % len(EVERY_CORE)]})
    if worker:  # it imports everything in any case, and this way without TorchInductor
        importlib.import_module("bench.processes.preload")


@pytest.fixture(autouse=True)
def no_columns() -> None:
    """Libraries that tests use set $COLUMNS, which the commands take for the width of the screen."""
    os.environ.pop("COLUMNS", None)


@pytest.fixture
def every_core() -> Iterator[None]:
    """All cores of this machine, for a test that divides them."""
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, EVERY_CORE)
    yield
    os.sched_setaffinity(0, mine)


def pytest_collection_finish() -> None:
    """The libraries' million objects stay; without this, each full collection walks them again."""
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: in_order(item.nodeid.partition("::")[0]))
    if not torch.accelerator.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no accelerator on this machine"))


class Command:
    """A finished sweep: exit code, what it printed, and the rows it left."""

    def __init__(self, done: subprocess.CompletedProcess[str], results_dir: Path) -> None:
        self.code = done.returncode
        self.out = done.stdout
        self.err = done.stderr
        self.results_dir = results_dir

    @property
    def rows(self) -> pd.DataFrame:
        """As anyone would read them: plain pandas, nothing of ours."""
        return pd.read_parquet(self.results_dir / "trials").sort_values("started_at", ignore_index=True)


def door(
    *arguments: str, script: str = "run.py", cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "bench" / script), *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **environment},
        timeout=600,
        check=False,
    )


def door_here(*arguments: str, script: str = "run.py") -> subprocess.CompletedProcess[str]:
    """`door` without its start-up: the command's own `main` in this process, whose imports are done."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        if script == "run.py":
            code = sweep(*arguments)
        else:
            code = importlib.import_module(f"bench.{script.removesuffix('.py')}").main(list(arguments))
    return subprocess.CompletedProcess([script, *arguments], code, out.getvalue(), err.getvalue())


BRIEF = ("timing.min_steps=3", "timing.max_steps=3")
SHORT = "seq_len=32"  # products of 16-bit floats and of int8 are slow on CPUs without instructions for them
ALONE = "threads=1"  # what else runs on the machine slows two threads that wait for each other down tenfold


def run_into(results_dir: Path, *arguments: str) -> Command:
    """A real sweep in this process, made brief by `briefly`."""
    words = briefly(*arguments)
    return Command(door_here(*words, f"results_dir={results_dir}"), results_dir)


def briefly(*arguments: str) -> list[str]:
    """The arguments, and brief steps, short sequences and one thread where they say nothing else."""
    given = {word.partition("=")[0] for word in arguments}
    return [*arguments, *(word for word in (*BRIEF, ALONE, SHORT) if word.partition("=")[0] not in given)]


@pytest.fixture
def bench_run(tmp_path: Path) -> Callable[..., Command]:
    """`run_into` a folder of the test's own."""
    return partial(run_into, tmp_path / "results")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Here]:
    """Sweeps in this process, into a folder of the test's own."""
    monkeypatch.setattr("bench.results.row_file._SETTLED_SECONDS", 0.0)
    sweeps = Here(tmp_path / "results", monkeypatch)
    yield sweeps
    if request.node.path.stem == "test_faults" and sweeps.runs:
        fault = request.node.originalname.removeprefix("test_").replace("_", " ")
        MATRIX.setdefault(fault, Survived()).add(sweeps.runs)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not MATRIX:
        return
    terminalreporter.section("fault matrix")
    columns = [field.name for field in fields(Survived)]
    terminalreporter.write_line(f"{'fault':<62}" + "".join(f"{name:>9}" for name in columns))
    for fault, survived in MATRIX.items():
        terminalreporter.write_line(
            f"{fault:<62}" + "".join(f"{getattr(survived, name):>9}" for name in columns)
        )
