"""Rows on the disk: written whole or not at all, and read back.

One parquet file holds one row, under `results_dir/trials/`. It is written under a hidden name and renamed,
so that `pandas.read_parquet(results_dir + "/trials")` never meets half a file. Readers fill what an older
row lacks with null.
"""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from bench.place import Place
from bench.schema import SCHEMA, conformed

_TOGETHER = 200  # files read by one thread at a time


def write(row: dict[str, Any], results_dir: Path, name: str) -> Path:
    """Writes one row as `results_dir/trials/name.parquet`, whole or not at all.

    Raises:
        OSError: the folder cannot be written to.
    """
    with Place(results_dir, name) as place:
        return place.keep(to_parquet(row))


def to_parquet(row: dict[str, Any]) -> bytes:
    """The content of the file that holds this one row."""
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([row], schema=SCHEMA), buffer)
    return bytes(buffer.getvalue().to_pybytes())


def _files(results_dir: Path, sweep_id: str | None) -> list[Path]:
    pattern = "*.parquet" if sweep_id is None else f"{glob.escape(sweep_id)}-*.parquet"
    return list((results_dir / "trials").glob(pattern))


def _table(paths: list[Path], columns: Iterable[str] | None = None) -> pa.Table:
    names = set(SCHEMA.names if columns is None else columns)
    wanted = pa.schema([field for field in SCHEMA if field.name in names])  # in the order that files have
    files = [path for path in paths if path.name[0] not in "._"]
    parts = [files[start : start + _TOGETHER] for start in range(0, len(files), _TOGETHER)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding footers takes a millisecond each
        tables = list(pool.map(partial(_together, wanted=wanted), parts))
    return pa.concat_tables([wanted.empty_table(), *tables]).sort_by("started_at")


def _together(files: list[Path], wanted: pa.Schema) -> pa.Table:
    groups: list[list[pa.Table]] = []  # neighbours of one schema version, conformed at one go
    for table in filter(None, (_rows_of(path, wanted) for path in files)):
        if groups and table.schema.equals(groups[-1][0].schema):
            groups[-1].append(table)
        else:
            groups.append([table])
    tables = [conformed(pa.concat_tables(group), wanted) for group in groups]
    # thousands of chunks are slow to work with
    return pa.concat_tables([wanted.empty_table(), *tables]).combine_chunks()


def _rows_of(path: Path, wanted: pa.Schema) -> pa.Table | None:
    """The file's rows with those of the columns that it has; None if it is torn, or not ours."""
    try:
        table = pq.ParquetFile(path).read(columns=wanted.names, use_threads=False)
        if not {"trial_id", "started_at"} <= set(table.column_names):
            raise pa.ArrowInvalid("no trial_id and started_at")
        if any(field.type != wanted.field(field.name).type for field in table.schema):
            return conformed(table, wanted)
        return table
    except (pa.ArrowException, OSError) as error:
        first = str(error).splitlines()[0]
        print(f"{path}: not a row of this project, passed over ({first})", file=sys.stderr)
        return None


def read(
    results_dir: Path, sweep_id: str | None = None, columns: Iterable[str] | None = None
) -> pd.DataFrame:
    """The rows under `results_dir/trials`, oldest first; of one sweep only, if asked.

    Columns that a row's schema version did not have are null; there may be no rows at all. A file that
    cannot be read as rows is named on stderr and passed over.

    Args:
        results_dir: the folder that holds `trials`.
        sweep_id: only this sweep's rows.
        columns: only these columns, `trial_id` and `started_at` among them; default all.
    """
    rows: pd.DataFrame = _table(_files(results_dir, sweep_id), columns).to_pandas()
    return rows


def records(
    results_dir: Path, sweep_id: str | None = None, columns: Iterable[str] | None = None
) -> list[dict[str, Any]]:
    """The same rows as plain dicts, null as None."""
    return records_of(_files(results_dir, sweep_id), columns)


def of_trial(
    results_dir: Path, trial_id: str, columns: Iterable[str] | None = None
) -> list[dict[str, Any]]:
    """The rows of one trial, oldest first, whichever sweep they are of."""
    return records_of(list((results_dir / "trials").glob(f"*-{glob.escape(trial_id)}.parquet")), columns)


def records_of(files: list[Path], columns: Iterable[str] | None = None) -> list[dict[str, Any]]:
    """The rows of these parquet files, oldest first, as plain dicts."""
    rows: list[dict[str, Any]] = _table(files, columns).to_pylist()
    return rows
