"""The ranks of a trial as their parent sees them, and how the trial ended.

In: messages of `worker.py`, exit codes, the kernel's count of processes that it ended. Out: a status, a
reason and a traceback.
"""

from __future__ import annotations

import contextlib
import signal
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

from bench.trial.columns import Columns, Hardware

_LAST_WORDS = ("ok", "skipped", "oom", "error", "poisoned")


@dataclass
class Worker:
    """One rank as its parent sees it."""

    process: Any
    connection: Connection
    stage: str = "start"
    last_word: str | None = None
    payload: dict[str, Any] = field(default_factory=dict)
    hardware: Hardware = field(default_factory=Hardware)
    closed: bool = False

    @property
    def ended(self) -> bool:
        """Whether no further message of it will come."""
        return self.last_word is not None or self.closed

    @property
    def columns(self) -> Columns:
        """The columns that it reported; if it failed, those that it had filled until then."""
        columns = self.payload if self.last_word == "ok" else self.payload.get("columns", {})
        return cast(Columns, columns)

    def read(self) -> None:
        """Receives one message; the end of the stream means that the process is gone."""
        try:
            kind, payload = self.connection.recv()
        except (EOFError, OSError):
            self.closed = True
            return
        if kind == "stage":
            self.stage = payload
        elif kind == "device":
            self.hardware = payload
        elif kind in _LAST_WORDS:
            self.last_word, self.payload = kind, payload


def failed(worker: Worker) -> bool:
    """Whether the worker has ended in any way but `ok` or `skipped`."""
    return worker.ended and worker.last_word not in ("ok", "skipped")


def verdict(
    workers: list[Worker], in_time: bool, timeout_seconds: float, kills_before: int
) -> tuple[str, str | None, str | None]:
    """Status, reason and traceback of the trial: those of the rank that says most about the cause.

    A rank that loses its peer reports an error of the network; the peer that ran out of memory, or was
    killed, is the cause.
    """
    words = {w.last_word for w in workers}
    if words == {"ok"}:
        return "ok", None, None
    if "skipped" in words:
        return "skipped", next(w.payload["reason"] for w in workers if w.last_word == "skipped"), None
    for worker in workers:
        if worker.last_word == "oom":
            return "oom", worker.payload["reason"], worker.payload["traceback"]
    for rank, worker in enumerate(workers):
        if worker.closed and worker.last_word is None:
            return _death(worker, f"rank {rank}" if len(workers) > 1 else "the worker", kills_before)
    for worker in workers:
        if worker.last_word == "error":
            return "error", worker.payload["reason"], worker.payload["traceback"]
    stage = workers[0].stage
    assert not in_time
    return "timeout", f"still at '{stage}' after timeout_seconds={timeout_seconds:g}; ended", None


def _death(worker: Worker, who: str, kills_before: int) -> tuple[str, str, None]:
    """Status, reason and no traceback, of a process that ended without a last message."""
    code = worker.process.exitcode
    if code == -signal.SIGKILL and host_oom_kills() > kills_before:
        return "oom", f"{who} was ended by the kernel at '{worker.stage}': the host ran out of memory", None
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return "error", f"{who} was killed by {name} at '{worker.stage}'", None
    return "error", f"{who} exited with code {code} at '{worker.stage}' without a word", None


def host_oom_kills() -> int:
    """How many processes of this machine or control group the kernel has ended because memory ran out."""
    total = 0
    sources = (
        ("/proc/vmstat", "oom_kill"),
        ("/sys/fs/cgroup/memory.events", "oom_kill"),
        ("/sys/fs/cgroup/memory/memory.oom_control", "oom_kill"),
    )
    for path, key in sources:
        with contextlib.suppress(OSError, ValueError):
            for line in Path(path).read_text().splitlines():
                name, _, value = line.partition(" ")
                if name == key:
                    total += int(value)
    return total
