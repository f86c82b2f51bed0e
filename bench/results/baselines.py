"""Accepted baselines: sets of rows in results/reference/ of the repository, one folder for each device."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from bench.paths import SHIPPED

FOLDER = SHIPPED / "results" / "reference"


def name_of(device_name: str) -> str:
    """The name of a device's folder: `NVIDIA H100 80GB HBM3` gives `nvidia-h100-80gb-hbm3`."""
    return re.sub(r"[^a-z0-9]+", "-", device_name.lower()).strip("-")


def names() -> list[str]:
    """The names of all accepted baselines, sorted."""
    return sorted({path.relative_to(FOLDER).parts[0] for path in FOLDER.glob("*/**/*.parquet")})


def device_of(rows: Iterable[dict[str, Any]]) -> str:
    """The name of the one device on which the measured rows among `rows` were made.

    Raises:
        ValueError: no row was measured, or several devices were used.
    """
    devices = {row["device_name"] for row in rows if row["method"] == "measure" and row["device_name"]}
    if len(devices) != 1:
        raise ValueError(f"measured on {', '.join(sorted(devices)) or 'no device'}, not on one")
    return str(devices.pop())
