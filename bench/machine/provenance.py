"""Where a row comes from: the machine and software that a measurement depends on, and their fingerprint.

The fingerprint covers processor, accelerators, driver, the versions of the libraries, and the code that a
trial runs. `resume=auto` compares it. Must not import torch: doors ask.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import socket
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from bench import paths
from bench.machine import host, nvml
from bench.paths import ROOT

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "numpy")
_EXTRAS = ("trl",)  # without them trials are skipped that run with them

_IMPORT = re.compile(
    r"^\s*(?:from (bench[\w.]*) import ([^\n(]+|\([^)]*\))|import (bench[\w.]*))", re.MULTILINE
)
_WORKER = "bench.processes.worker"


def fingerprint(cores: int) -> str:
    """Hash of this machine, its software and this project's code (16 hex digits).

    Args:
        cores: how many of the processor a trial may use.
    """
    return hashlib.sha256(json.dumps(parts(cores), sort_keys=True).encode()).hexdigest()[:16]


def parts(cores: int) -> dict[str, Any]:
    """What the fingerprint covers, by name. Not host and commit: others may be equal in all that counts."""
    versions = software()
    names = ("python_version", *(f"{package}_version" for package in PACKAGES))
    return {
        **{name: versions[name] for name in names},
        **{f"{extra}_version": version for extra in _EXTRAS if (version := _version(extra))},
        "processor": host.cpu_name(),
        "cores": cores,
        "accelerators": nvml.gpu_names(),
        "driver_version": nvml.driver_version(),
        "code": code_of(_WORKER),
    }


@cache
def code_of(module: str) -> str:
    """Hash of the files of `sources(module)`."""
    digest = hashlib.sha256()
    for path in sorted(sources(module)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def sources(module: str) -> set[Path]:
    """The files of `module` and of all that it imports of this project, directly or not."""
    files: set[Path] = set()
    to_read = [module]
    while to_read:
        path = _file(to_read.pop())
        if path is None or path in files:
            continue
        files.add(path)
        for package, names, plain in _IMPORT.findall(path.read_text()):
            members = [
                f"{package}.{name.split(' as ')[0].strip()}" for name in names.strip("()").split(",")
            ]
            to_read += [plain or package, *(members if package else [])]
    return files


def _file(module: str) -> Path | None:
    base = paths.ROOT.joinpath(*module.split("."))
    choices = (base.with_suffix(".py"), base / "__init__.py")
    return next((path for path in choices if path.is_file()), None)


def _git(*arguments: str) -> str | None:
    if not paths.IS_CHECKOUT:
        return None  # the folder may lie within somebody else's repository
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@cache
def software() -> dict[str, Any]:
    """Versions of Python and the libraries, the commit, and the host name (hashed); null where unknown."""
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        versions[f"{package}_version"] = _version(package)
    status = _git("status", "--porcelain", "--untracked-files=no")
    return {
        **versions,
        "python_version": platform.python_version(),
        "hostname": hashlib.sha256(socket.gethostname().encode()).hexdigest()[:12],
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": None if status is None else bool(status),
    }
