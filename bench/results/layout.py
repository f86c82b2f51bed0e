"""Which files under `trials/` hold rows, and which of them stand for others.

    trials/NAME.parquet                              one row, as a trial left it
    trials/0-compacted/MODEL-HASH/part-ID.parquet    many rows of one model, merged (`dataset.py`)

A merged file says itself what it stands for: of each row the name and the digest of the file that it came
in (two columns), and in its metadata the merged files that it replaces. So nothing is lost or read twice at
whatever moment a merge is looked at, or dies. The folder's name makes it the first that plain pandas meets:
it takes the columns of all files from the first. No name holds a `=`, which pandas would take for a column.
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

_LONGEST = 60  # letters of a model in a folder's name


@dataclass
class Listing:
    """The files that hold each row once.

    Attributes:
        single: files of trials.
        merged: files of many trials.
        strange: merged files whose footers cannot be read, and why.
    """

    single: list[Path]
    merged: list[Path]
    strange: dict[Path, str] = field(default_factory=dict)


def listing(folder: Path, start: str = "", end: str = "", without: Container[Path] = ()) -> Listing:
    """What to read for a folder's rows; of one sweep or trial, if asked (`merged` holds others' too).

    Files of trials are listed first: a row that is merged meanwhile is then in a merged file. Those are
    listed until nothing changes, because a folder that changes while it is listed may show neither the old
    file nor the new one.

    Args:
        folder: that of the files of trials.
        start, end: only files of trials whose names (without .parquet) start and end so.
        without: merged files that cannot be read, and so stand for nothing.
    """
    single = single_files(folder, start, end)
    before, merged = None, merged_files(folder)
    while merged != before:
        before, merged = merged, merged_files(folder)
    found = Listing(single, [])
    replaced: set[Path] = set()
    for path in merged:
        try:
            if path not in without:
                replaced |= {path.parent / name for name in replaces(path)}
                found.merged.append(path)
        except (pa.ArrowException, OSError, ValueError) as error:
            found.strange[path] = str(error).splitlines()[0]
    found.merged = [path for path in found.merged if path not in replaced]
    if single and found.merged:
        merged_already = set(leftovers(single, found.merged))
        found.single = [path for path in single if path not in merged_already]
    return found


def single_files(folder: Path, start: str = "", end: str = "") -> list[Path]:
    """The files of trials, readable or not, in no order; those whose names start and end so."""
    ours = (
        name
        for name in paths.names_in(folder)
        if name.endswith(f"{end}.parquet") and name[0] not in "._" and name.startswith(start)
    )
    return [folder / name for name in ours]


def merged_files(folder: Path) -> list[Path]:
    """The merged files, those that another one replaces among them."""
    return sorted((folder / MERGED).glob("*/part-*.parquet"), key=str)


def place_of(model: str | None) -> str:
    """The folder of a model's merged rows; a label is anybody's text, and stays one harmless word."""
    label = "" if model is None else model
    word = re.sub(r"[^A-Za-z0-9.-]+", "-", label)[:_LONGEST].strip(".-") or "model"
    return f"{word}-{hashlib.blake2b(label.encode(), digest_size=4).hexdigest()}"


def replaces(path: Path) -> set[str]:
    """The names of the merged files that this one replaces."""
    said = (pq.read_metadata(paths.parquet_source(path)).metadata or {}).get(b"replaces", b"[]")
    names = json.loads(said)
    if not isinstance(names, list):
        raise ValueError("replaces no list of files")
    return {str(name) for name in names}


def leftovers(single: list[Path], merged: list[Path]) -> Iterator[Path]:
    """Those files of trials whose very bytes were merged: a merge died before it deleted them."""
    by_name = {path.name: path for path in single if is_text(path.name)}
    names = pa.array(list(by_name), pa.string())
    for part in merged:
        for name, digests in _merged_from(part, names).items():
            try:
                if digest(by_name[name].read_bytes()) in digests:
                    yield by_name[name]
            except OSError:  # gone, or unreadable: whoever reads it will say so
                continue


def _merged_from(part: Path, names: pa.Array) -> dict[str, set[str]]:
    """The digests of the files of these names that were merged into this one."""
    try:
        table = pq.ParquetFile(paths.parquet_source(part)).read(columns=SOURCES.names[:2])
        table = table.filter(pc.is_in(table["source_file"], names))
        lines: list[dict[str, Any]] = table.to_pylist()
    except (pa.ArrowException, OSError, ValueError, KeyError):
        return {}  # whoever reads it will say so
    found: dict[str, set[str]] = {}
    for line in lines:
        found.setdefault(line["source_file"], set()).add(line["source_digest"])
    return found


def is_text(name: str) -> bool:
    """Whether a file's name can be kept in a column: names are bytes, and need not be UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def digest(content: bytes) -> str:
    """Tells a file's bytes from another's of its name."""
    return hashlib.blake2b(content, digest_size=8).hexdigest()
