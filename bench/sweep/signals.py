"""What Ctrl-C and a request to end mean to a sweep.

Ctrl-C once: the trial that runs is finished, its row is written, and no other begins. Twice: it is ended
now. SIGTERM and SIGHUP (a terminal that closes) are like the second. Rows that are there stay in each case.
"""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType

_arranged = False
_asked = False


class EndedBySignal(KeyboardInterrupt):
    """The system, or somebody, asked this process to end; `number` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def install_handlers(*, door: bool, patient: bool = True) -> None:
    """Gives the signals that meaning in this process; in a thread that is not the first, nothing changes.

    Args:
        door: whether this is the process that a person started. A launcher's own processes keep what the
            launcher arranged for SIGTERM and SIGHUP, and they say nothing.
        patient: whether the first Ctrl-C lets the trial end; not where trials run on other machines.
    """
    global _arranged
    if _arranged or threading.current_thread() is not threading.main_thread():
        return
    _arranged = True
    if patient:
        signal.signal(signal.SIGINT, _announced if door else _quietly)
    if door:
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _end)


def stop_if_asked() -> None:
    """To be called before a trial begins.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed while another one ran.
    """
    if _asked:
        raise KeyboardInterrupt


def _announced(number: int, frame: FrameType | None) -> None:
    if not _asked:
        print(
            "\nbench/run.py: the trial that runs is finished first, then the sweep stops; "
            "Ctrl-C again stops it now",
            file=sys.stderr,
            flush=True,
        )
    _quietly(number, frame)


def _quietly(_number: int, _frame: FrameType | None) -> None:
    global _asked
    if _asked:
        raise KeyboardInterrupt
    _asked = True


def _end(number: int, _frame: FrameType | None) -> None:
    raise EndedBySignal(number)
