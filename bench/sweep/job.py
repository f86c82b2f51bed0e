"""One job of a sweep, under any launcher: executes one trial and writes its row, unless an earlier row
stands for it.

In: the config that Hydra composed. Out: the row, on disk and returned. All of it happens on the machine
that runs the job: the search for an earlier row, the forecast, the lease, the processes, the writing.
"""

from __future__ import annotations

import shlex
import signal
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from bench import paths
from bench.config.command_line import reproducing_words
from bench.config.compose import Job, parse, register_resolvers
from bench.machine import host, leases, provenance
from bench.methods.estimate.formulas import estimate
from bench.processes import isolate
from bench.results import parquet
from bench.results.row_file import RowFile
from bench.sweep import context, forecast, resume, row_assembly
from bench.sweep.context import SweepContext
from bench.sweep.errors import EndedBySignal, NotWrittenError
from bench.sweep.progress import Line
from bench.trial.outcome import Outcome
from bench.trial.spec import Trial


def run(config: DictConfig) -> dict[str, Any] | None:
    """Executes the job's trial, writes its row and shows its line. Never raises for what a trial does.

    Returns:
        The row; None where a row was there already, or none was wanted.

    Raises:
        CommandError: the config is not a trial (under sweepers whose values nobody could check).
        NotWrittenError: the row cannot be written; the message says why.
        KeyboardInterrupt: Ctrl-C, before or while it runs.
    """
    register_resolvers()  # the job may have come here by itself, from a pickle
    trial, job = parse(config)
    sweep = context.current()
    sweep.stop.check()
    hydra: Any = HydraConfig.get()
    number = int(hydra.job.get("num") or 0)  # missing outside of -m
    sweep_id = job.sweep_id or "single"
    words = reproducing_words(list(hydra.overrides.task))
    command = shlex.join(["python", "bench/run.py", *words])
    name = f"{sweep_id}-{number:04d}-{trial.trial_id}"
    logs = paths.local_dir(job.results_dir) / "logs" / sweep_id
    environment = _environment(trial, job, sweep)
    earlier = _earlier_row(trial, job, environment)
    if earlier and not job.dry_run:
        resume.note_reuse(earlier, command, logs, name)
        sweep.display.pass_over()
        return None
    line = sweep.display.begin(number, job.sweep_size, words, job.replicate)
    if job.dry_run:
        sweep.add_planned(
            line, forecast.plan_trial(trial, line.label, earlier, job.results_dir, sweep.simulator)
        )
        return None
    execution = _Execution(trial, job, sweep, logs / f"{name}.log", line)
    if sweep.nodes.index:  # the row is the first node's to write
        if sweep.nodes.spread(trial.processes):
            with ExitStack() as finishing:
                execution.outcome(finishing)
        return None
    with _alone(execution) as waited:
        earlier = _earlier_row(trial, job, environment) if waited else None
        if earlier:  # of the sweep that it waited for
            resume.note_reuse(earlier, command, logs, name)
            sweep.display.drop(line)
            return None
        identity: dict[str, Any] = {
            "sweep_id": sweep_id,
            "replicate": job.replicate,
            "started_at": datetime.now(UTC),
            "overrides": command,
            "environment": environment,
            **provenance.software(),
        }
        row = _written_row(execution, identity, name)
    try:
        line.end(row)
    except BrokenPipeError:  # nobody reads the lines any more; the row is there
        raise EndedBySignal(signal.SIGPIPE) from None
    return row


def _alone(execution: _Execution) -> AbstractContextManager[bool]:
    """While entered, no other sweep runs this trial for the same folder, unless it runs all trials."""
    trial, job = execution.trial, execution.job
    if job.resume == "off" or execution.sweep.nodes.spread(trial.processes):
        return nullcontext(False)
    identity = f"{job.results_dir}/{trial.trial_id}/{job.replicate}"
    return leases.hold_trial(identity, execution.wait)


def _environment(trial: Trial, job: Job, sweep: SweepContext) -> str:
    """The fingerprint of this machine and code, which an earlier row must have to stand for the trial."""
    fingerprint = provenance.fingerprint(max(1, len(host.cores()) // job.jobs))
    on_several_nodes = sweep.nodes.spread(trial.processes)
    return f"{fingerprint}-{sweep.nodes.count}-nodes" if on_several_nodes else fingerprint


def _earlier_row(trial: Trial, job: Job, environment: str) -> dict[str, Any] | None:
    """The row that stands for the trial under the job's `resume`, or None."""
    if job.resume == "off":
        return None
    return resume.finished(
        trial.trial_id,
        job.replicate,
        job.results_dir,
        environment=environment if job.resume == "auto" else None,
        predicted=job.skip_predicted_oom,
    )


def _written_row(execution: _Execution, identity: dict[str, Any], name: str) -> dict[str, Any]:
    """Executes the trial and writes its row, which it returns.

    Raises:
        NotWrittenError: the row cannot be written.
    """
    results_dir = execution.job.results_dir
    try:
        # The row's place comes first: a disk without room is found before any time is spent. When Ctrl-C
        # comes, `finishing` lets a trial that has begun end, and its row be written.
        with RowFile(results_dir, name) as file, ExitStack() as finishing:
            outcome, columns = execution.outcome(finishing)
            row = row_assembly.row_of(execution.trial, outcome, identity) | columns
            file.keep(parquet.to_parquet(row))
    except OSError as error:
        raise NotWrittenError(f"results_dir={results_dir}: {error.strerror or error}") from None
    return row


@dataclass(frozen=True)
class _Execution:
    """A trial to execute, with its options, its sweep, its log and its line on the screen."""

    trial: Trial
    job: Job
    sweep: SweepContext
    log: Path
    line: Line

    def outcome(self, finishing: ExitStack) -> tuple[Outcome, dict[str, Any]]:
        """Executes the trial; its outcome, and the columns that only the job knows.

        Args:
            finishing: enters, as soon as the trial begins, what makes the first Ctrl-C wait for its end.
        """
        if self.trial.method == "estimate":
            self.line.stage("estimate")
            return estimate(self.trial), {}
        refused = self._refused()
        if refused:
            return refused
        with leases.hold_devices(
            self.trial, jobs=self.job.jobs, busy=self.job.busy, on_wait=self.wait
        ) as lease:
            finishing.enter_context(self.sweep.stop.finishing())
            outcome = isolate.run_isolated(
                self.trial,
                log=self.log,
                timeout_seconds=self.job.timeout_seconds,
                on_stage=self.line.stage,
                lease=lease,
                nodes=self.sweep.nodes,
            )
        return outcome, {"device_shared": True} if lease.shared else {}

    def _refused(self) -> tuple[Outcome, dict[str, Any]] | None:
        """The outcome of a trial that is not tried, since it cannot fit; None if it is tried."""
        wanted = self.job.skip_predicted_oom and self.trial.method == "measure"
        if not wanted and not forecast.may_fill_host(self.trial):
            return None
        self.line.stage("simulate")
        expected = forecast.forecast_trial(self.trial, self.log, self.job.timeout_seconds)
        if expected.fits:
            return None
        status, reason = ("skipped", expected.refusal()) if wanted else ("oom", expected.host_refusal())
        outcome = Outcome(status, reason, None, [], {}, expected.wall_seconds)
        return outcome, {"predicted_peak_bytes": expected.peak_bytes}

    def wait(self, holder: str) -> None:
        """To be called while the trial waits for `holder`; no trial runs, so there is none to finish."""
        self.sweep.stop.check()
        self.line.stage(f"waits for {holder}")
