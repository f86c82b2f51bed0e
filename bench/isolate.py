"""A fresh process for each rank of each trial, and a verdict on how it ended.

A fork server (one for the life of this process) has imported the stack and nothing more: it never
initialises a device, so each worker it forks starts clean in half a second instead of six. A worker
leads its own process group and asks the kernel to die with its parent, so that nothing outlives the
sweep, whichever way the sweep ends. The parent sleeps in one system call while a trial runs; it must not
take time from what is being timed.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from bench.leases import Lease
from bench.machine import ROOT
from bench.nodes import ALONE, Nodes, Seat, gathered
from bench.trial import Trial

_GRACE_SECONDS = 2.0  # for the other ranks to tell their side before they are ended
_LAST_WORDS = ("ok", "skipped", "oom", "error", "poisoned")


@dataclass(frozen=True)
class Outcome:
    """How a trial ended, and what each rank found out.

    `ranks` holds one dict of columns for each rank that had any, by rank.
    """

    status: str
    reason: str | None
    traceback: str | None
    ranks: list[dict[str, Any]]
    hardware: dict[str, Any]
    wall_seconds: float


@dataclass
class _Worker:
    """One rank as its parent sees it."""

    process: Any
    connection: Connection
    stage: str = "start"
    last_word: str | None = None
    payload: dict[str, Any] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)
    closed: bool = False

    @property
    def ended(self) -> bool:
        return self.last_word is not None or self.closed

    def read(self) -> None:
        """Takes one message; the end of the stream means that the process is gone."""
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


def run(
    trial: Trial,
    *,
    log: Path,
    timeout_seconds: float,
    on_stage: Callable[[str], None] = lambda _stage: None,
    start_method: str = "forkserver",
    lease: Lease | None = None,
    nodes: Nodes = ALONE,
) -> Outcome:
    """Executes `trial` in fresh processes, one for each rank, and waits for the verdict.

    Args:
        trial: what to execute.
        log: where everything the libraries print goes; ranks above 0 add their number to the name.
        timeout_seconds: after which all ranks are ended.
        on_stage: told what the first rank does, as it changes.
        start_method: forkserver, or spawn to see what the fork server saves.
        lease: the cores and GPUs to use; default: those that this process may use.
        nodes: the machines of the allocation; each calls this, and the first gets the outcome of all ranks.

    Raises:
        KeyboardInterrupt: passed on, with every rank ended.
    """
    started = time.monotonic()
    deadline = started + timeout_seconds
    log.parent.mkdir(parents=True, exist_ok=True)
    kills_before = _host_oom_kills()
    workers, in_time = _execute(trial, log, deadline, on_stage, start_method, lease, nodes)
    if any(w.last_word == "poisoned" for w in workers):
        # Some library initialised the device in the server: slower, but right.
        workers, in_time = _execute(trial, log, deadline, on_stage, "spawn", lease, nodes)
    status, reason, text = _verdict(workers, in_time, timeout_seconds, kills_before)
    outcome = Outcome(
        status=status,
        reason=reason,
        traceback=text,
        ranks=[w.payload if status == "ok" else w.payload.get("columns", {}) for w in workers],
        hardware=next((w.hardware for w in workers if w.hardware), {}),
        wall_seconds=time.monotonic() - started,
    )
    return gathered(outcome, nodes, log) if nodes.spread(trial.processes) else outcome


def _execute(
    trial: Trial,
    log: Path,
    deadline: float,
    on_stage: Callable[[str], None],
    start_method: str,
    lease: Lease | None,
    nodes: Nodes,
) -> tuple[list[_Worker], bool]:
    """Starts all ranks and stays until none is left; whether they ended before the deadline."""
    with tempfile.TemporaryDirectory(prefix="bench-") as meeting_place:
        workers: list[_Worker] = []
        try:
            seats = nodes.seats(trial.processes, Path(meeting_place))
            _start(workers, trial, log, seats, start_method, lease)
            return workers, _attend(workers, deadline, on_stage)
        finally:
            _end(workers)


def _start(
    workers: list[_Worker],
    trial: Trial,
    log: Path,
    seats: list[Seat],
    start_method: str,
    lease: Lease | None,
) -> None:
    """Adds a worker for each rank, so that those already started can be ended if one cannot be."""
    context: Any = multiprocessing.get_context(start_method)
    if start_method == "forkserver":
        start_server(log.parent / "fork-server.log")
    for seat in seats:
        ours, theirs = context.Pipe(duplex=False)
        rank_log = log if seat.rank == 0 else log.with_suffix(f".rank{seat.rank}{log.suffix}")
        process = context.Process(
            target=_enter, args=(theirs, trial, seat, str(rank_log), lease), daemon=True
        )
        with _start_method(start_method):
            process.start()
        theirs.close()
        workers.append(_Worker(process, ours))


def start_server(log: Path) -> None:
    """Sees to it that there is a fork server; if there is none yet, what it prints goes to `log`."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(["bench.preload"])
    with _server_environment(log):
        forkserver.ensure_running()


@contextmanager
def _start_method(method: str) -> Iterator[None]:
    """A child is told its parent's default start method, and does not start if that is one that only the
    parent knows (a joblib worker's is loky)."""
    default = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(method, force=True)
    try:
        yield
    finally:
        multiprocessing.set_start_method(default, force=True)


@contextmanager
def _server_environment(log: Path) -> Iterator[None]:
    """What the fork server inherits: where this package lies, and a log instead of the screen."""
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *([path] if path else [])])
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # see preload.py
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # as NVML numbers them
    sys.stdout.flush()
    sys.stderr.flush()
    screen = os.dup(2)
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(target, 2)
    try:
        yield
    finally:
        os.dup2(screen, 2)
        os.close(screen)
        os.close(target)
        if path is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = path


def _enter(connection: Connection, trial: Trial, seat: Seat, log: str, lease: Lease | None = None) -> None:
    """The worker's first steps: its own group, its end tied to ours, its voice in the log."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    # The server lives as long as anyone holds this; a worker must not keep it alive.
    with contextlib.suppress(AttributeError, OSError, TypeError):
        os.close(forkserver._forkserver._forkserver_alive_fd)  # type: ignore[attr-defined]
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(target, 1)
    os.dup2(target, 2)
    if lease is not None:
        _keep_to(lease)
    try:
        from bench.preload import poisoned
        from bench.worker import work
    except BaseException:
        reason = traceback.format_exc().strip().splitlines()[-1]
        word = {"reason": reason, "traceback": traceback.format_exc(), "columns": {}}
        connection.send(("error", word))
        return
    if poisoned():
        connection.send(("poisoned", {}))
        return
    work(trial, seat, lambda kind, payload: connection.send((kind, payload)))
    # Nothing is worth tidying in a process that has said its last word; exit handlers can hang.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _keep_to(lease: Lease) -> None:
    """This process sees no more than was leased; no device has been touched yet."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, lease.cores)
    if lease.gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(lease.gpus)


def _attend(workers: list[_Worker], deadline: float, on_stage: Callable[[str], None]) -> bool:
    """Listens until every rank has ended, or one has failed and the others had their say.

    Returns:
        Whether that was before the deadline.
    """
    told = ""
    while pending := [w for w in workers if not w.ended]:
        left = deadline - time.monotonic()
        ready = wait([w.connection for w in pending], timeout=max(0.0, left))
        if not ready:
            return time.monotonic() < deadline or any(_failed(w) for w in workers)
        for worker in pending:
            if worker.connection in ready:
                worker.read()
        if workers[0].stage != told:
            told = workers[0].stage
            on_stage(told)
        if any(_failed(w) for w in workers):
            deadline = min(deadline, time.monotonic() + _GRACE_SECONDS)
    return True


def _failed(worker: _Worker) -> bool:
    return worker.ended and worker.last_word not in ("ok", "skipped")


def _end(workers: list[_Worker]) -> None:
    """No process survives; after a last word, a moment to leave by itself."""
    for worker in workers:
        if worker.last_word is not None or worker.closed:
            worker.process.join(timeout=_GRACE_SECONDS)
    for worker in workers:
        if worker.process.exitcode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.process.pid, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.process.pid, signal.SIGKILL)
    for worker in workers:
        worker.process.join()
        worker.connection.close()


def _verdict(
    workers: list[_Worker], in_time: bool, timeout_seconds: float, kills_before: int
) -> tuple[str, str | None, str | None]:
    """Status, reason and traceback. Of several ranks' stories the most telling one counts: a rank that
    loses its peer complains about the network, the peer that ran out of memory knows why."""
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


def _death(worker: _Worker, who: str, kills_before: int) -> tuple[str, str, None]:
    code = worker.process.exitcode
    if code == -signal.SIGKILL and _host_oom_kills() > kills_before:
        return "oom", f"{who} was ended by the kernel at '{worker.stage}': the host ran out of memory", None
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return "error", f"{who} was killed by {name} at '{worker.stage}'", None
    return "error", f"{who} exited with code {code} at '{worker.stage}' without a word", None


def _host_oom_kills() -> int:
    """How many processes the kernel has ended for want of memory, of this machine or control group."""
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


def stop_server() -> None:
    """Ends the fork server, so that the next trial starts a new one; for benchmarks of start-up."""
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
