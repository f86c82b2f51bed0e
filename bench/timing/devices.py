"""The device that `gpu=` names: a card by its data sheet, or a calibrated device.

In: a name or a path. Out: a `Device` of `step_time.py`, or a `DeviceError` that says what there is. Must
not import torch.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from bench.machine.gpu_catalogue import catalogue
from bench.paths import CALIBRATIONS
from bench.timing.calibration import Calibration, CalibrationError, read
from bench.timing.data_sheet import DataSheet


class DeviceError(ValueError):
    """There is no such device; the message says which there are."""


def device_type_of(name: str) -> str:
    """`cpu` or `cuda`: the type of the device of that name.

    Raises:
        DeviceError: there is no such device.
    """
    return "cpu" if named(name).host_is_device else "cuda"


@cache
def named(name: str) -> DataSheet | Calibration:
    """The device of that name: a calibration's file or name, or a card of conf/gpu/.

    Raises:
        DeviceError: there is none, or its file cannot be read.
    """
    path = Path(name).expanduser()
    try:
        if path.suffix == ".json":
            return read(path)
        for folder in CALIBRATIONS:
            if (folder / f"{name}.json").is_file():
                return read(folder / f"{name}.json")
    except CalibrationError as error:
        raise DeviceError(f"gpu={name}: {error}") from error
    card = catalogue().get(name)
    if card is None:
        names = sorted(
            {*catalogue(), *(one.stem for folder in CALIBRATIONS for one in folder.glob("*.json"))}
        )
        raise DeviceError(f"gpu={name}: no such card or calibration; there are {', '.join(names)}")
    return DataSheet(card)
