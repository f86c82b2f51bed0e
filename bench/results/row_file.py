"""A row's file, whose disk space is reserved before its trial begins: a disk that fills up cannot lose it.

The reservation is a hidden file, larger than any row, locked while its process lives. The row is written
into it, and the file is renamed once it is complete: readers of the folder never see half a file. Behind a
URL nothing is reserved: an object store writes the whole object or nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import time
from pathlib import Path
from types import TracebackType

from bench import paths

ROW_BYTES = 2**18  # ten times the largest row seen (200 steps, 64 ranks)
_SETTLED_SECONDS = 60.0  # a younger hidden file may exist and not be locked yet


class RowFile:
    """The file of the row `name` under `results_dir/trials`: a context manager that reserves its space.

    Raises:
        OSError: the disk has no space for a row, or the folder cannot be written to.
    """

    def __init__(self, results_dir: Path, name: str) -> None:
        self.target = results_dir / "trials" / f"{name}.parquet"
        self._file: int | None = None
        if paths.is_remote(results_dir):
            return
        self.target.parent.mkdir(parents=True, exist_ok=True)
        self._hidden = self.target.with_name(f".{name}.{os.getpid()}.tmp")  # readers skip hidden files
        self._file = os.open(self._hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            with contextlib.suppress(OSError):  # some file systems have no locks
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.posix_fallocate(self._file, 0, ROW_BYTES)
        except OSError:
            self.give_up()
            raise

    def keep(self, content: bytes) -> Path:
        """Writes `content` as the row's file and returns the file's path.

        If that fails, the row is written to a new folder among the system's temporary files instead.

        Raises:
            OSError: the row could not be written to its file; the message says where it was kept instead.
        """
        try:
            self._write(content)
        except OSError as error:
            refuge = Path(tempfile.mkdtemp(prefix="bench-row-")) / self.target.name
            refuge.write_bytes(content)
            message = f"{self.target}: {error.strerror}; the row was kept: move {refuge} there"
            raise OSError(error.errno, message) from error
        return self.target

    def _write(self, content: bytes) -> None:
        if self._file is None:
            self.target.write_bytes(content)
            return
        os.pwrite(self._file, content, 0)
        os.ftruncate(self._file, len(content))
        os.fsync(self._file)
        self._hidden.rename(self.target)
        paths.flush_dir(self.target.parent)

    def give_up(self) -> None:
        """Removes the reservation; a row that was written stays."""
        if self._file is None:
            return
        with contextlib.suppress(OSError):
            os.close(self._file)
        with contextlib.suppress(OSError):
            self._hidden.unlink()

    def __enter__(self) -> RowFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.give_up()


def abandoned_files(results_dir: Path) -> list[Path]:
    """Hidden files under `results_dir/trials` whose process was killed before it removed them."""
    return [path for path in sorted((results_dir / "trials").glob(".*.tmp")) if _is_abandoned(path)]


def _is_abandoned(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            if time.time() - os.fstat(file.fileno()).st_mtime < _SETTLED_SECONDS:
                return False
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except OSError:
        return False
