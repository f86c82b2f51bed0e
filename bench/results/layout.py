"""Which files under `trials/` hold rows, and which of them replace others.

    trials/NAME.parquet                              one row, as its trial wrote it
    trials/0-compacted/MODEL-HASH/part-ID.parquet    many rows of one model, merged (compaction.py)

A merged file itself says what it replaces: two columns hold the name and the digest of the file that each
row came from, and its metadata names the merged files that it replaces. So no row is lost or read twice,
whenever a merge is looked at or killed. The folder's name begins with 0 so that plain pandas reads it
first, and takes the columns of all files from it. No name holds a `=`, which pandas would read as a column.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bench import paths
from bench.results.schema import SCHEMA

MERGED = "0-compacted"
SOURCES = pa.schema(
    [("source_file", pa.string()), ("source_digest", pa.string()), ("source_schema_version", pa.string())]
)
MERGED_SCHEMA = pa.schema([*SCHEMA, *SOURCES])

_LABEL_LETTERS = 60  # of a model's label in a folder's name


@dataclass
class Listing:
    """The files that together hold each row once.

    Attributes:
        single: files of one row each.
        merged: files of many rows.
        unreadable: merged files whose footers cannot be read, each with the reason.
    """

    single: list[Path]
    merged: list[Path]
    unreadable: dict[Path, str] = field(default_factory=dict)


def listing(folder: Path, start: str = "", end: str = "", without: Container[Path] = ()) -> Listing:
    """The files to read for a folder's rows.

    Single files are listed first: a row that is merged meanwhile is then found in a merged file. Merged
    files are listed until two lists agree, because a folder that changes while it is listed may show
    neither the old file nor the new one.

    Args:
        folder: the folder of single files, like `trials`.
        start, end: only single files whose names (without .parquet) start and end so; merged files are
            listed whatever rows they hold.
        without: merged files that are known to be unreadable, and so replace nothing.
    """
    single = single_files(folder, start, end)
    before, merged = None, merged_files(folder)
    while merged != before:
        before, merged = merged, merged_files(folder)
    result = Listing(single, [])
    replaced: set[Path] = set()
    for path in merged:
        try:
            if path not in without:
                replaced |= {path.parent / name for name in replaces(path)}
                result.merged.append(path)
        except (pa.ArrowException, OSError, ValueError) as error:
            result.unreadable[path] = str(error).splitlines()[0]
    result.merged = [path for path in result.merged if path not in replaced]
    if single and result.merged:
        merged_already = set(leftovers(single, result.merged))
        result.single = [path for path in single if path not in merged_already]
    return result


def single_files(folder: Path, start: str = "", end: str = "") -> list[Path]:
    """Files of one row each, in no order, readable or not, whose names start and end so."""
    names = (
        name
        for name in paths.names_in(folder)
        if name.endswith(f"{end}.parquet") and name[0] not in "._" and name.startswith(start)
    )
    return [folder / name for name in names]


def merged_files(folder: Path) -> list[Path]:
    """All merged files, sorted, also those that another one replaces."""
    return sorted((folder / MERGED).glob("*/part-*.parquet"), key=str)


def place_of(model: str | None) -> str:
    """The name of the folder for a model's merged rows, safe whatever the model's label holds."""
    label = "" if model is None else model
    safe = re.sub(r"[^A-Za-z0-9.-]+", "-", label)[:_LABEL_LETTERS].strip(".-") or "model"
    return f"{safe}-{hashlib.blake2b(label.encode(), digest_size=4).hexdigest()}"


def replaces(path: Path) -> set[str]:
    """The names of the merged files that this one replaces.

    Raises:
        pa.ArrowException, OSError, ValueError: the file or what it says cannot be read.
    """
    metadata = pq.read_metadata(paths.parquet_source(path)).metadata or {}
    names = json.loads(metadata.get(b"replaces", b"[]"))
    if not isinstance(names, list):
        raise ValueError("replaces no list of files")
    return {str(name) for name in names}


def leftovers(single: list[Path], merged: list[Path]) -> Iterator[Path]:
    """The single files whose bytes are in a merged file: a merge was killed before it deleted them."""
    by_name = {path.name: path for path in single if is_text(path.name)}
    names = pa.array(list(by_name), pa.string())
    for part in merged:
        for name, digests in _merged_from(part, names).items():
            try:
                if digest(by_name[name].read_bytes()) in digests:
                    yield by_name[name]
            except OSError:  # gone or unreadable: reading its rows reports that
                continue


def _merged_from(part: Path, names: pa.Array) -> dict[str, set[str]]:
    """By name, the digests of those files among `names` that were merged into `part`."""
    try:
        table = pq.ParquetFile(paths.parquet_source(part)).read(columns=SOURCES.names[:2])
        table = table.filter(pc.is_in(table["source_file"], names))
        lines: list[dict[str, Any]] = table.to_pylist()
    except (pa.ArrowException, OSError, ValueError, KeyError):
        return {}  # reading its rows reports the error
    digests: dict[str, set[str]] = {}
    for line in lines:
        digests.setdefault(line["source_file"], set()).add(line["source_digest"])
    return digests


def is_text(name: str) -> bool:
    """Whether a file's name can be stored in a column: names are bytes, which need not be UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def digest(content: bytes) -> str:
    """A short hash of a file's bytes: another file of the same name has another."""
    return hashlib.blake2b(content, digest_size=8).hexdigest()
