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
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from bench.machine.leases import Lease
from bench.processes import fork_server
from bench.processes.fork_server import default_start_method
from bench.processes.nodes import ALONE, Nodes, Seat, gather_outcomes
from bench.processes.ranks import Worker, failed, host_oom_kills, verdict
from bench.trial.columns import Hardware
from bench.trial.outcome import Outcome
from bench.trial.spec import Trial

_GRACE_SECONDS = 2.0  # for the other ranks to tell their side before they are ended


def run_isolated(
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
    log.parent.mkdir(parents=True, exist_ok=True)
    kills_before = host_oom_kills()
    launch = _Launch(trial, log, started + timeout_seconds, on_stage, start_method, lease, nodes)
    workers, in_time = _execute(launch)
    if any(w.last_word == "poisoned" for w in workers):
        # Some library initialised the device in the server: slower, but right.
        workers, in_time = _execute(replace(launch, start_method="spawn"))
    status, reason, text = verdict(workers, in_time, timeout_seconds, kills_before)
    outcome = Outcome(
        status=status,
        reason=reason,
        traceback=text,
        ranks=[w.columns for w in workers],
        hardware=next((w.hardware for w in workers if w.hardware), Hardware()),
        wall_seconds=time.monotonic() - started,
    )
    return gather_outcomes(outcome, nodes, log) if nodes.spread(trial.processes) else outcome


@dataclass(frozen=True)
class _Launch:
    """How the ranks of one trial are started and until when they may run; as of `run_isolated`."""

    trial: Trial
    log: Path
    deadline: float
    on_stage: Callable[[str], None]
    start_method: str
    lease: Lease | None
    nodes: Nodes


def _execute(launch: _Launch) -> tuple[list[Worker], bool]:
    """Starts all ranks and stays until none is left; whether they ended before the deadline."""
    with tempfile.TemporaryDirectory(prefix="bench-") as meeting_place:
        workers: list[Worker] = []
        try:
            seats = launch.nodes.seats(launch.trial.processes, Path(meeting_place))
            _start(workers, launch, seats)
            return workers, _attend(workers, launch.deadline, launch.on_stage)
        finally:
            _end(workers)


def _start(workers: list[Worker], launch: _Launch, seats: list[Seat]) -> None:
    """Adds a worker for each rank, so that those already started can be ended if one cannot be."""
    context: Any = multiprocessing.get_context(launch.start_method)
    log = launch.log
    if launch.start_method == "forkserver":
        fork_server.start_fork_server(log.parent / "fork-server.log")
    for seat in seats:
        ours, theirs = context.Pipe(duplex=False)
        rank_log = log if seat.rank == 0 else log.with_suffix(f".rank{seat.rank}{log.suffix}")
        process = context.Process(
            target=_enter, args=(theirs, launch.trial, seat, str(rank_log), launch.lease), daemon=True
        )
        with default_start_method(launch.start_method):
            process.start()
        theirs.close()
        workers.append(Worker(process, ours))


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
        from bench.processes.preload import poisoned
        from bench.processes.worker import run_rank
    except BaseException:
        reason = traceback.format_exc().strip().splitlines()[-1]
        word = {"reason": reason, "traceback": traceback.format_exc(), "columns": {}}
        connection.send(("error", word))
        return
    if poisoned():
        connection.send(("poisoned", {}))
        return
    run_rank(trial, seat, lambda kind, payload: connection.send((kind, payload)))
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


def _attend(workers: list[Worker], deadline: float, on_stage: Callable[[str], None]) -> bool:
    """Listens until every rank has ended, or one has failed and the others had their say.

    Returns:
        Whether that was before the deadline.
    """
    told = ""
    while pending := [w for w in workers if not w.ended]:
        left = deadline - time.monotonic()
        ready = wait([w.connection for w in pending], timeout=max(0.0, left))
        if not ready:
            return time.monotonic() < deadline or any(failed(w) for w in workers)
        for worker in pending:
            if worker.connection in ready:
                worker.read()
        if workers[0].stage != told:
            told = workers[0].stage
            on_stage(told)
        if any(failed(w) for w in workers):
            deadline = min(deadline, time.monotonic() + _GRACE_SECONDS)
    return True


def _end(workers: list[Worker]) -> None:
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
