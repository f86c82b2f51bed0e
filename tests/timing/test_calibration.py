"""A calibration's file, its interpolation, and one that is made for real on this CPU."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.methods.calibrate import calibrate
from bench.methods.predict_time import time_columns
from bench.methods.simulate import simulate
from bench.timing import devices
from bench.timing.calibration import Calibration, CalibrationError, read, style_of
from bench.timing.interpolation import Curve, Grid
from bench.timing.samples import HostSample, ProductSample, Sample
from bench.trial.columns import Operation
from bench.trial.platform import CPU
from tests.conftest import make_trial

SIZES = [(rows, columns, inner) for rows in (1, 64) for columns in (16, 256) for inner in (16, 256)]


@pytest.fixture
def by_hand() -> Calibration:
    style = style_of(make_trial())
    return Calibration(
        name="by-hand",
        device_name="CPU (by hand)",
        host_is_device=True,
        threads=1,
        made_with={"torch": "2.13.0", "at": "2026-01-01T00:00:00+00:00", "drift": 0.0},
        operations=[
            Sample("aten::add", "float32", 0, 100, 1e-6),
            Sample("aten::add", "float32", 0, 10_000, 11e-6),
        ],
        products=[
            ProductSample("float32", *size, "nt", 2e-9 * size[0] * size[1] * size[2]) for size in SIZES
        ],
        host=[
            HostSample(style, "forward", 10, 50e-6),
            HostSample(style | {"lora": "on"}, "forward", 10, 90e-6),
            HostSample(style, "backward", 10, 30e-6),
        ],
    )


def add(moved: int, name: str = "aten::add") -> Operation:
    return Operation(name, "float32", (), 0, moved, "forward")


def test_between_samples_is_interpolated_and_beyond_them_the_rate_holds(by_hand: Calibration) -> None:
    accelerator = replace(by_hand, host_is_device=False)
    assert accelerator.cost(add(100)).seconds == pytest.approx(1e-6)
    assert accelerator.cost(add(1_000)).seconds == pytest.approx((1e-6 * 11e-6) ** 0.5)
    assert accelerator.cost(add(100_000)).seconds == pytest.approx(110e-6)
    assert accelerator.cost(add(10)).seconds == pytest.approx(1e-6)
    # on a CPU what the smallest costs is the host's
    assert by_hand.cost(add(10_000)).seconds == pytest.approx(10e-6)
    assert by_hand.cost(add(10)).seconds == 0


def test_what_was_never_sampled_costs_what_others_do_and_is_not_known(by_hand: Calibration) -> None:
    cost = by_hand.cost(add(10_000, "aten::never_seen"))
    assert cost.seconds == pytest.approx(10e-6)
    assert not cost.known


def test_a_product_of_any_size_has_the_rate_between_its_neighbours(by_hand: Calibration) -> None:
    grid = Grid.of(by_hand.products)
    for size in ((1, 16, 16), (8, 100, 50), (64, 256, 256), (1000, 1000, 1000)):
        assert grid.seconds(*size) == pytest.approx(2e-9 * size[0] * size[1] * size[2])


def test_the_host_is_that_of_the_step_most_alike(by_hand: Calibration) -> None:
    assert by_hand.issue_seconds(add(1), make_trial()) == pytest.approx(5e-6)
    assert by_hand.issue_seconds(add(1), make_trial("lora=on")) == pytest.approx(9e-6)
    backward = add(1)._replace(phase="backward")
    assert by_hand.issue_seconds(backward, make_trial("lora=on")) == pytest.approx(3e-6)


def test_autocast_is_part_of_what_makes_steps_alike() -> None:
    assert style_of(make_trial("precision=bf16"))["autocast"] == "on"
    assert style_of(make_trial("precision=bf16_pure"))["autocast"] == "off"


def test_a_curve_goes_through_the_median_of_equal_sizes() -> None:
    curve = Curve.through([(10, 1.0), (10, 9.0), (10, 2.0)])
    assert curve.seconds(10, floor=True) == pytest.approx(2.0)


def test_a_file_is_read_as_it_was_written_and_anything_else_is_refused(
    by_hand: Calibration, tmp_path: Path
) -> None:
    path = tmp_path / "deep" / "by-hand.json"
    by_hand.write(path)
    assert read(path) == by_hand
    assert devices.named(str(path)) == by_hand
    torn = json.loads(path.read_text())
    for broken in ("[]", path.read_text()[:50], json.dumps(torn | {"format": 99})):
        path.write_text(broken)
        with pytest.raises(CalibrationError, match=r"bench/calibrate\.py"):
            read(path)
    with pytest.raises(devices.DeviceError, match="h100-sxm"):
        devices.named("h100-sxl")


def test_this_cpu_is_calibrated_and_every_operation_of_a_step_is_known(tmp_path: Path) -> None:
    shape = ["model.layers=1", "seq_len=16", "micro_batch_size=2", "threads=1", "device=cpu"]
    words = [f"model.{word}" for word in ("hidden_size=64", "intermediate_size=64", "vocab_size=64")]
    trial = make_trial(*shape, *words)
    made = calibrate("here", torch.device("cpu"), 1, [trial], [trial], lambda _what: None, ((1, 64),) * 3)
    assert not made.failed
    assert made.products and all(sample.seconds > 0 for sample in (*made.products, *made.operations))
    assert {sample.phase for sample in made.host} == {"forward", "backward", "optimizer"}
    path = tmp_path / "here.json"
    made.write(path)
    simulated = replace(trial, method="simulate", gpu=str(path))
    columns = time_columns(simulated, simulate(simulated, CPU))
    assert columns["uncalibrated_share"] == 0
    assert columns["step_seconds"][0] > 0
    assert "a calibration of" in columns["evidence"]["time_from"]
    with pytest.raises(devices.DeviceError, match="threads=1"):
        time_columns(replace(simulated, threads=2), simulate(simulated, CPU))


def test_every_operation_of_a_calibrated_trial_is_counted_once() -> None:
    seen: Counter[str] = Counter()
    trial = make_trial("method=simulate", "model.layers=1", "seq_len=16", "precision=nf4", "lora=on")
    for operation, times in simulate(trial, CPU).work.items():
        seen[operation.name] += times
    # native code inside Python: the operation itself, and none of those inside
    assert seen["bitsandbytes::dequantize_4bit"] or seen["bitsandbytes::gemm_4bit"]
