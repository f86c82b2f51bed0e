"""Calibrated devices as levels of `gpu`, beside the cards of conf/gpu/.

In: a word of the command line, as `gpu=here` or `gpu=DIR/here.json`. Out: a level in Hydra's store that
holds the word. Nothing reads the file: `timing/devices.py` does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hydra.core.config_store import ConfigStore

from bench.paths import CALIBRATIONS, SHIPPED


def is_given(level: str) -> bool:
    """Whether what follows `gpu=` is no card of conf/gpu/, but a calibration's file or name."""
    if (SHIPPED / "conf" / "gpu" / f"{level}.yaml").is_file():
        return False
    return level.endswith(".json") or any((folder / f"{level}.json").is_file() for folder in CALIBRATIONS)


def register(levels: Iterable[str]) -> None:
    """Makes each calibrated device a level that Hydra finds by the word as it was given."""
    for level in filter(is_given, levels):
        group, _, name = f"gpu/{level}".replace("//", "/").rpartition("/")
        ConfigStore.instance().store(name, {"name": level}, group=group, package="gpu")


def name_of(gpu: Any) -> str | None:
    """The name of the device in a composed config; None where there is none."""
    return None if gpu is None else str(gpu["name"])
