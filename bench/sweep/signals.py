"""What Ctrl-C and a request to end mean to a sweep.

Ctrl-C once while a trial runs: it is finished, its row is written, and no other trial begins. Twice: the
running trial is ended now. While no trial runs, the first Ctrl-C ends the sweep. SIGTERM and SIGHUP (a
terminal that closes) end the running trial at once. Rows that were written stay in each case.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from bench.sweep.errors import EndedBySignal


class StopRequest:
    """Whether a sweep was asked to stop; `install` makes the signals of this process say so."""

    def __init__(self) -> None:
        self._installed = False
        self._asked = False
        self._running = False
        self._before: Any = signal.default_int_handler

    def install(self, *, door: bool, patient: bool = True) -> None:
        """Installs the handlers, once; in a thread that is not the first, nothing changes.

        Args:
            door: whether this is the process that a person started. Processes that a launcher started keep
                the launcher's handlers of SIGTERM and SIGHUP, and print nothing.
            patient: whether the first Ctrl-C lets the trial end; not where trials run on other machines.
        """
        if self._installed or threading.current_thread() is not threading.main_thread():
            return
        self._installed = True
        if patient:
            before = signal.getsignal(signal.SIGINT)
            self._before = before if callable(before) else signal.default_int_handler
            signal.signal(signal.SIGINT, self._announce_and_record if door else self._record)
        if door:
            for number in (signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, _end)

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """While entered a trial runs, which the first Ctrl-C does not end."""
        outer, self._running = self._running, True
        try:
            yield
        finally:
            self._running = outer

    def check(self) -> None:
        """To be called before a trial begins, and while it waits.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed while another trial ran.
        """
        if self._asked:
            raise KeyboardInterrupt

    def _announce_and_record(self, number: int, frame: FrameType | None) -> None:
        if not self._running:
            self._before(number, frame)
        if not self._asked:
            print(
                "\nbench/run.py: the trial that runs is finished first, then the sweep stops; "
                "Ctrl-C again stops it now",
                file=sys.stderr,
                flush=True,
            )
        self._record(number, frame)

    def _record(self, _number: int, _frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True


def _end(number: int, _frame: FrameType | None) -> None:
    raise EndedBySignal(number)
