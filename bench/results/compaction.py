"""Many small files of trials merged into few large ones, so that a results folder can grow for years.

What holds at any moment, whatever dies: each row is in some file, and `layout.listing` finds it once. A
merged file is written under a hidden name, read back and compared, flushed to the disk, renamed, and only
then are the files that it stands for deleted. A merge that died in between leaves both; readers of ours
pass over what was merged, and the next merge deletes it. Plain pandas sees such rows twice until then.

Rows stay as they were: a file with a column or a type that this version does not know is left alone, and so
is one that cannot be read. Memory holds at most `_HELD` rows, whatever the folder holds.
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

from bench.results import layout, parquet
from bench.paths import flush_dir
from bench.results.schema import SCHEMA, cast_to_schema

_PART = 10_000  # rows of a merged file; one with less than half is merged again with what comes
_GROUP = 2_000  # rows of a row group, the least that a filtered reader decodes
_HELD = 30_000  # rows in memory, a few kilobytes each
_TOGETHER = 500  # files looked at before anything is written
_LARGEST = 2**26  # bytes of a file of trials; beyond it no row of ours
_DAY_SECONDS = 86_400
_ORDER = [("sweep_id", "ascending"), ("started_at", "ascending")]  # a sweep is in few row groups


class BusyError(RuntimeError):
    """Another merge is at work in this folder."""


@dataclass
class Merge:
    """What a merge did.

    Attributes:
        files: how many files of trials were merged.
        rows: how many rows they held.
        parts: the merged files that were written.
        left: files that were left as they are, and why.
    """

    files: int = 0
    rows: int = 0
    parts: list[Path] = field(default_factory=list)
    left: dict[Path, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Source:
    """A file of trials, and its rows."""

    path: Path
    stamp: tuple[int, int, int]  # another file of this name is not deleted
    said: tuple[str, str, str]  # for the columns of `layout.SOURCES`
    table: pa.Table


@dataclass
class _Batch:
    """Files of trials whose rows go into one merged file; `table` has `layout.MERGED_SCHEMA`."""

    files: list[tuple[Path, tuple[int, int, int]]]
    table: pa.Table


def compact(
    results_dir: Path,
    older_than_days: float = 0.0,
    on_progress: Callable[[int, int], None] = lambda _read, _of: None,
) -> Merge:
    """Merges the files of trials under `results_dir/trials`; trials may run and write meanwhile.

    Args:
        results_dir: the folder that holds `trials`.
        older_than_days: files that were written later are left alone.
        on_progress: told how many files have been read, and of how many.

    Raises:
        BusyError: another merge is at work.
        OSError: the folder cannot be read or written to.
    """
    folder = results_dir / "trials"
    done = Merge()
    with _alone(folder):
        _tidy(folder)
        until = time.time() - older_than_days * _DAY_SECONDS if older_than_days else math.inf
        waiting: dict[str, list[_Batch]] = {}
        rows: Counter[str] = Counter()
        for place, batch in _batches(layout.single_files(folder), until, done, on_progress):
            waiting.setdefault(place, []).append(batch)
            rows[place] += len(batch.table)
            if rows.total() >= _HELD or rows[place] >= _PART:
                largest = max(rows, key=lambda place: rows[place])
                del rows[largest]
                _write(folder, largest, waiting.pop(largest), done)
        for place, batches in waiting.items():
            _write(folder, place, batches, done)
    return done


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One merge at a time; the lock ends with its process, however it ends. Trials take no lock."""
    with (folder / ".merge.lock").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(f"another merge is at work in {folder}") from None
        yield


def _tidy(folder: Path) -> None:
    """Deletes what a merge that died has left: half a file, and files that a merged file stands for."""
    for torn in (folder / layout.MERGED).glob("*/.*.tmp"):
        torn.unlink()
    single = layout.single_files(folder)
    for part in layout.merged_files(folder):
        try:
            names = layout.replaces(part)  # anybody's text: only a file beside it is meant
        except (pa.ArrowException, OSError, ValueError):
            continue
        beside = {part.parent / Path(name).name for name in names} - {part}
        stale = [path for path in beside if path.is_file()] + list(layout.leftovers(single, [part]))
        if stale and _whole(part) is not None:
            for path in stale:
                path.unlink(missing_ok=True)


def _whole(part: Path) -> pa.Table | None:
    """All of a merged file; None if something in it is torn, or not of this version."""
    try:
        with parquet.unreadable_as_error(part):
            file = pq.ParquetFile(part, page_checksum_verification=True)
            parquet.require_known_columns(file.schema_arrow, layout.MERGED_SCHEMA)
            return cast_to_schema(file.read(), layout.MERGED_SCHEMA)
    except parquet.NotRowsError:
        return None


def _batches(
    paths: list[Path], until: float, done: Merge, on_progress: Callable[[int, int], None]
) -> Iterator[tuple[str, _Batch]]:
    """Files in the order of their names, by place, a few at a time; those that must stay are noted."""
    paths = sorted(path for path in paths if _written(path) <= until)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(paths), _TOGETHER):
            places: dict[str, list[_Source]] = {}
            some = paths[start : start + _TOGETHER]
            for path, source in zip(some, pool.map(_source, some), strict=True):
                if isinstance(source, str):
                    done.left[path] = source
                elif len(source.table):
                    places.setdefault(_place(source.table), []).append(source)
            for place, sources in places.items():
                yield place, _batch(sources)
            on_progress(start + len(some), len(paths))


def _batch(sources: list[_Source]) -> _Batch:
    """Their rows as one table: thousands of tables of one row take a hundred times the memory."""
    table = pa.concat_tables([source.table for source in sources])
    for number, column in enumerate(layout.SOURCES):
        values = [source.said[number] for source in sources for _ in range(len(source.table))]
        table = table.append_column(column, pa.array(values, pa.string()))
    return _Batch([(source.path, source.stamp) for source in sources], table.combine_chunks())


def _written(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except FileNotFoundError:
        return math.inf


def _source(path: Path) -> _Source | str:
    """A file of trials, or why it must stay as it is."""
    try:
        with parquet.unreadable_as_error(path):
            parquet.require_regular_file(path)
            if not layout.is_text(path.name):
                raise parquet.NotRowsError("its name is no text")
            with path.open("rb") as file:
                about = os.fstat(file.fileno())
                if about.st_size > _LARGEST:
                    raise parquet.NotRowsError(f"{about.st_size} bytes, too large for a trial's row")
                content = file.read()
            opened = parquet.open_checked(path, pa.BufferReader(content))
            held = opened.schema_arrow
            parquet.require_known_columns(held, SCHEMA)
            table = cast_to_schema(parquet.require_valid_values(opened.read(use_threads=False)), SCHEMA)
            version = (held.metadata or {}).get(b"schema_version", b"").decode()
            return _Source(path, _stamp(about), (path.name, layout.digest(content), version), table)
    except (parquet.NotRowsError, parquet.VanishedError) as error:
        return str(error)


def _stamp(about: os.stat_result) -> tuple[int, int, int]:
    return about.st_ino, about.st_size, about.st_mtime_ns


def _place(table: pa.Table) -> str:
    models = pc.unique(table["model"]).to_pylist()
    return layout.place_of(models[0] if len(models) == 1 else "several models")


def _write(folder: Path, place: str, batches: list[_Batch], done: Merge) -> None:
    """One merged file in place of these, and of what small ones there are; then those are deleted."""
    target = folder / layout.MERGED / place
    target.mkdir(parents=True, exist_ok=True)
    small = {part: table for part in sorted(target.glob("part-*.parquet")) if (table := _small(part))}
    table = pa.concat_tables([*small.values(), *(batch.table for batch in batches)]).sort_by(_ORDER)
    said = {"replaces": json.dumps([part.name for part in small])}
    table = table.combine_chunks().replace_schema_metadata({**(SCHEMA.metadata or {}), **said})
    part = target / f"part-{secrets.token_hex(8)}.parquet"
    hidden = target / f".{part.name}.tmp"
    try:
        with hidden.open("wb") as file:
            pq.write_table(table, file, row_group_size=_GROUP, compression="zstd", write_page_checksum=True)
            file.flush()
            os.fsync(file.fileno())
        again = _whole(hidden)
        if again is None or not same_rows(again, table):
            raise OSError(f"{hidden}: does not read as it was written; nothing was deleted")
        hidden.replace(part)
    finally:
        hidden.unlink(missing_ok=True)
    for changed in (target, target.parent, folder):
        flush_dir(changed)
    files = [file for batch in batches for file in batch.files]
    _delete(files, list(small))
    done.files += len(files)
    done.rows += sum(len(batch.table) for batch in batches)
    done.parts.append(part)


def _small(part: Path) -> pa.Table | None:
    """A merged file that is worth merging again; None if it is not, or cannot be."""
    try:
        rows = pq.read_metadata(part).num_rows
    except (pa.ArrowException, OSError):
        return None
    return _whole(part) if rows < _PART // 2 else None


def _delete(files: list[tuple[Path, tuple[int, int, int]]], parts: list[Path]) -> None:
    for path, stamp in files:
        try:
            if _stamp(path.stat()) == stamp:
                path.unlink()
        except FileNotFoundError:
            continue
    for part in parts:
        part.unlink(missing_ok=True)


def same_rows(one: pa.Table, other: pa.Table) -> bool:
    """Whether two tables hold the same bits; unlike to `equals`, a NaN is itself."""
    if one.column_names != other.column_names or len(one) != len(other):
        return False
    pairs = zip(one.columns, other.columns, strict=True)
    return all(_same(a.combine_chunks(), b.combine_chunks()) for a, b in pairs)


def _same(one: pa.Array, other: pa.Array) -> bool:
    if one.type != other.type or len(one) != len(other) or not one.is_valid().equals(other.is_valid()):
        return False
    if pa.types.is_list(one.type):
        lengths = pc.list_value_length(one).equals(pc.list_value_length(other))
        return lengths and _same(one.flatten(), other.flatten())
    if pa.types.is_struct(one.type):
        return all(_same(a, b) for a, b in zip(one.flatten(), other.flatten(), strict=True))
    if pa.types.is_floating(one.type):
        return bool(one.view(pa.int64()).equals(other.view(pa.int64())))
    return bool(one.equals(other))
