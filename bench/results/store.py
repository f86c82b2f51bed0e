"""A results folder: writes a row whole or not at all, and reads rows back.

One parquet file holds one row, under `results_dir/trials/`. It is written under a hidden name and renamed,
so that `pandas.read_parquet(results_dir + "/trials")` never sees half a file. The folder may be behind a
URL (`paths.results_place`). Old files may have been merged into larger ones (compaction.py): readers return
the same rows. Columns that an older row lacks are null.
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
_TRIES = 100  # attempts to read a folder whose files change meanwhile


def write(row: dict[str, Any], results_dir: Path, name: str) -> Path:
    """Writes one row as `results_dir/trials/name.parquet`, whole or not at all.

    Raises:
        OSError: the folder cannot be written to.
    """
    with RowFile(results_dir, name) as file:
        return file.keep(parquet.to_parquet(row))


def read(
    results_dir: Path,
    sweep_id: str | None = None,
    columns: Iterable[str] | None = None,
    where: Where = None,
) -> pd.DataFrame:
    """The rows under `results_dir/trials` as a DataFrame, oldest first; there may be none.

    Columns that a row's schema version did not have are null. A file that cannot be read as rows is
    skipped, and named once on stderr.

    Args:
        results_dir: the folder that holds `trials`.
        sweep_id: only this sweep's rows; None takes every sweep's.
        columns: only these columns, which must include `started_at`; None takes all.
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
    """The rows of these parquet files, oldest first, as dicts; hidden files are skipped."""
    visible = [file for file in files if file.name[0] not in "._"]
    result = parquet.read_small(visible, build_query(None, None))
    parquet.warn_unreadable(result.unreadable)
    rows: list[dict[str, Any]] = parquet.concatenated(result.tables, SCHEMA).to_pylist()
    return rows


def of_trial(
    results_dir: Path, trial_id: str, columns: Iterable[str] | None = None
) -> list[dict[str, Any]]:
    """The rows of one trial in every sweep, oldest first, as dicts. Found fast: by the files' names."""
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
    query = build_query(columns, where)
    for _ in range(_TRIES):
        try:
            result = _read_folder(folder, sweep_id, query, end)
        except parquet.VanishedError:
            continue  # merged meanwhile: its rows are in another file now
        on_unreadable(result.unreadable)
        return parquet.concatenated(result.tables, query.wanted)
    raise OSError(f"{folder}: files come and go faster than they can be read")


def _read_folder(folder: Path, sweep_id: str | None, query: Query, end: str) -> parquet.ReadResult:
    """Lists and reads the folder once; raises VanishedError if a listed file is gone when it is read."""
    unreadable: dict[Path, str] = {}
    start = "" if sweep_id is None else f"{sweep_id}-"
    while True:
        listing = layout.listing(folder, start, end, without=unreadable)
        merged = parquet.read_large(listing.merged, _only_sweep(query, sweep_id))
        newly_unreadable = listing.unreadable | merged.unreadable
        unreadable |= newly_unreadable
        if not newly_unreadable:
            break
        # A merged file that cannot be read no longer hides its sources: the folder is listed again
        # without it, so that those sources that were not deleted yet are read.
    single = parquet.read_small(listing.single, query)
    return parquet.ReadResult([*merged.tables, *single.tables], unreadable | single.unreadable)


def _only_sweep(query: Query, sweep_id: str | None) -> Query:
    """The query, restricted to one sweep's rows: merged files hold those of many."""
    if sweep_id is None:
        return query
    of_sweep = pc.field("sweep_id") == sweep_id
    where = of_sweep if query.where is None else query.where & of_sweep
    return Query(query.wanted, where, query.needed | {"sweep_id"})
