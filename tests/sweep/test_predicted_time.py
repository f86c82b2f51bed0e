"""A simulated row with `gpu=`: its columns of time, and what is said about a device that does not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Command, door_here


def test_a_simulated_row_has_the_time_on_a_card(bench_run: Callable[..., Command]) -> None:
    done = bench_run("-m", "method=simulate", "gpu=t4,h100-sxm", "model.layers=1", "precision=fp16_pure")
    assert done.code == 0, done.err
    slow, fast = (
        done.rows[done.rows.device_name == f"simulated {name}"].iloc[0] for name in ("t4", "h100-sxm")
    )
    for row in (slow, fast):
        assert row.step_seconds_median == row.step_seconds[0]
        rate = row.tokens_per_step / row.step_seconds_median
        assert row.tokens_per_sec_per_device == pytest.approx(rate)
        assert row.tokens_per_sec_per_device_ci_low < rate < row.tokens_per_sec_per_device_ci_high
        assert 0 < row.mfu < 1
        assert "data sheet" in json.loads(row.evidence)["time_from"]
    assert slow.products_seconds > fast.products_seconds
    assert slow.host_seconds == fast.host_seconds
    assert slow.trial_id != fast.trial_id


def test_without_a_device_there_is_no_time(bench_run: Callable[..., Command]) -> None:
    (row,) = bench_run("method=simulate", "model.layers=1").rows.itertuples()
    assert row.step_seconds is None
    assert row.products_seconds != row.products_seconds  # not a number: nobody knows


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("gpu=h100-sxl",), "did you mean h100-sxm?"),
        (("gpu=h100-sxm", "device=cpu"), "that is a device for device=cuda"),
        (("gpu=none/here.json",), "not a calibration"),
    ],
)
def test_a_device_that_does_not_fit_is_one_line(words: tuple[str, ...], says: str, tmp_path: Path) -> None:
    done = door_here("method=simulate", *words, f"results_dir={tmp_path}")
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
