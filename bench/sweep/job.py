"""One job of a sweep, under any launcher: executes one trial and writes its row, unless an earlier row
stands for it.

In: the config that Hydra composed. Out: the row, on disk and returned. All of it happens on the machine
that runs the job: the search for an earlier row, the forecast, the lease, the processes, the writing.
"""

from __future__ import annotations

import signal
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from bench import paths
from bench.config.compose import parse, register_resolvers
from bench.config.job_options import Job
from bench.config.reproducing import reproducing_command, reproducing_words
from bench.machine import host, leases, provenance
from bench.methods.estimate.formulas import estimate
from bench.processes import isolate
from bench.results import parquet
from bench.results.row_file import RowFile
from bench.sweep import context, resume, row_assembly
from bench.sweep.context import SweepContext
from bench.sweep.errors import BudgetSpentError, EndedBySignal, NotWrittenError
from bench.sweep.progress import Line
from bench.sweep.schedule import budget, forecast
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
        BudgetSpentError: the sweep's time is over.
    """
    register_resolvers()  # the job may have come here by itself, from a pickle
    trial, job = parse(config)
    sweep = context.current()
    sweep.stop.check()
    hydra: Any = HydraConfig.get()
    number = int(hydra.job.get("num") or 0)  # missing outside of -m
    given = list(hydra.overrides.task)
    words = reproducing_words(given)
    filed = _Filed.of(trial, job, sweep, number, given)
    earlier = _earlier_row(trial, job, filed.environment)
    if earlier and not job.dry_run:
        resume.note_reuse(earlier, filed.command, filed.logs, filed.name)
        sweep.display.pass_over()
        return None
    if job.dry_run:
        line = sweep.display.begin(number, job.sweep_size, words, job.replicate)
        seconds = sweep.durations(job.results_dir).expected_seconds(trial)
        sweep.add_planned(line, forecast.plan_trial(trial, line.label, earlier, seconds, sweep.simulator))
        return None
    if _is_left_out(trial, job, sweep, filed):
        return None
    line = sweep.display.begin(number, job.sweep_size, words, job.replicate)
    execution = _Execution(trial, job, sweep, filed.logs / f"{filed.name}.log", line)
    if sweep.nodes.index:  # the row is the first node's to write
        if sweep.nodes.spread(trial.processes):
            with ExitStack() as finishing:
                execution.outcome(finishing)
        return None
    row = _row_of_this_job(execution, filed)
    if row is None:
        sweep.display.drop(line)
        return None
    if job.sweep_ends_at is not None:
        sweep.durations(job.results_dir).add(row)
    try:
        line.end(row)
    except BrokenPipeError:  # nobody reads the lines any more; the row is there
        raise EndedBySignal(signal.SIGPIPE) from None
    return row


@dataclass(frozen=True)
class _Filed:
    """Under what the row, the log and the notes of one job are filed."""

    sweep_id: str
    name: str
    command: str  # that reproduces the row
    logs: Path
    environment: str

    @classmethod
    def of(cls, trial: Trial, job: Job, sweep: SweepContext, number: int, given: list[str]) -> _Filed:
        """Of the job with this number and these overrides."""
        sweep_id = job.sweep_id or "single"
        return cls(
            sweep_id=sweep_id,
            name=f"{sweep_id}-{number:04d}-{trial.trial_id}",
            command=reproducing_command(given),
            logs=paths.local_dir(job.results_dir) / "logs" / sweep_id,
            environment=_environment(trial, job, sweep),
        )


def _is_left_out(trial: Trial, job: Job, sweep: SweepContext, filed: _Filed) -> bool:
    """Whether the sweep's time is too short for the trial; then there is a note.

    Raises:
        BudgetSpentError: no time at all is left, and this process runs the whole sweep.
    """
    if job.sweep_ends_at is None:
        return False
    deadline = budget.Deadline(job.sweep_ends_at)
    expected = sweep.durations(job.results_dir).expected_seconds(trial)
    if deadline.allows(expected):
        return False
    left_out = budget.LeftOut(filed.command, job.replicate, trial.trial_id, deadline.seconds_left, expected)
    budget.note(left_out, filed.logs, filed.name)
    sweep.display.pass_over()
    if sweep.ends_in_time and not deadline.seconds_left:
        raise BudgetSpentError
    return True


def _row_of_this_job(execution: _Execution, filed: _Filed) -> dict[str, Any] | None:
    """The row, once it is written; None if another sweep wrote it meanwhile, or the time was over first.

    Raises:
        NotWrittenError: the row cannot be written.
    """
    trial, job = execution.trial, execution.job
    try:
        with _alone(execution) as waited:
            earlier = _earlier_row(trial, job, filed.environment) if waited else None
            if earlier:  # of the sweep that it waited for
                resume.note_reuse(earlier, filed.command, filed.logs, filed.name)
                return None
            identity: dict[str, Any] = {
                "sweep_id": filed.sweep_id,
                "replicate": job.replicate,
                "started_at": datetime.now(UTC),
                "overrides": filed.command,
                "environment": filed.environment,
                **provenance.software(),
            }
            return _written_row(execution, identity, filed.name)
    except budget.CutShortError as cut:
        left_out = budget.LeftOut(filed.command, job.replicate, trial.trial_id, ran_seconds=cut.seconds)
        budget.note(left_out, filed.logs, filed.name)
        return None


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

        Raises:
            CutShortError: the sweep's time was over before the trial had ended.
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
            timeout_seconds = self._timeout_seconds()
            outcome = isolate.run_isolated(
                self.trial,
                log=self.log,
                timeout_seconds=timeout_seconds,
                on_stage=self.line.stage,
                lease=lease,
                nodes=self.sweep.nodes,
            )
        self._check_time(outcome, timeout_seconds)
        return outcome, {"device_shared": True} if lease.shared else {}

    def _timeout_seconds(self) -> float:
        """How long the trial may run: what the sweep has left, if that is less than its timeout_seconds."""
        left = budget.Deadline(self.job.sweep_ends_at).seconds_left
        return self.job.timeout_seconds if left is None else min(self.job.timeout_seconds, left)

    def _check_time(self, outcome: Outcome, timeout_seconds: float) -> None:
        """To be called with what came of `timeout_seconds`.

        Raises:
            CutShortError: it was ended because the sweep's time was over, not its own.
        """
        if outcome.status == "timeout" and timeout_seconds < self.job.timeout_seconds:
            raise budget.CutShortError(outcome.wall_seconds)

    def _refused(self) -> tuple[Outcome, dict[str, Any]] | None:
        """The outcome of a trial that is not tried, since it cannot fit; None if it is tried."""
        wanted = self.job.skip_predicted_oom and self.trial.method == "measure"
        if not wanted and not forecast.may_fill_host(self.trial):
            return None
        self.line.stage("simulate")
        expected = forecast.forecast_trial(self.trial, self.log, self._timeout_seconds())
        if expected.fits:
            return None
        status, reason = ("skipped", expected.refusal()) if wanted else ("oom", expected.host_refusal())
        outcome = Outcome(status, reason, None, [], {}, expected.wall_seconds)
        return outcome, {"predicted_peak_bytes": expected.peak_bytes}

    def wait(self, holder: str) -> None:
        """To be called while the trial waits for `holder`; no trial runs, so there is none to finish."""
        self.sweep.stop.check()
        if budget.Deadline(self.job.sweep_ends_at).seconds_left == 0:
            raise budget.CutShortError(0.0)
        self.line.stage(f"waits for {holder}")
