"""Where things lie: this checkout, and results folders, on a disk or behind any URL that fsspec knows.

A folder behind a URL (s3://, gs://, memory://) is a `UPath` (universal-pathlib, the extra `remote`), which
is used like a `Path`. Imports nothing of this project.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, cast

ROOT = Path(__file__).resolve().parents[1]


def results_place(text: str) -> Path:
    """The folder of these words, a path or a URL; URLs of files are paths.

    Raises:
        ValueError: fsspec knows no such protocol.
        ImportError: the extra `remote`, or what this protocol needs, is not installed.
    """
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    if "://" not in text:
        return Path(text)
    import fsspec
    from upath import UPath

    known = fsspec.available_protocols()
    if (protocol := text.partition("://")[0]) not in known:
        raise ValueError(f"fsspec knows no {protocol}://")
    # others write there too: what a listing said before is not believed
    return cast(Path, UPath(text, use_listings_cache=False))


def local_dir(folder: Path) -> Path:
    """Where logs and reports of a results folder lie: in itself; of one behind a URL, in results/ here."""
    if not is_remote(folder):
        return folder
    word = re.sub(r"[^A-Za-z0-9.-]+", "-", str(folder)).strip(".-")
    return ROOT / "results" / "remote" / word


def is_remote(path: Path) -> bool:
    """Whether it is behind a URL."""
    return not isinstance(path, Path)


def parquet_source(path: Path) -> Any:
    """What pyarrow reads the file from; behind a URL, its bytes at one request.

    Raises:
        OSError: it cannot be read.
    """
    if not is_remote(path):
        return path
    import pyarrow as pa  # doors start without it

    return pa.BufferReader(path.read_bytes())


def names_in(folder: Path) -> list[str]:
    """The names in a folder, in no order; none if there is no such folder. Behind a URL, those of files."""
    try:
        if is_remote(folder):
            there: Any = folder
            entries = there.fs.ls(there.path, detail=True)
            return [e["name"].rpartition("/")[2] for e in entries if e["type"] == "file"]
        with os.scandir(folder) as found:
            return [entry.name for entry in found]
    except (FileNotFoundError, NotADirectoryError):
        return []


def flush_dir(folder: Path) -> None:
    """Names survive a loss of power only once their folder is on the disk.

    Raises:
        OSError: it cannot be told.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
