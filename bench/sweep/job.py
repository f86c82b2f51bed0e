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

from bench import paths
from bench.config.command_line import reproducing
from bench.config.compose import Job, parse, register_resolvers
from bench.machine import host, leases, provenance
from bench.processes import isolate, nodes
from bench.results import store
from bench.results.row_file import RowFile
from bench.sweep import forecast, progress, resume, row_assembly, signals
from bench.trial.outcome import Outcome
from bench.trial.spec import Trial


class NotWrittenError(BaseException):
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
    trial, job = parse(config)
    signals.stop_if_asked()
    hydra: Any = HydraConfig.get()
    number = int(hydra.job.get("num") or 0)  # missing outside of -m
    sweep_id = job.sweep_id or "single"
    overrides = reproducing(list(hydra.overrides.task))
    command = shlex.join(["python", "bench/run.py", *overrides])
    name = f"{sweep_id}-{number:04d}-{trial.trial_id}"
    logs = paths.local_dir(job.results_dir) / "logs" / sweep_id
    here = _environment(trial, job)
    earlier = _earlier(trial, job, here)
    if job.dry_run:
        line = progress.begin(number, job.sweep_size, overrides, job.replicate)
        progress.planned(line, forecast.plan_trial(trial, line.label, earlier, job.results_dir))
        return None
    if earlier:
        resume.note_reuse(earlier, command, logs, name)
        progress.passed_over()
        return None
    identity: dict[str, Any] = {
        "sweep_id": sweep_id,
        "replicate": job.replicate,
        "started_at": datetime.now(UTC),
        "overrides": command,
        "environment": here,
        **provenance.software(),
    }
    line = progress.begin(number, job.sweep_size, overrides, job.replicate)
    if nodes.current().index:  # the row is the first node's to write
        if nodes.current().spread(trial.processes):
            _outcome(trial, job, logs / f"{name}.log", line)
        return None
    try:
        with RowFile(job.results_dir, name) as file:  # before anything that takes time
            row = _row(trial, job, identity, logs / f"{name}.log", line)
            file.keep(store.to_parquet(row))
    except OSError as error:
        raise NotWrittenError(f"results_dir={job.results_dir}: {error.strerror or error}") from None
    try:
        line.end(row)
    except BrokenPipeError:  # nobody reads the lines any more; the row is there
        raise signals.EndedBySignal(signal.SIGPIPE) from None
    return row


def _environment(trial: Trial, job: Job) -> str:
    """The fingerprint that a row must have to stand for this one."""
    found = provenance.fingerprint(max(1, len(host.cores()) // job.jobs))
    several = nodes.current().spread(trial.processes)
    return f"{found}-{nodes.current().count}-nodes" if several else found


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


def _row(trial: Trial, job: Job, identity: dict[str, Any], log: Any, line: progress.Line) -> dict[str, Any]:
    """The trial's row: measured, predicted, or skipped because it was predicted not to fit."""
    outcome, more = _outcome(trial, job, log, line)
    return row_assembly.row_of(trial, outcome, identity) | more


def _outcome(trial: Trial, job: Job, log: Any, line: progress.Line) -> tuple[Outcome, dict[str, Any]]:
    """What came of the trial, and columns that only the job knows."""
    if job.skip_predicted_oom and trial.method == "measure":
        line.stage("simulate")
        expected = forecast.forecast_trial(trial, log, job.timeout_seconds)
        if not expected.fits:
            outcome = Outcome("skipped", expected.refusal(), None, [], {}, expected.wall_seconds)
            return outcome, {"predicted_peak_bytes": expected.peak_bytes}

    def wait(holder: str) -> None:
        signals.stop_if_asked()  # nothing runs that could be finished first
        line.stage(f"waits for {holder}")

    with leases.hold_devices(trial, jobs=job.jobs, busy=job.busy, on_wait=wait) as lease:
        outcome = isolate.run_isolated(
            trial,
            log=log,
            timeout_seconds=job.timeout_seconds,
            on_stage=line.stage,
            lease=lease,
            nodes=nodes.current(),
        )
    return outcome, {"device_shared": True} if lease.shared else {}
