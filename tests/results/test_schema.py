"""Rows of every schema that there has been: `fixtures/schema/` has one of each, by its own writer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench.results import compaction, store
from bench.results.schema import SCHEMA, SCHEMA_VERSION
from tests.conftest import ROOT

FIXTURES = sorted(
    (ROOT / "tests" / "fixtures" / "schema").glob("*.parquet"),
    key=lambda path: [int(word) for word in path.stem.split("-") if word.isdigit()],
)


def filled(value: Any, kind: pa.DataType) -> Any:
    """A value of an old row, with null for the fields that its type did not have yet."""
    if pa.types.is_list(kind) and value is not None:
        return [filled(one, kind.value_type) for one in value]
    if pa.types.is_struct(kind):
        return {part.name: filled(value.get(part.name), part.type) for part in kind}
    return value


def as_they_were() -> list[dict[str, Any]]:
    """The fixtures' rows as plain pyarrow reads them, in today's columns."""
    old = [row for path in FIXTURES for row in pq.ParquetFile(path).read().to_pylist()]
    assert all(set(row) <= set(SCHEMA.names) for row in old)  # a column is never taken away
    rows = [{column.name: filled(row.get(column.name), column.type) for column in SCHEMA} for row in old]
    return sorted(rows, key=lambda row: row["started_at"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "trials").mkdir()
    for path in FIXTURES:
        shutil.copy(path, tmp_path / "trials")
    return tmp_path


def test_rows_of_every_schema_are_read_together_with_their_values(folder: Path) -> None:
    assert len(FIXTURES) >= 4
    rows = store.records(folder)
    assert rows == as_they_were()
    assert [row["peak_allocated_bytes"] for row in rows] == [26121952] * len(FIXTURES)
    assert [row["per_rank"][0]["tracked_peak_bytes"] is not None for row in rows] == [True] * len(FIXTURES)
    assert rows[0]["kv_cache"] is None  # came with inference, in the fourth
    assert rows[3]["kv_cache_bytes"] == 0


def test_rows_of_every_schema_are_merged_with_their_values(folder: Path) -> None:
    done = compaction.compact(folder)
    assert (done.files, done.left) == (len(FIXTURES), {})
    assert store.records(folder) == as_they_were()
    (part,) = done.parts
    said = pq.read_table(part, columns=["source_file", "source_schema_version"]).to_pydict()
    assert set(said["source_file"]) == {path.name for path in FIXTURES}
    assert said["source_schema_version"] == [path.stem.partition("-")[0] for path in FIXTURES]


def test_the_newest_fixture_is_of_this_schema() -> None:
    """Who changes SCHEMA raises SCHEMA_VERSION and adds a fixture, as CONTRIBUTING.md says."""
    newest = pq.read_schema(FIXTURES[-1])
    assert newest.remove_metadata() == SCHEMA.remove_metadata()
    assert int(newest.metadata[b"schema_version"]) == SCHEMA_VERSION
    assert FIXTURES[-1].stem.partition("-")[0] == str(SCHEMA_VERSION)
