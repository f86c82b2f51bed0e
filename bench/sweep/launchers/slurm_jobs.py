"""Hydra's submitit launchers, extended to wait for all jobs, of Slurm or of this machine.

squeue says whether a job is still there: sacct needs accounting, which many clusters do without.
Needs the extra `slurm`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import submitit
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn
from hydra_plugins.hydra_submitit_launcher import submitit_launcher
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
from omegaconf import OmegaConf
from submitit.core.utils import FailedJobError, FailedSubmissionError, UncompletedJobError
from submitit.helpers import TorchDistributedEnvironment

from bench.processes import nodes
from bench.sweep import context
from bench.sweep.errors import EndedBySignal, RefusedError
from bench.sweep.launchers.registry import End, gather

_ENDED = {
    *("COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"),
    "forgotten",  # ours: squeue no longer knows the job
    *("FINISHED", "INTERRUPTED"),  # of submitit's local jobs
}
_LATE_SECONDS = 15.0  # over a shared file system a result may show later than the job's end
_LONGEST_PACE_SECONDS = 15.0  # between two questions to the scheduler


class SlurmLauncher(submitit_launcher.SlurmLauncher):
    """Each trial is a Slurm job, the sweep a job array."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs all jobs; returns what the jobs that ended well returned."""
        return _launch(self, job_overrides, initial_job_idx, _slurm_states)

    def __call__(
        self,
        sweep_overrides: list[str],
        job_dir_key: str,
        job_num: int,
        job_id: str,
        singleton_state: dict[type, Singleton],
    ) -> JobReturn:
        """Runs the job, on its node; scancel ends its trial at once, as Ctrl-C would."""
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with context.entered(context.SweepContext(nodes=_allocation())):
            end: JobReturn = super().__call__(
                sweep_overrides, job_dir_key, job_num, job_id, singleton_state
            )
        return end


def _allocation() -> nodes.Nodes:
    """The nodes of this job, on each of which one task runs; ranks meet on the first, as under torchrun."""
    environment = TorchDistributedEnvironment()
    return nodes.Nodes(
        count=environment.world_size,
        index=environment.rank,
        address=f"{environment.master_addr}:{environment.master_port}",
        attempt=os.environ.get("SLURM_RESTART_COUNT", "0"),
    )


class LocalLauncher(submitit_launcher.LocalLauncher):
    """Each trial is a job on this machine, all at the same time: to try a sweep before it is submitted."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs all jobs; returns what the jobs that ended well returned."""
        return _launch(self, job_overrides, initial_job_idx, _local_states)


_PLUGIN = submitit_launcher.__name__
LAUNCHERS = {f"{_PLUGIN}.SlurmLauncher": SlurmLauncher, f"{_PLUGIN}.LocalLauncher": LocalLauncher}

States = Callable[[list[Any]], dict[str, str]]


def _launch(
    launcher: Any, job_overrides: Sequence[Sequence[str]], first: int, states: States
) -> list[JobReturn]:
    """Submits the jobs and waits until the last has ended.

    Raises:
        RefusedError: the jobs cannot be submitted; the message is the scheduler's.
        EndedBySignal: passed on, and the jobs go on.
        KeyboardInterrupt: passed on, with all jobs cancelled.
    """
    try:
        executor = _executor(launcher)
        Path(launcher.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        jobs = executor.map_array(
            launcher,
            [list(overrides) for overrides in job_overrides],
            ["hydra.sweep.dir"] * len(job_overrides),
            range(first, first + len(job_overrides)),
            [f"job_id_for_{first + index}" for index in range(len(job_overrides))],
            [Singleton.get_state()] * len(job_overrides),
        )
    except (FailedSubmissionError, FailedJobError, RuntimeError, ValueError, NameError) as error:
        raise RefusedError(f"{launcher._EXECUTOR}: {_last_line(error)}") from None
    job_ids = " ".join(sorted({job.job_id.partition("_")[0] for job in jobs}, key=int))
    display = context.current().display
    display.print_line(
        f"{len(jobs)} trials are {launcher._EXECUTOR} jobs of {job_ids}; Ctrl-C cancels them"
    )
    try:
        return gather(job_overrides, first, _ends(jobs, states))
    except EndedBySignal:  # the terminal was closed, or the connection lost: no reason to stop the jobs
        with contextlib.suppress(OSError):
            display.print_line(
                f"The jobs go on, and their rows will be there; to cancel them: scancel {job_ids}"
            )
        raise
    except KeyboardInterrupt:
        _cancel(jobs, launcher._EXECUTOR)
        raise


def _executor(launcher: Any) -> Any:
    """submitit's executor with the parameters of `hydra.launcher`, named as submitit wants them."""
    kind = launcher._EXECUTOR
    common = set(OmegaConf.structured(BaseQueueConf))
    values = {name if name in common else f"{kind}_{name}": v for name, v in launcher.params.items()}
    retries = {name: values.pop(name) for name in (f"{kind}_max_num_timeout",) if name in values}
    executor = submitit.AutoExecutor(cluster=kind, folder=values.pop("submitit_folder"), **retries)
    executor.update_parameters(**values)
    return executor


def _ends(jobs: list[Any], states: States) -> Iterator[tuple[int, End]]:
    """Index and end of each job, as they end."""
    pending = dict(enumerate(jobs))
    seen_ended: dict[int, tuple[float, str]] = {}
    started = asked = time.monotonic()
    while True:
        for index in [index for index, job in pending.items() if _has_result(job)]:
            job = pending.pop(index)
            yield index, _result(job)
        now = time.monotonic()
        for index, (since, state) in seen_ended.items():
            if index in pending and now - since >= _LATE_SECONDS:
                job = pending.pop(index)
                yield index, _loss(job, state)
        if not pending:
            break
        if now - asked >= min(_LONGEST_PACE_SECONDS, 2 + (now - started) / 4):
            state_of = states(list(pending.values()))
            asked = now
            for index, job in pending.items():
                if (state := state_of.get(job.job_id, "")) in _ENDED:
                    seen_ended.setdefault(index, (now, state))
                else:
                    seen_ended.pop(index, None)  # it was queued again
        time.sleep(max(1.0, len(pending) / 50))
    for job in jobs:
        _delete_pickles(job)


def _has_result(job: Any) -> bool:
    path = job.paths.result_pickle
    try:  # a folder that is listed is looked up anew, over NFS too
        return any(entry.name == path.name for entry in path.parent.iterdir())
    except OSError:
        return False


def _result(job: Any) -> End:
    """What the job returned. Only jobs of this command wrote such a file, so no older pickle is read."""
    try:
        end: JobReturn = job.task(0).results()[0]
    except (FailedJobError, UncompletedJobError) as error:
        trace = str(error).split("-" * 22)[1:2] or [error]  # submitit frames the job's traceback
        return f"its job {job.job_id} failed: {_last_line(trace[0])}; see {job.paths.stderr}"
    return end


def _loss(job: Any, state: str) -> str:
    """How a job that returned nothing ended; with the last line of its stderr, if it failed by itself."""
    text = f"its job {job.job_id} ended as {state}"
    if state == "FAILED" and job.paths.stderr.is_file():
        text += f" ({_last_line(job.paths.stderr.read_text())})"
    return f"{text}; see {job.paths.stderr}"


def _delete_pickles(job: Any) -> None:
    """Deletes the job's pickles, so that none stays among the results."""
    for path in job.paths.submitted_pickle.parent.glob("*.pkl"):
        path.unlink(missing_ok=True)


def _slurm_states(jobs: list[Any]) -> dict[str, str]:
    """Each job's state by squeue, `forgotten` if squeue does not know it; nothing if squeue fails."""
    arrays = {job.job_id.partition("_")[0] for job in jobs}
    columns = ["--array", "--noheader", "--states=all", "--format=%i|%T"]
    done = subprocess.run(
        ["squeue", *columns, f"--jobs={','.join(arrays)}"], capture_output=True, text=True
    )
    if done.returncode != 0 and "Invalid job id" not in done.stderr:
        return {}
    state_of = dict(line.split("|", 1) for line in done.stdout.splitlines() if "|" in line)
    return {job.job_id: state_of.get(job.job_id, "forgotten") for job in jobs}


def _local_states(jobs: list[Any]) -> dict[str, str]:
    return {job.job_id: job.state for job in jobs}


def _cancel(jobs: list[Any], kind: str) -> None:
    if kind != "slurm":
        for job in jobs:
            job.cancel(check=False)
        return
    command = ["scancel", *sorted({job.job_id.partition("_")[0] for job in jobs})]
    if subprocess.run(command).returncode:
        context.current().display.print_line(
            f"The jobs may still be there; cancel them with: {' '.join(command)}"
        )


def _last_line(text: object) -> str:
    return ([line.strip() for line in str(text).splitlines() if line.strip()] or ["no reason given"])[-1]
