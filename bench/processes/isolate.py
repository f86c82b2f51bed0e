"""A fresh process for each rank of each trial, and the outcome of how they ended.

In: a Trial. Out: an Outcome, whatever the trial does. A fork server (one for the life of this process) has
imported the libraries and nothing more: it never initialises a device, so each worker that it forks starts
clean, in half a second instead of six. A worker leads its own process group and asks the kernel to end it
with its parent, so that nothing outlives the sweep, whichever way the sweep ends. The parent sleeps in one
system call while a trial runs: it must not take time from what is being timed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
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

_GRACE_SECONDS = 2.0  # for the other ranks to report too, before they are ended


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
    """Executes `trial` in fresh processes, one for each rank, and waits until all have ended.

    Args:
        trial: what to execute.
        log: the file that takes what the libraries print; ranks above 0 add their number to its name.
        timeout_seconds: after which all ranks are ended.
        on_stage: called with what the first rank does, when that changes.
        start_method: forkserver; or spawn, which imports all libraries anew in each process.
        lease: the cores and GPUs to use; default: those that this process may use.
        nodes: the machines of the allocation; each calls this, and the first gets all ranks' outcome.

    Raises:
        KeyboardInterrupt: passed on, with every rank ended.
    """
    started = time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    kills_before = host_oom_kills()
    launch = _Launch(trial, log, started + timeout_seconds, on_stage, start_method, lease, nodes)
    workers, in_time = _execute(launch)
    if any(w.last_word == "poisoned" for w in workers):
        # Some library initialised the device in the fork server; spawned processes are slower, but right.
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
    """How the ranks of one trial are started, and until when they may run (`time.monotonic`)."""

    trial: Trial
    log: Path
    deadline: float
    on_stage: Callable[[str], None]
    start_method: str
    lease: Lease | None
    nodes: Nodes


def _execute(launch: _Launch) -> tuple[list[Worker], bool]:
    """Starts all ranks and waits for them; the workers, and whether they ended before the deadline."""
    with tempfile.TemporaryDirectory(prefix="bench-") as meeting_place:
        workers: list[Worker] = []
        try:
            seats = launch.nodes.seats(launch.trial.processes, Path(meeting_place))
            _start(workers, launch, seats)
            return workers, _attend(workers, launch.deadline, launch.on_stage)
        finally:
            _end(workers)


def _start(workers: list[Worker], launch: _Launch, seats: list[Seat]) -> None:
    """Adds a worker for each rank to `workers`; if one cannot start, the caller ends those before it."""
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
    """A worker's main function: own group, an end tied to its parent's, output to the log."""
    os.setsid()
    fork_server.end_with_parent()
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(target, 1)
    os.dup2(target, 2)
    if lease is not None:
        _restrict_to(lease)
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
    # The process has sent its last message and has nothing to clean up; exit handlers can hang.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _restrict_to(lease: Lease) -> None:
    """Lets this process use only what was leased; it has touched no device yet."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, lease.cores)
    if lease.gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(lease.gpus)


def _attend(workers: list[Worker], deadline: float, on_stage: Callable[[str], None]) -> bool:
    """Reads messages until every rank has ended, or one has failed and the others had time to report.

    Returns:
        Whether that was before the deadline.
    """
    shown_stage = ""
    while pending := [w for w in workers if not w.ended]:
        seconds_left = deadline - time.monotonic()
        ready = wait([w.connection for w in pending], timeout=max(0.0, seconds_left))
        if not ready:
            return time.monotonic() < deadline or any(failed(w) for w in workers)
        for worker in pending:
            if worker.connection in ready:
                worker.read()
        if workers[0].stage != shown_stage:
            shown_stage = workers[0].stage
            on_stage(shown_stage)
        if any(failed(w) for w in workers):
            deadline = min(deadline, time.monotonic() + _GRACE_SECONDS)
    return True


def _end(workers: list[Worker]) -> None:
    """Ends every worker; one that has sent its last message gets a moment to leave by itself."""
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
