"""How a trial can end, and which of several executions of it counts.

`Outcome` is what comes back for a Trial. Imports nothing but the columns' types: the processes that run
trials, and all that reads rows, share these words.
"""

from __future__ import annotations

import traceback as tracebacks
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

from bench.trial.columns import Columns, Hardware

FINISHED = ("ok", "oom", "skipped")  # would end so again
STATUSES = ("ok", "oom", "skipped", "timeout", "error")  # the better first


class CannotExistError(RuntimeError):
    """This architecture does not allow the combination: the trial is skipped, with this reason.

    For what only the built model shows; what a trial's own values show is a rule of `skip_rules.py`.
    """


def counting_executions(executions: Iterable[tuple[Hashable, str]]) -> list[bool]:
    """Whether each execution counts: all but failures whose replicate was executed again and finished.

    Args:
        executions: oldest first; of each a key that identifies its trial and replicate, and its status.
    """
    kept: list[bool] = []
    finished_later: set[Hashable] = set()
    for key, status in reversed(list(executions)):
        if status in FINISHED:
            finished_later.add(key)
        kept.append(status in FINISHED or key not in finished_later)
    return kept[::-1]


@dataclass(frozen=True)
class Outcome:
    """How a trial ended, and what each rank reported.

    `ranks` holds one record of columns for each rank, in the order of ranks.
    """

    status: str
    reason: str | None = None
    traceback: str | None = None
    ranks: list[Columns] = field(default_factory=list)
    hardware: Hardware = field(default_factory=Hardware)
    wall_seconds: float = 0.0


def in_one_line(error: BaseException) -> str:
    """The exception as one line: its first line, which names its type, and its last if it has several."""
    lines = [line.strip() for line in tracebacks.format_exception_only(error)[-1].splitlines()]
    not_empty = [line for line in lines if line]
    return not_empty[0] if len(not_empty) == 1 else f"{not_empty[0]} {not_empty[-1]}"
