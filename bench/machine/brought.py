"""Packages on a machine without a network: which are missing, and those that were brought as wheels.

A wheel is a zip file: unpacked into a folder on the path it is installed. Only what is missing is unpacked,
so that the machine's own packages stay in use. Imports the standard library alone.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

from bench.paths import ROOT

# Dependencies that only reports, notebooks and launchers need.
_NOT_FOR_MEASURING = {
    "altair",
    "hydra-joblib-launcher",
    "ipykernel",
    "itables",
    "jinja2",
    "nbclient",
    "nbconvert",
    "vl-convert-python",
}
_OF_DEPENDENCIES = ("omegaconf", "antlr4-python3-runtime")  # Hydra's own
FOR_TESTS = ("pytest", "pytest-benchmark", "pytest-xdist", "psutil")


def missing(names: tuple[str, ...] | None = None) -> list[str]:
    """Those of the packages that are not installed; by default of all that a measurement needs."""
    return [name for name in (_needed() if names is None else names) if not _is_installed(name)]


def _needed() -> tuple[str, ...]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [re.split(r"[^\w.-]", text)[0] for text in project["dependencies"]]
    return (*(name for name in names if name not in _NOT_FOR_MEASURING), *_OF_DEPENDENCIES)


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def untested() -> list[str]:
    """Packages whose version is out of pyproject.toml's range, with that range; none may be missing."""
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = []
    for wanted in map(Requirement, project["dependencies"]):
        if wanted.name not in _NOT_FOR_MEASURING:
            version = metadata.version(wanted.name)
            if not wanted.specifier.contains(version, prereleases=True):
                found.append(f"{wanted.name} {version} ({wanted.specifier})")
    return found


def unpack(wheels: Path, into: Path) -> None:
    """Unpacks the wheels of packages that are not installed, and puts the folder at the path's end."""
    for wheel in sorted(wheels.glob("*.whl")) if wheels.is_dir() else []:
        if not _is_installed(wheel.name.partition("-")[0]):
            with zipfile.ZipFile(wheel) as file:
                file.extractall(into)
    if not into.is_dir():
        return
    sys.path.append(str(into))
    kept = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([*([kept] if kept else []), str(into)])
    importlib.invalidate_caches()


def advice(names: list[str], wheels: Path) -> str:
    """What to do where packages are missing."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    wanted = " ".join(f"{name}=={pinned[name]}" if name in pinned else name for name in names)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return (
        f"Missing: {', '.join(names)}. Every measurement needs them.\n"
        f"With a network:  {sys.executable} -m pip install {wanted}\n"
        f"Without one, bring them as wheels, made where there is one, with Python {version} on the same "
        f"system and processor:\n"
        f"  python{version} -m pip wheel --no-deps -w wheels {wanted}\n"
        f"and put the folder here: {wheels}"
    )
