"""How a trial can end, and which of several executions of it counts.

`Outcome` is what comes back for a Trial. Needs nothing: the processes that run trials, and whatever reads
rows, share these words.
"""

from __future__ import annotations

import traceback as tracebacks
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

from bench.trial.columns import Columns, Hardware

FINISHED = ("ok", "oom", "skipped")  # what will not change when it runs again
STATUSES = ("ok", "oom", "skipped", "timeout", "error")  # better first


def counting_executions(executions: Iterable[tuple[Hashable, str]]) -> list[bool]:
    """Which executions count: not the failures that a later execution of the same replicate made good.

    Args:
        executions: oldest first; of each, what tells its trial and replicate from others, and its status.
    """
    kept: list[bool] = []
    good: set[Hashable] = set()
    for key, status in reversed(list(executions)):
        if status in FINISHED:
            good.add(key)
        kept.append(status in FINISHED or key not in good)
    return kept[::-1]


@dataclass(frozen=True)
class Outcome:
    """How a trial ended, and what each rank found out.

    `ranks` holds one record of columns for each rank, by rank.
    """

    status: str
    reason: str | None = None
    traceback: str | None = None
    ranks: list[Columns] = field(default_factory=list)
    hardware: Hardware = field(default_factory=Hardware)
    wall_seconds: float = 0.0


def in_one_line(error: BaseException) -> str:
    """The exception's last line; of one with several, the first too, which says what kind it is."""
    lines = [line.strip() for line in tracebacks.format_exception_only(error)[-1].splitlines()]
    filled = [line for line in lines if line]
    return filled[0] if len(filled) == 1 else f"{filled[0]} {filled[-1]}"
