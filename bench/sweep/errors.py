"""The exceptions that end a sweep from inside Hydra, and why none of them is an `Exception`.

Hydra calls jobs and launchers, and takes each `Exception` of theirs for a crash of the program: `run_job`
(hydra/core/utils.py) keeps it as the job's result, and `run_and_report` (hydra/_internal/utils.py) prints a
traceback and how to get a longer one, and exits. But these exceptions are no crash: their message is for
the person who gave the command. As a `BaseException` each passes through Hydra to `main.py`, which prints
the message and chooses the exit code.
"""

from __future__ import annotations


class NotWrittenError(BaseException):
    """A row cannot be written, and the sweep cannot go on; the message says why."""


class RefusedError(BaseException):
    """A launcher cannot submit the jobs; the message is the scheduler's."""


class BudgetSpentError(BaseException):
    """The sweep's time is over: no other trial begins."""


class EndedBySignal(KeyboardInterrupt):
    """The system, or somebody, asked this process to end; `number` is the signal's.

    It is a KeyboardInterrupt, so that whatever cleans up after Ctrl-C cleans up after it too.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
