"""Trials elsewhere, through Hydra's launchers for Slurm and Ray: what these are told, and who died there.

The plugins' launchers wait for jobs in order and give up at the first that died, while others run. Ours
extend them (`slurm_jobs.py`, `ray_jobs.py`), wait for all, show each trial as it ends, and name those that
left no row. Hydra finds ours under the plugins' own names.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, filter_overrides

from bench import paths
from bench.config.command_line import Command, reproducing_words
from bench.config.compose import CommandError
from bench.paths import ROOT
from bench.sweep import context

# A launcher, the extra of pyproject.toml that brings it, and what must be importable for it.
_SUBMITIT = ("hydra_plugins.hydra_submitit_launcher", "submitit")
_RAY = ("hydra_plugins.hydra_ray_launcher", "ray")
_NEEDS = {
    "slurm": ("slurm", _SUBMITIT, "bench.sweep.launchers.slurm_jobs"),
    "submitit_slurm": ("slurm", _SUBMITIT, "bench.sweep.launchers.slurm_jobs"),
    "submitit_local": ("slurm", _SUBMITIT, "bench.sweep.launchers.slurm_jobs"),
    "ray": ("ray", _RAY, "bench.sweep.launchers.ray_jobs"),
}

End = JobReturn | str  # of a job: what it returned, or why it returned nothing


def require(overrides: Sequence[str]) -> None:
    """Looks whether the launcher that the command line asks for is installed.

    Raises:
        CommandError: its extra is not.
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
    except ModuleNotFoundError:  # its parent
        return False


def arguments(command: Command) -> list[str]:
    """Hydra's arguments for `command`.

    Where its launcher is one of ours, jobs start somewhere else, from a pickle: they get absolute folders,
    and find this package through PYTHONPATH.
    """
    if command.launcher not in _NEEDS:
        return command.arguments
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *([path] if path else [])])
    known = Plugins.instance().class_name_to_class
    known |= importlib.import_module(_NEEDS[command.launcher][2]).LAUNCHERS
    given = [word for word in command.arguments if not word.startswith(("results_dir=", "hydra.mode="))]
    logs = paths.local_dir(command.results_dir) / "logs" / command.sweep_id
    # As text: another machine need not resolve what our resolvers resolve here.
    where = {"results_dir": command.results_dir, "hydra.sweep.dir": logs}
    words = [f"{key}={_quoted(str(path))}" for key, path in where.items()]
    return [*given, *words, "hydra.mode=MULTIRUN"]


def _quoted(value: str) -> str:
    """As a string in Hydra's grammar: a quote is escaped, and so are backslashes before one."""
    return "'" + re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value) + "'"


def gather(
    job_overrides: Sequence[Sequence[str]], first: int, ends: Iterator[tuple[int, End]]
) -> list[JobReturn]:
    """Shows the end of each job as it comes; what those returned that ended well, in order.

    Args:
        job_overrides: of each job.
        first: the first job's number.
        ends: pairs of a job's place in `job_overrides` and its end.
    """
    returned: dict[int, JobReturn] = {}
    for index, end in ends:
        if isinstance(end, JobReturn) and end.status == JobStatus.COMPLETED:
            returned[index] = end
            _show(first + index, len(job_overrides), end.return_value)
        else:
            reason = end if isinstance(end, str) else _told(end)
            context.current().add_lost(first + index, " ".join(_label(job_overrides[index])), reason)
    return [returned[index] for index in sorted(returned)]


def _show(number: int, size: int, row: dict[str, Any] | None) -> None:
    if row is None:
        context.current().display.pass_over()
        return
    words = shlex.split(row["overrides"])[2:]
    context.current().display.begin(number, size, words, row["replicate"]).end(row)


def _told(end: JobReturn) -> str:
    error: Any = end._return_value
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _label(overrides: Sequence[str]) -> list[str]:
    """What tells a job's trial from the others, as the command line would say it."""
    words = reproducing_words([str(word) for word in filter_overrides(overrides)])
    replicates = [word.partition("=")[2] for word in overrides if word.startswith("replicate=")]
    return [*words, *(f"#{int(number) + 1}" for number in replicates)]
