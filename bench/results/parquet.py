"""Rows as parquet: one row to the bytes of a file, and files to tables, guarded.

In: a row; or paths of files, and a `Query`. Out: bytes; or tables, and for each file that cannot be read as
rows of this project its path and the reason. A results folder may hold torn, foreign or hostile files: nothing is deleted, and nothing in a file is
executed. This module knows files, not folders (layout.py lists those).
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from bench import paths
from bench.trial.outcome import STATUSES
from bench.results.query import Query
from bench.results.schema import SCHEMA, cast_to_schema

_BATCH_FILES = 200  # files that a thread reads before it takes the next batch
_REMOTE_BATCH_FILES = 8  # files behind a URL in a batch
_REQUESTS = 16  # concurrent requests
_MOST_ROWS = 10_000_000  # in one file, by its footer
_MOST_BYTES = 2**32  # in one file, uncompressed, by its footer
_KEYS = ("trial_id", "started_at")  # every row has them
_EPOCH_SECONDS = (-62_135_596_800, 253_402_300_799)  # the years 1 to 9999, which a datetime can hold

# What reading a file can raise; the last ones come from values that Python cannot hold.
_FAILURES = (pa.ArrowException, OSError, ValueError, KeyError, TypeError, OverflowError, MemoryError)


class NotRowsError(ValueError):
    """The file does not hold rows of this project; the message says why."""


class VanishedError(OSError):
    """The file was listed and is gone: its folder must be listed again."""


@dataclass
class ReadResult:
    """The tables that were read, and the files that could not be read, each with the reason."""

    tables: list[pa.Table] = field(default_factory=list)
    unreadable: dict[Path, str] = field(default_factory=dict)


def to_parquet(row: dict[str, Any]) -> bytes:
    """The bytes of a parquet file that holds this one row; its pages have checksums."""
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([row], schema=SCHEMA), buffer, write_page_checksum=True)
    return bytes(buffer.getvalue().to_pybytes())


def read_small(files: list[Path], query: Query) -> ReadResult:
    """Reads files of few rows each, whole: the wanted columns of the wanted rows, in no order.

    Raises:
        VanishedError: one of the files is gone.
    """
    remote = any(map(paths.is_remote, files[:1]))
    size = _REMOTE_BATCH_FILES if remote else _BATCH_FILES
    batches = [files[start : start + size] for start in range(0, len(files), size)]
    result = ReadResult()
    # On a disk decoding is the cost, a millisecond a footer; behind a URL it is waiting for requests.
    with ThreadPoolExecutor(_REQUESTS if remote else os.cpu_count()) as pool:
        for batch_result in pool.map(partial(_read_batch, query=query), batches):
            result.tables += batch_result.tables
            result.unreadable |= batch_result.unreadable
    return result


def _read_batch(files: list[Path], query: Query) -> ReadResult:
    result = ReadResult()
    groups: list[list[pa.Table]] = []  # successive tables of one schema version, cast together
    for path in files:
        try:
            table = rows_of(path, query.read)
        except NotRowsError as error:
            result.unreadable[path] = str(error)
            continue
        if groups and table.schema.equals(groups[-1][0].schema):
            groups[-1].append(table)
        else:
            groups.append([table])
    for group in groups:
        table = cast_to_schema(pa.concat_tables(group), query.read)
        if query.where is not None:
            table = table.filter(query.where)
        # combined, because a table of thousands of chunks is slow
        result.tables.append(cast_to_schema(table, query.wanted).combine_chunks())
    return result


def rows_of(path: Path, wanted: pa.Schema, source: Any = None) -> pa.Table:
    """All rows of a file, with the wanted columns that it has, in the wanted types.

    Args:
        path: the file.
        wanted: the columns and their types.
        source: what to read the file from, if not from `path`.

    Raises:
        NotRowsError: the file is torn, or does not hold rows of this project.
        VanishedError: the file is gone.
    """
    with unreadable_as_error(path):
        table = open_checked(path, source).read(columns=wanted.names, use_threads=False)
        if any(field.type != wanted.field(field.name).type for field in table.schema):
            held = pa.schema([wanted.field(name) for name in table.column_names])
            table = cast_to_schema(table, held)
        return require_valid_values(table)


def open_checked(path: Path, source: Any = None) -> pq.ParquetFile:
    """Opens a parquet file and checks its footer; call it within `unreadable_as_error`.

    Args:
        path: the file.
        source: what to read the file from, if not from `path`.

    Raises:
        NotRowsError: the footer is not that of rows of this project, or not plausible.
    """
    if source is None:
        if not paths.is_remote(path):
            require_regular_file(path)
        source = paths.parquet_source(path)
    file = pq.ParquetFile(source, page_checksum_verification=True)
    _require_plausible_footer(file)
    return file


def read_large(files: list[Path], query: Query) -> ReadResult:
    """Reads files of many rows each: row groups without a wanted row are not decoded.

    Raises:
        VanishedError: one of the files is gone.
    """
    result = ReadResult()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        tables = pool.map(partial(_table_or_reason, query=query), files)
        for path, table in zip(files, tables, strict=True):
            if isinstance(table, str):
                result.unreadable[path] = table
            else:
                result.tables.append(table)
    return result


def _table_or_reason(path: Path, query: Query) -> pa.Table | str:
    try:
        return read_filtered(path, query)
    except NotRowsError as error:
        return str(error)


def read_filtered(path: Path, query: Query) -> pa.Table:
    """The wanted columns of the wanted rows of a file.

    Raises:
        NotRowsError: the file is torn, or does not hold rows of this project.
        VanishedError: the file is gone.
    """
    if paths.is_remote(path):
        table = cast_to_schema(rows_of(path, query.read), query.read)
        return cast_to_schema(table if query.where is None else table.filter(query.where), query.wanted)
    with unreadable_as_error(path):
        held = open_checked(path).schema_arrow
        absent = [field for field in SCHEMA if field.name not in held.names]
        options = ds.ParquetFragmentScanOptions(page_checksum_verification=True)
        file_format = ds.ParquetFileFormat(default_fragment_scan_options=options)
        data = ds.dataset(str(path), schema=pa.schema([*held, *absent]), format=file_format)
        names = [name for name in query.wanted.names if name in held.names]
        table = data.to_table(columns=names, filter=query.where)
        return cast_to_schema(require_valid_values(table), query.wanted)


@contextmanager
def unreadable_as_error(path: Path) -> Iterator[None]:
    """Turns every failure inside into a `NotRowsError` with its reason, or a `VanishedError`."""
    try:
        yield
    except (NotRowsError, VanishedError):
        raise
    except _FAILURES as error:
        # A symbolic link whose target is missing would be listed again and again: it is unreadable.
        if isinstance(error, FileNotFoundError) and (paths.is_remote(path) or not path.is_symlink()):
            raise VanishedError(f"{path} is gone") from error
        reason = str(error).strip() or type(error).__name__
        raise NotRowsError(reason.splitlines()[0]) from error


def require_regular_file(path: Path) -> None:
    """Checks that the path is a regular file: opening a pipe would wait for ever.

    Raises:
        NotRowsError: it is a folder, a pipe or a device.
    """
    kind = path.stat().st_mode
    if not stat.S_ISREG(kind):
        raise NotRowsError("a folder" if stat.S_ISDIR(kind) else "not a regular file")


def _require_plausible_footer(file: pq.ParquetFile) -> None:
    """Raises NotRowsError unless the footer has a row's keys and believable numbers of rows and bytes."""
    names = file.schema_arrow.names
    if not set(_KEYS) <= set(names):
        raise NotRowsError("no trial_id and started_at")
    if len(set(names)) < len(names):
        raise NotRowsError("several columns of one name")
    footer = file.metadata
    groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
    if not 0 <= footer.num_rows <= _MOST_ROWS or footer.num_rows != sum(group.num_rows for group in groups):
        raise NotRowsError(f"claims {footer.num_rows} rows")
    if not 0 <= sum(group.total_byte_size for group in groups) <= _MOST_BYTES:
        raise NotRowsError("claims more bytes than rows have")


def require_known_columns(held: pa.Schema, ours: pa.Schema) -> None:
    """Checks that rows with the columns `held` fit the schema `ours` without losing anything.

    Raises:
        NotRowsError: `ours` does not know a column or a type, because a newer version wrote it.
    """
    if held.equals(ours):
        return
    for column in held:
        if column.name not in ours.names:
            raise NotRowsError(f"this version does not know its column {column.name}")
        if not _is_extended_by(column.type, ours.field(column.name).type):
            raise NotRowsError(f"its {column.name} is {column.type}, not {ours.field(column.name).type}")


def _is_extended_by(old: pa.DataType, new: pa.DataType) -> bool:
    """Whether the types are equal, or `new` only adds fields to a struct of `old`."""
    if pa.types.is_list(old) and pa.types.is_list(new):
        return _is_extended_by(old.value_type, new.value_type)
    if pa.types.is_struct(old) and pa.types.is_struct(new):
        types = {part.name: part.type for part in new}
        return all(part.name in types and _is_extended_by(part.type, types[part.name]) for part in old)
    return bool(old == new)


def require_valid_values(table: pa.Table) -> pa.Table:
    """Returns the table if it is valid, has its keys, and Python can hold each of its values.

    Raises:
        NotRowsError: a key is null, a time is out of range, or a status is unknown.
        pa.ArrowException: lengths, offsets or texts are invalid.
    """
    table.validate(full=True)  # offsets, lengths, UTF-8
    held = set(table.column_names)
    for name in held.intersection(_KEYS):
        if table[name].null_count:
            raise NotRowsError(f"{name} is null")
    if "started_at" in held and len(table):
        extremes = pc.min_max(table["started_at"].cast(pa.int64()))
        low, high = (second * 1_000_000 for second in _EPOCH_SECONDS)
        if extremes["min"].as_py() < low or extremes["max"].as_py() > high:
            raise NotRowsError("started_at is beyond the calendar")
    if "status" in held:
        unknown = set(pc.unique(table["status"]).to_pylist()) - {*STATUSES}
        if unknown:
            raise NotRowsError(f"status={min(map(str, unknown))}: no such status")
    return table


def warn_unreadable(
    unreadable: dict[Path, str], what: str = "not a row of this project, passed over"
) -> None:
    """Prints one line for each file on stderr: its path, `what`, and the reason, in printable letters."""
    for path, reason in unreadable.items():
        line = f"{path}: {what} ({reason[:300]})"
        print("".join(map(_printable, line)), file=sys.stderr)


def _printable(letter: str) -> str:
    return letter if letter.isprintable() else ascii(letter)[1:-1]


def concatenated(tables: Iterable[pa.Table], wanted: pa.Schema) -> pa.Table:
    """All tables as one, oldest row first; empty, with the wanted columns, if there is no table."""
    return pa.concat_tables([wanted.empty_table(), *tables]).sort_by("started_at")
