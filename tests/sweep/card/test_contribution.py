"""The check of rows that are to become a reference: the accepted ones pass, and each fault is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from bench.results import baselines, store
from bench.sweep.card import contribution
from bench.sweep.diagnosis import Finding
from tests.conftest import door_here

ROWS = store.records_in(baselines.FOLDER / "nvidia-h100-80gb-hbm3-ten-replicates")[:2]


def wrong(folder: Path) -> dict[str, Finding]:
    return {finding.what: finding for finding in contribution.findings(folder) if finding.wrong}


def written(folder: Path, **changed: Any) -> Path:
    """Two rows, of which the second has these columns."""
    for number, row in enumerate((ROWS[0], ROWS[1] | changed)):
        store.write(
            {key: row[key] for key in row if not key.startswith("source_")}, folder, f"row-{number}"
        )
    return folder


@pytest.mark.parametrize("name", baselines.names())
def test_the_accepted_rows_pass(name: str) -> None:
    assert wrong(baselines.FOLDER / name) == {}


@pytest.mark.parametrize(
    ("what", "said", "changed"),
    [
        ("device", "on A, NVIDIA H100", {"device_name": "A"}),
        ("device", "1 row that nobody measured", {"method": "simulate"}),
        ("complete", "driver_version (1 row)", {"driver_version": None}),
        ("complete", "git_commit (1 row)", {"git_commit": None}),
        ("ended", "1 trial never finished", {"status": "error", "replicate": 77}),
        (
            "paths",
            "/srv/me/mistral",
            {"overrides": "python bench/run.py model=/srv/me/mistral"},
        ),
        ("paths", "~/mistral", {"reason": "OSError: ~/mistral is not there"}),
        ("hashes", "trial_id of 1 row is not the hash", {"trial_id": "0123456789abcdef"}),
    ],
)
def test_a_fault_is_named(tmp_path: Path, what: str, said: str, changed: dict[str, Any]) -> None:
    faults = wrong(written(tmp_path, **changed))
    assert list(faults) == [what]
    assert said in faults[what].found
    assert faults[what].remedy


def test_urls_rates_and_the_systems_own_files_are_no_paths(tmp_path: Path) -> None:
    reason = "see https://example.org/a/b, 5 tokens/s/device, /proc/self/status, bench/run.py"
    assert wrong(written(tmp_path, reason=reason)) == {}


def test_a_file_that_rotted_is_named_and_the_door_says_how_many(tmp_path: Path) -> None:
    written(tmp_path)
    path = tmp_path / "trials" / "row-1.parquet"
    content = bytearray(path.read_bytes())
    file = pq.read_metadata(path)
    columns = (file.row_group(0).column(number) for number in range(file.num_columns))
    column = next(column for column in columns if column.path_in_schema == "overrides")
    content[column.data_page_offset - 20] ^= 1  # in the page of the text, and not in a header
    path.write_bytes(content)
    done = door_here(f"contribution={tmp_path}", script="doctor.py")
    assert done.returncode == 1
    assert "✗ hashes" in done.stdout and "row-1.parquet" in done.stdout.replace("\n", "")
    assert "1 of 9 to mend" in done.stdout
    assert door_here(f"contribution={tmp_path / 'none'}", script="doctor.py").returncode == 1
