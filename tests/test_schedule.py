"""Tests side by side: those of a file stay on one worker, where what they share is made once."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.schedule import APART, LONG, ByFile, in_order


def test_the_tests_of_a_file_are_one_scope_but_for_those_apart(pytestconfig: pytest.Config) -> None:
    split = object.__new__(ByFile)._split_scope
    assert split("tests/sweep/test_run.py::test_x[a::b]") == "tests/sweep/test_run.py"
    assert split("tests/sweep/test_run.py::Some::test_y") == "tests/sweep/test_run.py"
    assert {split(f"{file}::test_x[1]") for file in APART} == {f"{file}::test_x[1]" for file in APART}
    assert all((ROOT / file).is_file() for file in APART)
    assert pytestconfig.pluginmanager.has_plugin("xdist")


def test_long_files_come_first_and_the_tests_that_fill_gaps_last(request: pytest.FixtureRequest) -> None:
    assert all((ROOT / file).is_file() for file in LONG) and not set(LONG) & set(APART)
    files = [item.nodeid.partition("::")[0] for item in request.session.items]
    assert list(map(in_order, files)) == sorted(map(in_order, files))


def test_two_workers_share_what_is_apart_and_nothing_else(tmp_path: Path) -> None:
    together = ("tests/test_one.py", "tests/test_two.py")
    for file in (*together, APART[0]):
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"def test_{n}(): __import__('time').sleep(0.02)\n" for n in range(12)))
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    outer = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-n", "2", "--dist", "loadscope", "-p", "tests.schedule"],
        cwd=tmp_path,
        env={**outer, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    workers: dict[str, set[str]] = {}
    for worker, file in re.findall(r"\[(gw\d)\] .*PASSED (\S+)::", done.stdout):
        workers.setdefault(file, set()).add(worker)
    assert [len(workers[file]) for file in (*together, APART[0])] == [1, 1, 2]
