"""What `bench/doctor.py` checks: an installation, then a folder of results. Nothing here changes anything.

In: a folder of results. Out: `Finding`s, one by one. Must not import torch, whose absence it reports.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from rich.markup import escape

from bench import formatting, paths
from bench.config.compose import trial_from
from bench.machine import host, leases, nvml, provenance
from bench.processes import isolate
from bench.results import row_file, store
from bench.sweep import resume
from bench.sweep.progress import console
from bench.trial.outcome import FINISHED

_LEAST_FREE_BYTES = 100 * 2**20
_BRIEF = ("timing.min_steps=2", "timing.max_steps=2", "timing.warmup_steps=1")


@dataclass(frozen=True)
class Finding:
    """One check: what was checked, what was found, and what to do about it (None: nothing)."""

    what: str
    found: str
    remedy: str | None = None

    @property
    def wrong(self) -> bool:
        """Whether something has to be done."""
        return self.remedy is not None


def show(finding: Finding) -> None:
    """Prints one finding, with its remedy."""
    mark, colour = ("✗", "red") if finding.wrong else ("✓", "green")
    screen = console()
    screen.print(f"[{colour}]{mark}[/] {finding.what:<18}{escape(finding.found)}", highlight=False)
    if finding.remedy:
        screen.print(f"  {'':<18}→ {escape(finding.remedy)}", highlight=False)


def findings(results_dir: Path, *, trial: bool) -> Iterator[Finding]:
    """The finding of each check, as soon as it is known.

    Args:
        results_dir: a folder of results; one that is not there is no fault.
        trial: whether to execute a trial too (some seconds).
    """
    yield from _packages()
    yield _devices()
    yield _leases()
    if trial:
        yield _trial()
    if not (results_dir / "trials").is_dir():
        yield Finding("results", f"{results_dir} holds no rows yet")
        return
    yield _disk_space(results_dir)
    rows, foreign = _read(results_dir)
    yield _foreign_files(foreign)
    yield _abandoned_files(results_dir)
    yield from _rows(rows)


def _packages() -> Iterator[Finding]:
    """Python and each dependency against the ranges that the project asks for."""
    wanted_python, dependencies = _ranges()
    python = ".".join(map(str, sys.version_info[:3]))
    fits = Requirement(f"python{wanted_python}").specifier.contains(python)
    yield Finding("python", python, None if fits else f"use Python {wanted_python}")
    for text in dependencies:
        wanted = Requirement(text)
        try:
            version = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            yield Finding(wanted.name, "not installed", f"pip install '{text}'")
            continue
        fits = wanted.specifier.contains(version, prereleases=True)
        yield Finding(wanted.name, version, None if fits else f"pip install '{text}'")


def _ranges() -> tuple[str, list[str]]:
    """The range of Python's version, and each dependency with its range."""
    if paths.IS_CHECKOUT:
        project = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())["project"]
        return project["requires-python"], project["dependencies"]
    installed = metadata.metadata("memory-bench")
    required = [text for text in installed.get_all("Requires-Dist") or [] if "extra ==" not in text]
    return installed["Requires-Python"], required


def _devices() -> Finding:
    names = nvml.gpu_names()
    driver = nvml.driver_version()
    cpu = f"{host.cpu_name()}, {len(host.cores())} cores"
    if not names:
        return Finding("devices", f"CPU ({cpu}); no NVIDIA GPU that NVML knows of")
    if "+cpu" in metadata.version("torch"):
        remedy = "this torch is built for the CPU alone: install the one for CUDA"
        return Finding("devices", f"{', '.join(names)}, driver {driver}", remedy)
    return Finding("devices", f"{', '.join(names)}, driver {driver}; CPU ({cpu})")


def _leases() -> Finding:
    held = leases.leased()
    if not held:
        return Finding("leases", "no trial is running on this machine")
    names = ", ".join(f"{name} by process {pid}" for name, pid in held.items())
    return Finding("leases", f"held now: {names}; a new trial waits for them")


def _trial() -> Finding:
    """Executes a short trial, which needs the fork server, all libraries, bitsandbytes' compiled part and a
    quantised step."""
    trial = trial_from([*_BRIEF, "precision=int8", "lora=on", "device=auto"])
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        outcome = isolate.run_isolated(trial, log=Path(folder) / "log", timeout_seconds=300)
    if outcome.status == "ok":
        return Finding("trial", f"int8 + LoRA trains on {outcome.hardware['device_name']}")
    remedy = "python bench/run.py precision=int8 lora=on, and read the log that it names"
    return Finding("trial", f"{outcome.status}: {outcome.reason}", remedy)


def _disk_space(results_dir: Path) -> Finding:
    free = shutil.disk_usage(results_dir).free
    if not os.access(results_dir / "trials", os.W_OK):
        return Finding(
            "disk", f"{results_dir} cannot be written to", "give yourself the right to write there"
        )
    enough = free > _LEAST_FREE_BYTES
    remedy = None if enough else "make room, or name another results_dir: rows and logs need some"
    return Finding("disk", f"{formatting.format_bytes(free)} free at {results_dir}", remedy)


def _read(results_dir: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows, and the paths of files that are not rows of this project."""
    columns = ("trial_id", "replicate", "started_at", "status", "environment", "overrides")
    unreadable: dict[Path, str] = {}
    rows = store.records(results_dir, columns=columns, on_unreadable=unreadable.update)
    return rows, [str(path) for path in unreadable]


def _foreign_files(names: list[str]) -> Finding:
    if not names:
        return Finding("files", "every file in it is a row of this project")
    remedy = "move them away: readers pass over them, but plain pandas.read_parquet stops at them"
    return Finding(
        "files",
        f"{formatting.count_of(len(names), 'file')} not of this project: {', '.join(names)}",
        remedy,
    )


def _abandoned_files(results_dir: Path) -> Finding:
    abandoned = row_file.abandoned_files(results_dir)
    if not abandoned:
        return Finding("places", "no killed sweep has left anything behind")
    return Finding(
        "places",
        f"{formatting.count_of(len(abandoned), 'hidden file')} of killed sweeps (the next one clears them)",
    )


def _rows(rows: list[dict[str, Any]]) -> Iterator[Finding]:
    """Counts: the rows of each status, the trials that never finished, the rows of other environments."""
    counts = Counter(row["status"] for row in rows)
    by_status = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    yield Finding("rows", f"{len(rows)}: {by_status}" if rows else "none")
    failed = [row for row in resume.without_resolved_failures(rows) if row["status"] not in FINISHED]
    if failed:
        trials = {(row["trial_id"], row["replicate"]) for row in failed}
        remedy = f"run the sweep again, it retries these; the first alone: {failed[0]['overrides']}"
        yield Finding("failed", formatting.count_of(len(trials), "trial") + " never finished", remedy)
    environment = provenance.fingerprint(len(host.cores()))
    of_others = sum(row["environment"] != environment for row in rows)
    if of_others:
        yield Finding(
            "environment",
            f"{formatting.count_of(of_others, 'row')} of another machine, stack or code: "
            "resume=auto runs those again",
        )
