"""Where a results folder may be: on a disk, or behind any URL that fsspec knows (s3://, gs://, memory://).

A place behind a URL is a `UPath` (universal-pathlib, the extra `remote`), which is used like a `Path`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, cast

from bench.machine import ROOT


def place(text: str) -> Path:
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


def beside(folder: Path) -> Path:
    """Where logs and reports of a results folder lie: in itself; of one behind a URL, in results/ here."""
    if not remote(folder):
        return folder
    word = re.sub(r"[^A-Za-z0-9.-]+", "-", str(folder)).strip(".-")
    return ROOT / "results" / "remote" / word


def remote(path: Path) -> bool:
    """Whether it is behind a URL."""
    return not isinstance(path, Path)


def source(path: Path) -> Any:
    """What pyarrow reads the file from; behind a URL, its bytes at one request.

    Raises:
        OSError: it cannot be read.
    """
    if not remote(path):
        return path
    import pyarrow as pa  # doors start without it

    return pa.BufferReader(path.read_bytes())


def names(folder: Path) -> list[str]:
    """The names in a folder, in no order; none if there is no such folder. Behind a URL, those of files."""
    try:
        if remote(folder):
            there: Any = folder
            entries = there.fs.ls(there.path, detail=True)
            return [e["name"].rpartition("/")[2] for e in entries if e["type"] == "file"]
        with os.scandir(folder) as found:
            return [entry.name for entry in found]
    except (FileNotFoundError, NotADirectoryError):
        return []


def flush(folder: Path) -> None:
    """Names survive a loss of power only once their folder is on the disk.

    Raises:
        OSError: it cannot be told.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
