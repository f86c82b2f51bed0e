"""A results folder: a row is written whole or not at all, and rows are read back.

One parquet file holds one row, under `results_dir/trials/`. It is written under a hidden name and renamed,
so that `pandas.read_parquet(results_dir + "/trials")` never meets half a file. The folder may be behind a
URL (`places.place`). Old files may have been merged into larger files (`dataset.py`); readers see no
difference, and fill what an older row lacks with null.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bench.trial.columns import Columns
from bench.results import layout, parquet
from bench.results.query import Query, Where, build_query
from bench.results.row_file import RowFile
from bench.results.schema import SCHEMA

if TYPE_CHECKING:
    import pandas as pd

OnUnreadable = Callable[[dict[Path, str]], None]  # told files and why they cannot be read as rows
_TRIES = 100  # at listing a folder that changes meanwhile


def write(row: dict[str, Any], results_dir: Path, name: str) -> Path:
    """Writes one row as `results_dir/trials/name.parquet`, whole or not at all.

    Raises:
        OSError: the folder cannot be written to.
    """
    with RowFile(results_dir, name) as file:
        return file.keep(to_parquet(row))


def to_parquet(row: dict[str, Any]) -> bytes:
    """The content of the file that holds this one row; its pages have checksums."""
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([row], schema=SCHEMA), buffer, write_page_checksum=True)
    return bytes(buffer.getvalue().to_pybytes())


def read(
    results_dir: Path,
    sweep_id: str | None = None,
    columns: Iterable[str] | None = None,
    where: Where = None,
) -> pd.DataFrame:
    """The rows under `results_dir/trials`, oldest first; of one sweep only, if asked.

    Columns that a row's schema version did not have are null; there may be no rows at all. A file that
    cannot be read as rows is named on stderr, once, and passed over.

    Args:
        results_dir: the folder that holds `trials`.
        sweep_id: only this sweep's rows.
        columns: only these columns, `started_at` among them; default all.
        where: only rows with these values ({"model": "llama-7b", "precision": ["int8", "nf4"]}; None is
            null), or for which this expression of pyarrow.compute holds.

    Raises:
        ValueError: there is no such column.
    """
    rows: pd.DataFrame = _table(results_dir / "trials", sweep_id, columns, where).to_pandas()
    return rows


def records(
    results_dir: Path,
    sweep_id: str | None = None,
    columns: Iterable[str] | None = None,
    where: Where = None,
    on_unreadable: OnUnreadable = parquet.warn_unreadable,
) -> list[dict[str, Any]]:
    """The rows under `results_dir/trials` as plain dicts, null as None; arguments as of `read`.

    `on_unreadable` is told which files cannot be read as rows, and why; without it they are named on stderr.
    """
    return records_in(results_dir / "trials", sweep_id, columns, where, on_unreadable)


def records_in(
    folder: Path,
    sweep_id: str | None = None,
    columns: Iterable[str] | None = None,
    where: Where = None,
    on_unreadable: OnUnreadable = parquet.warn_unreadable,
) -> list[dict[str, Any]]:
    """The rows of a folder that holds the files themselves, like `trials`; arguments as of `records`."""
    table = _table(folder, sweep_id, columns, where, on_unreadable=on_unreadable)
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def records_of(files: list[Path]) -> list[dict[str, Any]]:
    """The rows of these parquet files, oldest first, as plain dicts."""
    found = parquet.read_small([f for f in files if f.name[0] not in "._"], build_query(None, None))
    parquet.warn_unreadable(found.strange)
    rows: list[dict[str, Any]] = parquet.concatenated(found.tables, SCHEMA).to_pylist()
    return rows


def of_trial(
    results_dir: Path, trial_id: str, columns: Iterable[str] | None = None
) -> list[dict[str, Any]]:
    """The rows of one trial, oldest first, whichever sweep they are of, by the names of their files."""
    where = {"trial_id": trial_id}
    table = _table(results_dir / "trials", None, columns, where, end=f"-{trial_id}")
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _table(
    folder: Path,
    sweep_id: str | None,
    columns: Iterable[str] | None,
    where: Where,
    end: str = "",
    on_unreadable: OnUnreadable = parquet.warn_unreadable,
) -> pa.Table:
    asked = build_query(columns, where)
    for _ in range(_TRIES):
        try:
            found = _once(folder, sweep_id, asked, end)
        except parquet.VanishedError:
            continue  # merged meanwhile: its rows are in another file now
        on_unreadable(found.strange)
        return parquet.concatenated(found.tables, asked.wanted)
    raise OSError(f"{folder}: files come and go faster than they can be read")


def _once(folder: Path, sweep_id: str | None, asked: Query, end: str) -> parquet.ReadResult:
    strange: dict[Path, str] = {}
    start = "" if sweep_id is None else f"{sweep_id}-"
    while True:
        listing = layout.listing(folder, start, end, without=strange)
        merged = parquet.read_large(listing.merged, _of_sweep(asked, sweep_id))
        more = listing.strange | merged.strange
        strange |= more
        if not more:
            break  # else what a torn file stands for may still be there
    single = parquet.read_small(listing.single, asked)
    return parquet.ReadResult([*merged.tables, *single.tables], strange | single.strange)


def _of_sweep(asked: Query, sweep_id: str | None) -> Query:
    if sweep_id is None:
        return asked
    of_sweep = pc.field("sweep_id") == sweep_id
    where = of_sweep if asked.where is None else asked.where & of_sweep
    return Query(asked.wanted, where, asked.needed | {"sweep_id"})
