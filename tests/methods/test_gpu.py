"""What only an accelerator can show: pytest -m gpu. Skipped elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version

from bench.analysis.grading.predictions import submit_simulation
from bench.machine import gpu_catalogue
from bench.processes import isolate
from bench.processes.simulation_pool import Simulator
from bench.trial.outcome import Outcome
from bench.trial.platform import CUDA
from bench.trial.spec import Trial
from tests.conftest import make_trial

PREDICTED = (
    (),
    ("precision=bf16",),
    ("precision=fp16",),
    ("precision=bf16_pure", "checkpointing=on"),
    ("precision=int8",),
    ("precision=int8", "lora=on"),
    ("precision=nf4", "lora=on", "checkpointing=on"),
    ("optimizer=adamw_8bit",),
    ("optimizer=adafactor",),
    ("offload=activations",),
    ("fsdp=full_shard", "fsdp.world_size=1"),
    ("fsdp=no_shard", "fsdp.world_size=1"),
    ("workload=decode", "precision=bf16_pure"),
    ("workload=decode", "precision=int8"),
    ("workload=decode", "precision=nf4"),
    ("model=gpt2", "model.layers=4", "precision=bf16"),
    ("model=opt-125m", "model.layers=4", "precision=bf16", "lora=on"),
    ("model=mt0-small", "model.layers=4", "precision=bf16"),
)

pytestmark = pytest.mark.gpu
SMALL = ("model=llama-20m", "seq_len=256")


def outcome(*overrides: str, log: Path) -> Outcome:
    trial: Trial = make_trial(*SMALL, *overrides)
    return isolate.run_isolated(trial, log=log / "trial.log", timeout_seconds=300)


def columns(*overrides: str, log: Path) -> dict[str, Any]:
    found = outcome(*overrides, log=log)
    assert found.status == "ok", found.reason
    return found.ranks[0]


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("precision=fp16",),
        ("precision=bf16", "checkpointing=on"),
        ("checkpointing=selective",),
        ("precision=int8",),
        ("precision=int8", "lora=on"),
        ("precision=int8", "lora=on", "checkpointing=on"),
        ("precision=nf4", "lora=on"),
        ("optimizer=adamw_fused",),
        ("optimizer=adamw_8bit",),
        ("optimizer=adafactor",),
        ("offload=activations",),
        ("fsdp=full_shard", "fsdp.world_size=1", "offload=params"),
        ("fsdp=no_shard", "fsdp.world_size=1"),
    ],
    ids=" ".join,
)
def test_allocator_tracker_and_driver_agree_in_order(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    found = outcome(*overrides, log=tmp_path)
    assert found.status == "ok", found.reason
    row = found.ranks[0]
    peak = row["peak_allocated_bytes"]
    workspaces = workspaces_bytes(found, make_trial(*SMALL, *overrides))
    assert row["tracked_peak_bytes"] + workspaces == pytest.approx(peak, rel=0.04)
    assert peak <= row["peak_reserved_bytes"]
    if row["peak_device_used_bytes"] is not None:
        assert row["peak_reserved_bytes"] < row["peak_device_used_bytes"]
        assert 50e6 < row["context_bytes"] < 4e9


def test_steps_are_timed_by_events_that_add_up_to_the_wall(tmp_path: Path) -> None:
    row = columns("timing.max_steps=20", "timing.min_steps=20", log=tmp_path)
    assert sum(row["step_seconds"]) == pytest.approx(row["block_seconds"], rel=0.1)


def test_offloaded_activations_leave_the_device(tmp_path: Path) -> None:
    kept = columns(log=tmp_path)
    moved = columns("offload=activations", log=tmp_path)
    assert moved["activation_max_bytes"] < 0.5 * kept["activation_max_bytes"]
    assert moved["losses"] == pytest.approx(kept["losses"], rel=1e-5)
    assert moved["evidence"]["host_is_device"] is False


def test_offloaded_parameters_leave_the_device(tmp_path: Path) -> None:
    sharded = columns("fsdp=full_shard", "fsdp.world_size=1", log=tmp_path)
    moved = columns("fsdp=full_shard", "fsdp.world_size=1", "offload=params", log=tmp_path)
    assert moved["optimizer_max_bytes"] < 0.01 * sharded["optimizer_max_bytes"]
    assert moved["peak_allocated_bytes"] < 0.7 * sharded["peak_allocated_bytes"]
    assert moved["losses"] == pytest.approx(sharded["losses"], rel=1e-4)


def test_the_paged_optimizer_runs(tmp_path: Path) -> None:
    row = columns("optimizer=adamw_8bit_paged", log=tmp_path)
    assert row["evidence"]["optimizer_class"] == "PagedAdamW8bit"


def test_a_smaller_device_can_be_pretended(tmp_path: Path) -> None:
    found = outcome("memory_limit_bytes=300000000", log=tmp_path)
    assert found.status == "oom"
    assert found.ranks[0]["oom_requested_bytes"] > 0
    assert 0 < found.ranks[0]["peak_allocated_bytes"] < 300_000_000


def test_the_hardware_is_named(tmp_path: Path) -> None:
    hardware = outcome(log=tmp_path).hardware
    assert hardware["device_memory_bytes"] > 2**30
    assert json.dumps(hardware)
    assert "CPU" not in hardware["device_name"]


def workspaces_bytes(found: Outcome, trial: Trial) -> int:
    """cuBLAS' on this card, in the catalogue or not."""
    card = gpu_catalogue.by_device_name(found.hardware["device_name"])
    if card is None:
        wide = torch.cuda.get_device_capability()[0] >= 9
        card = gpu_catalogue.catalogue()["h100-sxm" if wide else "a100-40gb"]
    return card.workspaces_bytes(trial)


@pytest.mark.parametrize("overrides", PREDICTED, ids=" ".join)
def test_simulation_against_the_cuda_allocator(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    """What simulation cannot know without a GPU is cuBLAS' workspaces: they are the catalogue's, apart."""
    trial = make_trial(*SMALL, *overrides)
    measured = isolate.run_isolated(trial, log=tmp_path / "log", timeout_seconds=300)
    assert measured.status == "ok", measured.reason
    with Simulator() as simulator:
        predicted = submit_simulation(trial, CUDA, simulator).result()
    row, workspaces = measured.ranks[0], workspaces_bytes(measured, trial)
    # torch 2.11 simulates AdamW over DTensors 2.7 % too large; 2.13 does not (2.12 was never tried).
    close = 0.03 if trial.fsdp.shards and Version(torch.__version__) < Version("2.13") else 0.015
    for column, within in (("peak_allocated_bytes", close), ("peak_reserved_bytes", 0.15)):
        if column in predicted:  # what is reserved under FSDP is not predicted
            assert predicted[column] + workspaces == pytest.approx(row[column], rel=within), column
