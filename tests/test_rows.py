"""The rows that other tests read are of the kind that sweeps write."""

from __future__ import annotations

from pathlib import Path

from bench import results
from bench.categories import CATEGORIES
from tests import rows


def test_made_up_rows_keep_the_laws_of_measured_ones(tmp_path: Path) -> None:
    made = rows.write_all(tmp_path)
    read = results.records(tmp_path)
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
