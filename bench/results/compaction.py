"""Merges many files of one row into few large ones, so that a results folder can grow for years.

At any moment, whatever is killed, each row is in some file and `layout.listing` finds it once. A merged
file is written under a hidden name, flushed to the disk, read back and compared, and renamed; only then are
the files that it replaces deleted. A merge that is killed in between leaves both: `layout.listing` skips
what was merged, and the next merge deletes it. Plain pandas reads such rows twice until then.

A file with a column or a type that this version does not know, or that cannot be read, is left alone.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bench.paths import flush_dir
from bench.results import layout, parquet
from bench.results.schema import SCHEMA, cast_to_schema

_PART_ROWS = 10_000  # of a merged file; one with fewer than half of them is merged again
_GROUP_ROWS = 2_000  # of a row group, the least that a filtered reader decodes
_ROWS_IN_MEMORY = 30_000  # a few kilobytes each
_BATCH_FILES = 500  # files read before anything is written
_MOST_FILE_BYTES = 2**26  # no trial's file is larger
_DAY_SECONDS = 86_400
_ORDER = [("sweep_id", "ascending"), ("started_at", "ascending")]  # so that a sweep's rows are in few row groups


class BusyError(RuntimeError):
    """Another merge is running in this folder."""


@dataclass
class Merge:
    """What a merge did.

    Attributes:
        files: the number of single files that were merged.
        rows: the number of rows in them.
        parts: the merged files that were written.
        left: the files that were left as they are, each with the reason.
    """

    files: int = 0
    rows: int = 0
    parts: list[Path] = field(default_factory=list)
    left: dict[Path, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Source:
    """A single file and its rows."""

    path: Path
    stamp: tuple[int, int, int]  # a file that was replaced since has another, and is not deleted
    origin: tuple[str, str, str]  # the values of the columns of `layout.SOURCES`
    table: pa.Table


@dataclass
class _Batch:
    """Single files whose rows go into one merged file; `table` has `layout.MERGED_SCHEMA`."""

    files: list[tuple[Path, tuple[int, int, int]]]
    table: pa.Table


def compact(
    results_dir: Path,
    older_than_days: float = 0.0,
    on_progress: Callable[[int, int], None] = lambda _read, _total: None,
) -> Merge:
    """Merges the single files under `results_dir/trials`; trials may run and write meanwhile.

    Args:
        results_dir: the folder that holds `trials`.
        older_than_days: younger files are left alone; 0 merges all.
        on_progress: called with the number of files read so far and the number of all.

    Raises:
        BusyError: another merge is running.
        OSError: the folder cannot be read or written to.
    """
    folder = results_dir / "trials"
    merge = Merge()
    with _locked(folder):
        _delete_leftovers(folder)
        until = time.time() - older_than_days * _DAY_SECONDS if older_than_days else math.inf
        waiting: dict[str, list[_Batch]] = {}  # by the name of the model's folder
        rows: Counter[str] = Counter()
        for place, batch in _batches(layout.single_files(folder), until, merge, on_progress):
            waiting.setdefault(place, []).append(batch)
            rows[place] += len(batch.table)
            if rows.total() >= _ROWS_IN_MEMORY or rows[place] >= _PART_ROWS:
                largest = max(rows, key=lambda place: rows[place])
                del rows[largest]
                _write_part(folder, largest, waiting.pop(largest), merge)
        for place, batches in waiting.items():
            _write_part(folder, place, batches, merge)
    return merge


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lets one merge run at a time. The lock ends with its process, even a killed one; trials take none."""
    with (folder / ".merge.lock").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(f"another merge is at work in {folder}") from None
        yield


def _delete_leftovers(folder: Path) -> None:
    """Deletes what a killed merge left: hidden files, and files that a merged file replaces."""
    for unfinished in (folder / layout.MERGED).glob("*/.*.tmp"):
        unfinished.unlink()
    single = layout.single_files(folder)
    for part in layout.merged_files(folder):
        try:
            names = layout.replaces(part)  # may be hostile: only files in the same folder are deleted
        except (pa.ArrowException, OSError, ValueError):
            continue
        beside = {part.parent / Path(name).name for name in names} - {part}
        stale = [path for path in beside if path.is_file()] + list(layout.leftovers(single, [part]))
        if stale and _read_whole(part) is not None:
            for path in stale:
                path.unlink(missing_ok=True)


def _read_whole(part: Path) -> pa.Table | None:
    """All rows of a merged file; None if it is damaged, or a newer version wrote it."""
    try:
        with parquet.unreadable_as_error(part):
            file = pq.ParquetFile(part, page_checksum_verification=True)
            parquet.require_known_columns(file.schema_arrow, layout.MERGED_SCHEMA)
            return cast_to_schema(file.read(), layout.MERGED_SCHEMA)
    except parquet.NotRowsError:
        return None


def _batches(
    paths: list[Path], until: float, merge: Merge, on_progress: Callable[[int, int], None]
) -> Iterator[tuple[str, _Batch]]:
    """Reads files written until then, in the order of their names; yields batches with their folder's name.

    Files that cannot be merged are added to `merge.left`.
    """
    paths = sorted(path for path in paths if _modified_at(path) <= until)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(paths), _BATCH_FILES):
            places: dict[str, list[_Source]] = {}
            chunk = paths[start : start + _BATCH_FILES]
            for path, source in zip(chunk, pool.map(_source_or_reason, chunk), strict=True):
                if isinstance(source, str):
                    merge.left[path] = source
                elif len(source.table):
                    places.setdefault(_place(source.table), []).append(source)
            for place, sources in places.items():
                yield place, _batch(sources)
            on_progress(start + len(chunk), len(paths))


def _batch(sources: list[_Source]) -> _Batch:
    """The sources' rows as one table: thousands of tables of one row take a hundred times the memory."""
    table = pa.concat_tables([source.table for source in sources])
    for number, column in enumerate(layout.SOURCES):
        values = [source.origin[number] for source in sources for _ in range(len(source.table))]
        table = table.append_column(column, pa.array(values, pa.string()))
    return _Batch([(source.path, source.stamp) for source in sources], table.combine_chunks())


def _modified_at(path: Path) -> float:
    """When the file was last written; infinity if it is gone."""
    try:
        return path.lstat().st_mtime
    except FileNotFoundError:
        return math.inf


def _source_or_reason(path: Path) -> _Source | str:
    """A single file with its rows, or the reason why it must stay as it is."""
    try:
        with parquet.unreadable_as_error(path):
            parquet.require_regular_file(path)
            if not layout.is_text(path.name):
                raise parquet.NotRowsError("its name is no text")
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_size > _MOST_FILE_BYTES:
                    raise parquet.NotRowsError(f"{status.st_size} bytes, too large for a trial's row")
                content = file.read()
            parquet_file = parquet.open_checked(path, pa.BufferReader(content))
            held = parquet_file.schema_arrow
            parquet.require_known_columns(held, SCHEMA)
            rows = parquet.require_valid_values(parquet_file.read(use_threads=False))
            version = (held.metadata or {}).get(b"schema_version", b"").decode()
            origin = (path.name, layout.digest(content), version)
            return _Source(path, _stamp(status), origin, cast_to_schema(rows, SCHEMA))
    except (parquet.NotRowsError, parquet.VanishedError) as error:
        return str(error)


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    """Tells a file from another that was written under its name later."""
    return status.st_ino, status.st_size, status.st_mtime_ns


def _place(table: pa.Table) -> str:
    """The name of the folder that the rows are merged in: their model's."""
    models = pc.unique(table["model"]).to_pylist()
    return layout.place_of(models[0] if len(models) == 1 else "several models")


def _write_part(folder: Path, place: str, batches: list[_Batch], merge: Merge) -> None:
    """Writes one merged file for these batches and the small merged files; then deletes what it replaces."""
    target = folder / layout.MERGED / place
    target.mkdir(parents=True, exist_ok=True)
    small = {part: table for part in sorted(target.glob("part-*.parquet")) if (table := _read_if_small(part))}
    table = pa.concat_tables([*small.values(), *(batch.table for batch in batches)]).sort_by(_ORDER)
    replaces = {"replaces": json.dumps([part.name for part in small])}
    table = table.combine_chunks().replace_schema_metadata({**(SCHEMA.metadata or {}), **replaces})
    part = target / f"part-{secrets.token_hex(8)}.parquet"
    hidden = target / f".{part.name}.tmp"
    try:
        with hidden.open("wb") as file:
            pq.write_table(
                table, file, row_group_size=_GROUP_ROWS, compression="zstd", write_page_checksum=True
            )
            file.flush()
            os.fsync(file.fileno())
        read_back = _read_whole(hidden)
        if read_back is None or not same_rows(read_back, table):
            raise OSError(f"{hidden}: does not read as it was written; nothing was deleted")
        hidden.replace(part)
    finally:
        hidden.unlink(missing_ok=True)
    for changed in (target, target.parent, folder):
        flush_dir(changed)
    files = [file for batch in batches for file in batch.files]
    _delete(files, list(small))
    merge.files += len(files)
    merge.rows += sum(len(batch.table) for batch in batches)
    merge.parts.append(part)


def _read_if_small(part: Path) -> pa.Table | None:
    """The rows of a merged file that is small enough to be merged again; None if it is not, or damaged."""
    try:
        rows = pq.read_metadata(part).num_rows
    except (pa.ArrowException, OSError):
        return None
    return _read_whole(part) if rows < _PART_ROWS // 2 else None


def _delete(files: list[tuple[Path, tuple[int, int, int]]], parts: list[Path]) -> None:
    """Deletes single files, unless they were written anew since they were read, and merged files."""
    for path, stamp in files:
        try:
            if _stamp(path.stat()) == stamp:
                path.unlink()
        except FileNotFoundError:
            continue
    for part in parts:
        part.unlink(missing_ok=True)


def same_rows(one: pa.Table, other: pa.Table) -> bool:
    """Whether two tables hold the same bits: unlike in `pa.Table.equals`, a NaN equals itself."""
    if one.column_names != other.column_names or len(one) != len(other):
        return False
    pairs = zip(one.columns, other.columns, strict=True)
    return all(_same_bits(a.combine_chunks(), b.combine_chunks()) for a, b in pairs)


def _same_bits(one: pa.Array, other: pa.Array) -> bool:
    if one.type != other.type or len(one) != len(other) or not one.is_valid().equals(other.is_valid()):
        return False
    if pa.types.is_list(one.type):
        lengths = pc.list_value_length(one).equals(pc.list_value_length(other))
        return lengths and _same_bits(one.flatten(), other.flatten())
    if pa.types.is_struct(one.type):
        return all(_same_bits(a, b) for a, b in zip(one.flatten(), other.flatten(), strict=True))
    if pa.types.is_floating(one.type):
        return bool(one.view(pa.int64()).equals(other.view(pa.int64())))
    return bool(one.equals(other))
