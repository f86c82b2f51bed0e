"""Parquet files of anybody's to tables of ours: what cannot be read as rows is named, never fatal.

A results folder may hold torn, foreign or hostile files. Whatever is wrong with one of them, its name and a
reason come back in place of its rows; nothing is deleted, and nothing in a file is executed. Knows files,
and neither folders nor what is done with rows.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
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

_TOGETHER = 200  # files read by one thread at a time
_TOGETHER_REMOTE = 8  # the same of files behind a URL
_REQUESTS = 16  # at one time
_MOST_ROWS = 10_000_000  # of one file, as its footer has it
_MOST_BYTES = 2**32  # of one file, uncompressed, as its footer has it
_KEYS = ("trial_id", "started_at")  # no row is without them
_EPOCH_SECONDS = (-62_135_596_800, 253_402_300_799)  # the years 1 to 9999, which a datetime can hold

# What a file can do to whoever reads it; the last of them come from values that Python cannot hold.
_FAILURES = (pa.ArrowException, OSError, ValueError, KeyError, TypeError, OverflowError, MemoryError)


class NotRowsError(ValueError):
    """The file does not hold rows of this project; the message says why."""


class VanishedError(OSError):
    """The file is no longer where it was listed: its folder has to be looked at again."""


@dataclass
class ReadResult:
    """Tables as they were read, and the files that could not be, with the reason of each."""

    tables: list[pa.Table] = field(default_factory=list)
    strange: dict[Path, str] = field(default_factory=dict)


def read_small(files: list[Path], asked: Query) -> ReadResult:
    """The rows of these files, in no order; tables have the wanted columns alone.

    Raises:
        VanishedError: one of them is gone.
    """
    far = any(map(paths.is_remote, files[:1]))
    together = _TOGETHER_REMOTE if far else _TOGETHER
    parts = [files[start : start + together] for start in range(0, len(files), together)]
    found = ReadResult()
    # decoding footers takes a millisecond each; a request is waited for
    with ThreadPoolExecutor(_REQUESTS if far else os.cpu_count()) as pool:
        for part in pool.map(partial(_together, asked=asked), parts):
            found.tables += part.tables
            found.strange |= part.strange
    return found


def _together(files: list[Path], asked: Query) -> ReadResult:
    found = ReadResult()
    groups: list[list[pa.Table]] = []  # neighbours of one schema version, conformed at one go
    for path in files:
        try:
            table = rows_of(path, asked.read)
        except NotRowsError as error:
            found.strange[path] = str(error)
            continue
        if groups and table.schema.equals(groups[-1][0].schema):
            groups[-1].append(table)
        else:
            groups.append([table])
    for group in groups:
        table = cast_to_schema(pa.concat_tables(group), asked.read)
        if asked.where is not None:
            table = table.filter(asked.where)
        # thousands of chunks are slow to work with
        found.tables.append(cast_to_schema(table, asked.wanted).combine_chunks())
    return found


def rows_of(path: Path, wanted: pa.Schema, source: Any = None) -> pa.Table:
    """A file's rows with those of the wanted columns that it has, in their types; all read at once.

    Args:
        path: the file.
        wanted: columns.
        source: what to read it from, if not from the disk.

    Raises:
        NotRowsError: it is torn, or not ours.
        VanishedError: it is gone.
    """
    with unreadable_as_error(path):
        table = open_checked(path, source).read(columns=wanted.names, use_threads=False)
        if any(field.type != wanted.field(field.name).type for field in table.schema):
            held = pa.schema([wanted.field(name) for name in table.column_names])
            table = cast_to_schema(table, held)
        return require_valid_values(table)


def open_checked(path: Path, source: Any = None) -> pq.ParquetFile:
    """A parquet file whose footer is ours, and plausible; to be used within `judged`.

    Raises:
        NotRowsError: it is not.
    """
    if source is None:
        if not paths.is_remote(path):
            require_regular_file(path)
        source = paths.parquet_source(path)
    file = pq.ParquetFile(source, page_checksum_verification=True)
    _plausible(file)
    return file


def read_large(files: list[Path], asked: Query) -> ReadResult:
    """The same of files of many rows: row groups that hold nothing that is asked for stay unread.

    Raises:
        VanishedError: one of them is gone.
    """
    found = ReadResult()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for path, table in zip(files, pool.map(partial(_filtered, asked=asked), files), strict=True):
            if isinstance(table, str):
                found.strange[path] = table
            else:
                found.tables.append(table)
    return found


def _filtered(path: Path, asked: Query) -> pa.Table | str:
    try:
        return read_filtered(path, asked)
    except NotRowsError as error:
        return str(error)


def read_filtered(path: Path, asked: Query) -> pa.Table:
    """The wanted columns of those rows of a file that are asked for.

    Raises:
        NotRowsError: it is torn, or not ours.
        VanishedError: it is gone.
    """
    if paths.is_remote(path):
        table = cast_to_schema(rows_of(path, asked.read), asked.read)
        return cast_to_schema(table if asked.where is None else table.filter(asked.where), asked.wanted)
    with unreadable_as_error(path):
        held = open_checked(path).schema_arrow
        absent = [f for f in SCHEMA if f.name not in held.names]
        options = ds.ParquetFragmentScanOptions(page_checksum_verification=True)
        form = ds.ParquetFileFormat(default_fragment_scan_options=options)
        data = ds.dataset(str(path), schema=pa.schema([*held, *absent]), format=form)
        names = [name for name in asked.wanted.names if name in held.names]
        table = data.to_table(columns=names, filter=asked.where)
        return cast_to_schema(require_valid_values(table), asked.wanted)


class unreadable_as_error:  # noqa: N801  # reads as a word
    """Whatever fails inside becomes a `NotRowsError` about this file, or a `VanishedError`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: Any, error: BaseException | None, _traceback: Any) -> None:
        if error is None or isinstance(error, NotRowsError | VanishedError):
            return
        if isinstance(error, FileNotFoundError) and (
            paths.is_remote(self.path) or not self.path.is_symlink()
        ):
            raise VanishedError(f"{self.path} is gone") from error
        if isinstance(error, _FAILURES):
            said = str(error).strip() or type(error).__name__
            raise NotRowsError(said.splitlines()[0]) from error


def require_regular_file(path: Path) -> None:
    """A pipe would be waited for without end, and a folder is no file.

    Raises:
        NotRowsError: it is no regular file.
    """
    kind = path.stat().st_mode
    if not stat.S_ISREG(kind):
        raise NotRowsError("a folder" if stat.S_ISDIR(kind) else "not a regular file")


def _plausible(file: pq.ParquetFile) -> None:
    names = file.schema_arrow.names
    if not set(_KEYS) <= set(names):
        raise NotRowsError("no trial_id and started_at")
    if len(set(names)) < len(names):
        raise NotRowsError("several columns of one name")
    footer = file.metadata
    groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
    if not 0 <= footer.num_rows <= _MOST_ROWS or footer.num_rows != sum(g.num_rows for g in groups):
        raise NotRowsError(f"claims {footer.num_rows} rows")
    if not 0 <= sum(group.total_byte_size for group in groups) <= _MOST_BYTES:
        raise NotRowsError("claims more bytes than rows have")


def require_known_columns(held: pa.Schema, ours: pa.Schema) -> None:
    """Whether rows with these columns can be kept among ours without losing anything.

    Raises:
        NotRowsError: there is a column or a type that `ours` does not know, as a newer version writes.
    """
    if held.equals(ours):
        return
    for column in held:
        if column.name not in ours.names:
            raise NotRowsError(f"this version does not know its column {column.name}")
        if not _grew(column.type, ours.field(column.name).type):
            raise NotRowsError(f"its {column.name} is {column.type}, not {ours.field(column.name).type}")


def _grew(old: pa.DataType, new: pa.DataType) -> bool:
    """Whether a type is the other one, or had fewer fields then."""
    if pa.types.is_list(old) and pa.types.is_list(new):
        return _grew(old.value_type, new.value_type)
    if pa.types.is_struct(old) and pa.types.is_struct(new):
        later = {part.name: part.type for part in new}
        return all(part.name in later and _grew(part.type, later[part.name]) for part in old)
    return bool(old == new)


def require_valid_values(table: pa.Table) -> pa.Table:
    """The table, if it is what it claims to be, and Python can hold each of its values.

    Raises:
        NotRowsError: a row lacks what every row has.
        pa.ArrowException: lengths, offsets or texts are not what they claim to be.
    """
    table.validate(full=True)  # offsets, lengths, UTF-8
    held = set(table.column_names)
    for name in held.intersection(_KEYS):
        if table[name].null_count:
            raise NotRowsError(f"{name} is null")
    if "started_at" in held and len(table):
        ends = pc.min_max(table["started_at"].cast(pa.int64()))
        low, high = (second * 1_000_000 for second in _EPOCH_SECONDS)
        if ends["min"].as_py() < low or ends["max"].as_py() > high:
            raise NotRowsError("started_at is beyond the calendar")
    if "status" in held:
        strange = set(pc.unique(table["status"]).to_pylist()) - {*STATUSES}
        if strange:
            raise NotRowsError(f"status={min(map(str, strange))}: no such status")
    return table


def warn_unreadable(strange: dict[Path, str], what: str = "not a row of this project, passed over") -> None:
    """Names these files on stderr, each once, in printable letters."""
    for path, reason in strange.items():
        text = f"{path}: {what} ({reason[:300]})"
        print("".join(map(_printable, text)), file=sys.stderr)


def _printable(letter: str) -> str:
    return letter if letter.isprintable() else ascii(letter)[1:-1]


def concatenated(tables: Iterable[pa.Table], wanted: pa.Schema) -> pa.Table:
    """All of them as one table, oldest first."""
    whole: Iterator[pa.Table] = iter((wanted.empty_table(), *tables))
    return pa.concat_tables(whole).sort_by("started_at")
