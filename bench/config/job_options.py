"""The keys of conf/ that do not define a trial: where and how it is executed."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path

RESUME = ("auto", "off", "force")
ORDERS = ("given", "informative")
BUSY = ("flag", "wait", "share")
_MOST_REPLICATES = 1000
_MOST_JOBS = 1024
_LONGEST_SECONDS = 21 * 24 * 3600  # the system call that waits accepts no more

_NOT_SWEPT = {"swept": False}  # the key has one value for all trials of a sweep
_REPRODUCES = {"reproduces": True}  # the key is among the words that reproduce a row


@dataclass(frozen=True)
class Job:
    """Where and how a trial is executed: the keys of conf/ that do not define the Trial itself."""

    results_dir: Path = field(metadata=_NOT_SWEPT)
    timeout_seconds: float = field(metadata=_REPRODUCES)
    replicates: int = field(metadata=_NOT_SWEPT)
    replicate: int
    sweep_id: str | None
    sweep_size: int | None
    sweep_ends_at: float | None
    resume: str = field(metadata=_NOT_SWEPT)
    dry_run: bool = field(metadata=_NOT_SWEPT)
    budget_seconds: float | None = field(metadata=_NOT_SWEPT)
    order: str = field(metadata=_NOT_SWEPT)
    skip_predicted_oom: bool = field(metadata=_NOT_SWEPT)
    jobs: int = field(metadata=_NOT_SWEPT)
    busy: str = field(metadata=_NOT_SWEPT)

    def __post_init__(self) -> None:
        if not 1 <= self.replicates <= _MOST_REPLICATES:
            raise ValueError(f"replicates={self.replicates}: must be from 1 to {_MOST_REPLICATES}")
        if not 1 <= self.jobs <= _MOST_JOBS:
            raise ValueError(f"jobs={self.jobs}: must be from 1 to {_MOST_JOBS}")
        for key, levels in (("resume", RESUME), ("busy", BUSY), ("order", ORDERS)):
            if getattr(self, key) not in levels:
                raise ValueError(f"{key}={getattr(self, key)}: choose one of {', '.join(levels)}")
        for key in ("timeout_seconds", "budget_seconds"):
            seconds = getattr(self, key)
            if seconds is not None and not 0 < seconds <= _LONGEST_SECONDS:
                at_most = f"{_LONGEST_SECONDS} (three weeks)"
                raise ValueError(f"{key}={seconds:g}: must be greater than 0, and at most {at_most}")


NOT_SWEPT = frozenset(key.name for key in fields(Job) if not key.metadata.get("swept", True))
NOT_REPRODUCED = frozenset(key.name for key in fields(Job) if not key.metadata.get("reproduces", False))
