"""Hydra's launchers for Slurm and Ray: which exist, what Hydra is told about them, how their jobs end.

The plugins' launchers wait for jobs in order and give up at the first that died, while others run. Ours
extend them (`slurm_jobs.py`, `ray_jobs.py`), wait for all, show each trial as it ends, and name those that
left no row. Hydra finds ours under the plugins' own names. The modules of the launchers are imported only
where one of them is asked for, since they need the extras `slurm` and `ray`.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, filter_overrides

from bench import paths
from bench.config.command_line import Command
from bench.config.compose import CommandError
from bench.config.key_values import quoted
from bench.config.reproducing import reproducing_words
from bench.paths import ROOT
from bench.sweep import context

_SUBMITIT = ("hydra_plugins.hydra_submitit_launcher", "submitit")
_RAY = ("hydra_plugins.hydra_ray_launcher", "ray")
# By launcher: the extra of pyproject.toml that brings it, what must be importable, and our module.
_NEEDS = {
    "slurm": ("slurm", _SUBMITIT, "bench.sweep.launchers.slurm_jobs"),
    "submitit_slurm": ("slurm", _SUBMITIT, "bench.sweep.launchers.slurm_jobs"),
    "submitit_local": ("slurm", _SUBMITIT, "bench.sweep.launchers.slurm_jobs"),
    "ray": ("ray", _RAY, "bench.sweep.launchers.ray_jobs"),
}

End = JobReturn | str  # what a job returned, or why it returned nothing


def require(overrides: Sequence[str]) -> None:
    """Checks that the launcher that the command line asks for is installed.

    Raises:
        CommandError: the launcher's extra is not installed.
    """
    for word in overrides:
        key, _, value = word.lstrip("+").partition("=")
        name = value.strip("'\"")
        if key == "hydra/launcher" and name in _NEEDS:
            extra, modules, _ = _NEEDS[name]
            if not all(_importable(module) for module in modules):
                raise CommandError(f"hydra/launcher={name}: needs pip install -e '.[{extra}]'")


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it would be in is not there either
        return False


def arguments(command: Command) -> list[str]:
    """Hydra's arguments for `command`.

    If the launcher is one of ours, jobs start on other machines, from a pickle: they get absolute folders,
    and find this package through PYTHONPATH.
    """
    if command.launcher not in _NEEDS:
        return command.arguments
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *([path] if path else [])])
    launcher_classes = Plugins.instance().class_name_to_class
    launcher_classes |= importlib.import_module(_NEEDS[command.launcher][2]).LAUNCHERS
    given = [word for word in command.arguments if not word.startswith(("results_dir=", "hydra.mode="))]
    logs = paths.local_dir(command.results_dir) / "logs" / command.sweep_id
    # Resolved here and given as text: a job on another machine may not know our resolvers yet.
    folders = {"results_dir": command.results_dir, "hydra.sweep.dir": logs}
    words = [f"{key}={quoted(str(folder))}" for key, folder in folders.items()]
    return [*given, *words, "hydra.mode=MULTIRUN"]


def gather(
    job_overrides: Sequence[Sequence[str]], first: int, ends: Iterator[tuple[int, End]]
) -> list[JobReturn]:
    """Shows each job's trial as the job ends, and returns what the jobs that ended well returned, in order.

    Args:
        job_overrides: the overrides of each job.
        first: the first job's number.
        ends: pairs of a job's index in `job_overrides` and its end, as they come.
    """
    returned: dict[int, JobReturn] = {}
    for index, end in ends:
        if isinstance(end, JobReturn) and end.status == JobStatus.COMPLETED:
            returned[index] = end
            _show(first + index, len(job_overrides), end.return_value)
        else:
            reason = end if isinstance(end, str) else _error_text(end)
            context.current().add_lost(first + index, " ".join(_label(job_overrides[index])), reason)
    return [returned[index] for index in sorted(returned)]


def _show(number: int, size: int, row: dict[str, Any] | None) -> None:
    if row is None:
        context.current().display.pass_over()
        return
    words = shlex.split(row["overrides"])[2:]
    context.current().display.begin(number, size, words, row["replicate"]).end(row)


def _error_text(end: JobReturn) -> str:
    error: Any = end._return_value
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _label(overrides: Sequence[str]) -> list[str]:
    """The words of the command line that tell a job's trial from those of other jobs."""
    words = reproducing_words([str(word) for word in filter_overrides(overrides)])
    replicates = [word.partition("=")[2] for word in overrides if word.startswith("replicate=")]
    return [*words, *(f"#{int(number) + 1}" for number in replicates)]
