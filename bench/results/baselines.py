"""Accepted baselines: sets of rows in results/reference/, in the repository, a folder a device."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from bench.paths import ROOT

FOLDER = ROOT / "results" / "reference"


def name_of(device_name: str) -> str:
    """The folder of a device: that of `NVIDIA H100 80GB HBM3` is `nvidia-h100-80gb-hbm3`."""
    return re.sub(r"[^a-z0-9]+", "-", device_name.lower()).strip("-")


def names() -> list[str]:
    """The sets that there are."""
    return sorted({path.relative_to(FOLDER).parts[0] for path in FOLDER.glob("*/**/*.parquet")})


def device_of(rows: Iterable[dict[str, Any]]) -> str:
    """The one device that the measured ones of these rows come from.

    Raises:
        ValueError: there is none, or more than one.
    """
    found = {row["device_name"] for row in rows if row["method"] == "measure" and row["device_name"]}
    if len(found) != 1:
        raise ValueError(f"measured on {', '.join(sorted(found)) or 'no device'}, not on one")
    return str(found.pop())
