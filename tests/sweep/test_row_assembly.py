"""The rows that other tests read are of the kind that sweeps write."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest

from bench.results import store
from bench.sweep.row_assembly import without_local_paths
from bench.trial.vocabulary import CATEGORIES
from tests import rows
from tests.conftest import ROOT


def test_made_up_rows_keep_the_laws_of_measured_ones(tmp_path: Path) -> None:
    made = rows.write_all(tmp_path)
    read = store.records(tmp_path)
    assert len(read) == len(made)
    assert {row["status"] for row in read} == {"ok", "oom", "skipped"}
    fits = [row for row in read if row["status"] == "ok"]
    for row in fits:
        assert sum(row[f"{category}_bytes"] for category in CATEGORIES) == row["tracked_peak_bytes"]
        assert row["tracked_peak_bytes"] + (row["untracked_bytes"] or 0) == row["peak_allocated_bytes"]
    assert any(row["mfu"] for row in fits)


def test_they_are_the_same_each_time() -> None:
    assert rows.again() == rows.again()
    assert rows.again() != rows.again(slower=0.1)


def test_a_row_s_traceback_tells_no_one_where_the_project_lies() -> None:
    try:
        pytest.fail("as an example")
    except BaseException:
        told = traceback.format_exc()
    here = f'File "{ROOT}/bench/worker.py", line 1, in work'
    there = 'File "/home/me/venv/lib/python3.12/site-packages/torch/optim/adam.py", line 2, in step'
    library = 'File "/usr/lib/python3.12/asyncio/runners.py", line 3, in run'
    kept = without_local_paths("\n".join((here, there, library, told))).splitlines()
    assert kept[0] == 'File "bench/worker.py", line 1, in work'
    assert kept[1] == 'File "torch/optim/adam.py", line 2, in step'
    assert kept[2] == 'File "python3.12/asyncio/runners.py", line 3, in run'
    assert 'File "tests/sweep/test_row_assembly.py"' in "\n".join(kept) and str(ROOT) not in "\n".join(kept)
