"""One job of a sweep, under whatever launcher: one trial, executed unless a row stands for it, one row.

Everything happens on the machine that runs the job: the search for an earlier row, the forecast, the lease
of its devices, the fresh processes, the writing of the row.
"""

from __future__ import annotations

import shlex
import signal
from datetime import UTC, datetime
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from bench import (
    environment,
    forecast,
    isolate,
    leases,
    machine,
    nodes,
    places,
    results,
    resume,
    rows,
    screen,
    signals,
)
from bench.config import Job, job_of, register_resolvers, trial_of
from bench.isolate import Outcome
from bench.rowfile import RowFile
from bench.trial import Trial

# What does not define the trial, and is not among the words that reproduce its row.
_OWN_KEYS = (
    *("sweep_id", "sweep_size", "replicate", "replicates", "results_dir", "hydra.mode"),
    *("resume", "dry_run", "skip_predicted_oom", "jobs", "busy", "hydra/launcher"),
)


class NotWritten(BaseException):
    """A row has no place, and the sweep cannot go on. Hydra takes what is an Exception for a crash of the
    program and prints how to find it."""


def run(config: DictConfig) -> dict[str, Any] | None:
    """Executes the job's trial, writes its row and shows its line. Never raises for what a trial does.

    Returns:
        The row; None where a row was there already, or none was wanted.

    Raises:
        CommandError: the config is not a trial (under sweepers whose values nobody could check).
        NotWritten: the row cannot be written; the message says why, and where it was kept.
        KeyboardInterrupt: Ctrl-C, before or while it runs.
    """
    register_resolvers()  # the job may have come here by itself, from a pickle
    trial, job = trial_of(config), job_of(config)
    signals.stop_if_asked()
    hydra: Any = HydraConfig.get()
    number = int(hydra.job.get("num") or 0)  # missing outside of -m
    sweep_id = job.sweep_id or "single"
    overrides = reproducing(list(hydra.overrides.task))
    command = shlex.join(["python", "bench/run.py", *overrides])
    name = f"{sweep_id}-{number:04d}-{trial.trial_id}"
    logs = places.beside(job.results_dir) / "logs" / sweep_id
    here = _environment(trial, job)
    earlier = _earlier(trial, job, here)
    if job.dry_run:
        line = screen.begin(number, job.sweep_size, overrides, job.replicate)
        screen.planned(line, forecast.plan(trial, line.label, earlier, job.results_dir))
        return None
    if earlier:
        resume.note(earlier, command, logs, name)
        screen.passed_over()
        return None
    identity: dict[str, Any] = {
        "sweep_id": sweep_id,
        "replicate": job.replicate,
        "started_at": datetime.now(UTC),
        "overrides": command,
        "environment": here,
        **machine.software(),
    }
    line = screen.begin(number, job.sweep_size, overrides, job.replicate)
    if nodes.here().index:  # the row is the first node's to write
        if nodes.here().spread(trial.processes):
            _outcome(trial, job, logs / f"{name}.log", line)
        return None
    try:
        with RowFile(job.results_dir, name) as file:  # before anything that takes time
            row = _row(trial, job, identity, logs / f"{name}.log", line)
            file.keep(results.to_parquet(row))
    except OSError as error:
        raise NotWritten(f"results_dir={job.results_dir}: {error.strerror or error}") from None
    try:
        line.end(row)
    except BrokenPipeError:  # nobody reads the lines any more; the row is there
        raise signals.Ended(signal.SIGPIPE) from None
    return row


def _environment(trial: Trial, job: Job) -> str:
    """The fingerprint that a row must have to stand for this one."""
    found = environment.fingerprint(max(1, len(machine.cores()) // job.jobs))
    several = nodes.here().spread(trial.processes)
    return f"{found}-{nodes.here().count}-nodes" if several else found


def _earlier(trial: Trial, job: Job, here: str) -> dict[str, Any] | None:
    if job.resume == "off":
        return None
    return resume.finished(
        trial.trial_id,
        job.replicate,
        job.results_dir,
        environment=here if job.resume == "auto" else None,
        predicted=job.skip_predicted_oom,
    )


def _row(trial: Trial, job: Job, identity: dict[str, Any], log: Any, line: screen.Line) -> dict[str, Any]:
    """The trial's row: measured, predicted, or skipped because it was predicted not to fit."""
    outcome, more = _outcome(trial, job, log, line)
    return rows.row_of(trial, outcome, identity) | more


def _outcome(trial: Trial, job: Job, log: Any, line: screen.Line) -> tuple[Outcome, dict[str, Any]]:
    """What came of the trial, and columns that only the job knows."""
    if job.skip_predicted_oom and trial.method == "measure":
        line.stage("simulate")
        expected = forecast.of(trial, log, job.timeout_seconds)
        if not expected.fits:
            outcome = Outcome("skipped", expected.refusal(), None, [], {}, expected.wall_seconds)
            return outcome, {"predicted_peak_bytes": expected.peak_bytes}
    with leases.hold(
        trial, jobs=job.jobs, busy=job.busy, on_wait=lambda who: line.stage(f"waits for {who}")
    ) as lease:
        outcome = isolate.run(
            trial,
            log=log,
            timeout_seconds=job.timeout_seconds,
            on_stage=line.stage,
            lease=lease,
            nodes=nodes.here(),
        )
    return outcome, {"device_shared": True} if lease.shared else {}


def reproducing(overrides: list[str]) -> list[str]:
    """The overrides that define the trial, without those that the door adds or that say where and how."""
    keys = (o.lstrip("+").partition("=")[0] for o in overrides)
    return [
        override
        for override, key in zip(overrides, keys, strict=True)
        if key not in _OWN_KEYS and not key.startswith("hydra.launcher.")
    ]
