"""A row's place on disk, taken before its trial begins: a disk that fills up meanwhile cannot lose it.

The place is a hidden file, as large as any row, locked while its process lives. The row is written into
it, and it is renamed when whole: readers of the folder never meet half a file.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

ROW_BYTES = 2**18  # ten times the largest row seen (200 steps, 64 ranks)
_SETTLED_SECONDS = 60.0  # a place may have been made and not locked yet


class Place:
    """A place under `results_dir/trials` for the row `name`; to be entered, and given up on leaving.

    Raises:
        OSError: there is no room for a row, or the folder cannot be written to.
    """

    def __init__(self, results_dir: Path, name: str) -> None:
        self.target = results_dir / "trials" / f"{name}.parquet"
        self.target.parent.mkdir(parents=True, exist_ok=True)
        self._hidden = self.target.with_name(
            f".{name}.{os.getpid()}.tmp"
        )  # pandas passes over hidden names
        self._file = os.open(self._hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            with contextlib.suppress(OSError):  # file systems without locks
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.posix_fallocate(self._file, 0, ROW_BYTES)
        except OSError:
            self.give_up()
            raise

    def keep(self, content: bytes) -> Path:
        """Makes `content` the row's file, and says where it is.

        Where that fails, whatever the reason, the row is kept in the system's folder for temporary files.

        Raises:
            OSError: the row could not be written to its place; the message says where it was kept instead.
        """
        try:
            os.pwrite(self._file, content, 0)
            os.ftruncate(self._file, len(content))
            os.fsync(self._file)
            self._hidden.rename(self.target)
            _settle(self.target.parent)
        except OSError as error:
            refuge = Path(tempfile.mkdtemp(prefix="bench-row-")) / self.target.name
            refuge.write_bytes(content)
            text = f"{self.target}: {error.strerror}; the row was kept: move {refuge} there"
            raise OSError(error.errno, text) from error
        return self.target

    def give_up(self) -> None:
        """Leaves nothing behind but the row, if it was kept."""
        with contextlib.suppress(OSError):
            os.close(self._file)
        with contextlib.suppress(OSError):
            self._hidden.unlink()

    def __enter__(self) -> Place:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.give_up()


def _settle(folder: Path) -> None:
    """The renaming survives a loss of power too."""
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def abandoned(results_dir: Path) -> list[Path]:
    """Places whose process is gone without having given them up: it was killed."""
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
