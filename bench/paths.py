"""Paths: this checkout or installed package, and results folders on a disk or behind a URL of fsspec's.

A folder behind a URL (s3://, gs://, memory://) is a `UPath` (universal-pathlib, the extra `remote`), which
is used like a `Path`. This module imports nothing of the project: every room may use it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, cast

ROOT = Path(__file__).resolve().parents[1]  # where Python finds the package `bench`
IS_CHECKOUT = (ROOT / "pyproject.toml").is_file()
# What comes with the code: conf/, analysis/, results/reference/. pyproject.toml says what a wheel holds.
SHIPPED = ROOT if IS_CHECKOUT else ROOT / "bench" / "shipped"
RESULTS = (ROOT if IS_CHECKOUT else Path.cwd()) / "results"
# Where calibrations of devices lie (bench/calibrate.py): this machine's, and those that were contributed.
CALIBRATIONS = (RESULTS / "calibrations", SHIPPED / "conf" / "gpu")


def command(door: str) -> list[str]:
    """The words that start a door such as `run`, here: its file in a checkout, else the console command."""
    return ["python", f"bench/{door}.py"] if IS_CHECKOUT else ["memory-bench", door]


def results_place(text: str) -> Path:
    """The folder that `text` names: a `Path` for a path or a file:// URL, a `UPath` for any other URL.

    Raises:
        ValueError: fsspec knows no such protocol.
        ImportError: the extra `remote`, or the package that this protocol needs, is not installed.
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
    # Other machines write there too, so a cached listing may be out of date.
    return cast(Path, UPath(text, use_listings_cache=False))


def local_dir(folder: Path) -> Path:
    """The folder on this disk for the logs and reports of a results folder.

    It is the folder itself, or one below results/remote/ if the folder is behind a URL.
    """
    if not is_remote(folder):
        return folder
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", str(folder)).strip(".-")
    return RESULTS / "remote" / name


def is_remote(path: Path) -> bool:
    """Whether the path is behind a URL."""
    return not isinstance(path, Path)


def parquet_source(path: Path) -> Any:
    """What pyarrow reads the file from: its path, or, behind a URL, all its bytes in one request.

    Raises:
        OSError: the file cannot be read.
    """
    if not is_remote(path):
        return path
    import pyarrow as pa  # not at the top: the commands must start fast

    return pa.BufferReader(path.read_bytes())


def names_in(folder: Path) -> list[str]:
    """The names in a folder, in no order; behind a URL, of files only. Empty if there is no such folder."""
    try:
        if is_remote(folder):
            remote: Any = folder
            entries = remote.fs.ls(remote.path, detail=True)
            return [entry["name"].rpartition("/")[2] for entry in entries if entry["type"] == "file"]
        with os.scandir(folder) as scan:
            return [entry.name for entry in scan]
    except (FileNotFoundError, NotADirectoryError):
        return []


def flush_dir(folder: Path) -> None:
    """Writes the folder to the disk: only then do the names in it survive a loss of power.

    Raises:
        OSError: the folder cannot be opened or written to the disk.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
