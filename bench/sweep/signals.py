"""What Ctrl-C and a request to end mean to a sweep.

Ctrl-C once: the trial that runs is finished, its row is written, and no other begins. Twice: it is ended
now. SIGTERM and SIGHUP (a terminal that closes) are like the second. Rows that are there stay in each case.
"""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType


class EndedBySignal(KeyboardInterrupt):
    """The system, or somebody, asked this process to end; `number` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class StopRequest:
    """Whether a sweep was asked to stop; `install` gives the signals of this process that meaning."""

    def __init__(self) -> None:
        self._installed = False
        self._asked = False

    def install(self, *, door: bool, patient: bool = True) -> None:
        """Installs the handlers, once; in a thread that is not the first, nothing changes.

        Args:
            door: whether this is the process that a person started. A launcher's own processes keep the
                launcher's handlers of SIGTERM and SIGHUP, and they say nothing.
            patient: whether the first Ctrl-C lets the trial end; not where trials run on other machines.
        """
        if self._installed or threading.current_thread() is not threading.main_thread():
            return
        self._installed = True
        if patient:
            signal.signal(signal.SIGINT, self._announce_and_note if door else self._note)
        if door:
            for number in (signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, _end)

    def check(self) -> None:
        """To be called before a trial begins, and while one waits.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed while another one ran.
        """
        if self._asked:
            raise KeyboardInterrupt

    def _announce_and_note(self, number: int, frame: FrameType | None) -> None:
        if not self._asked:
            print(
                "\nbench/run.py: the trial that runs is finished first, then the sweep stops; "
                "Ctrl-C again stops it now",
                file=sys.stderr,
                flush=True,
            )
        self._note(number, frame)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True


def _end(number: int, _frame: FrameType | None) -> None:
    raise EndedBySignal(number)
