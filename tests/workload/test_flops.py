"""FLOPs by hand, against torch's own counter, and the peak table's look-up."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.machine import gpu_catalogue
from bench.methods import observe
from bench.workload.build import build
from bench.workload.loops.train_step import step
from tests.conftest import make_trial


def columns(*overrides: str) -> dict[str, float]:
    return observe.size_columns(build(make_trial(*overrides), torch.device("cpu")))


def test_training_everything_is_6n_and_attention() -> None:
    tokens, matmul = 4 * 128, 664_192 - 1024 * 128 - 5 * 128  # no look-up, no norms
    attention = 3 * 4 * 2 * (4 * 128 * 128 * 128 / 2)  # 3 passes, 4 sequences, 2 layers
    assert columns()["model_flops_per_step"] == 6 * matmul * tokens + attention


def test_lora_is_4_frozen_and_6_adapters() -> None:
    tokens, frozen = 4 * 128, 664_192 - 1024 * 128 - 5 * 128
    adapters = 2 * 16 * (4 * (128 + 128) + 3 * (128 + 352))
    attention = 3 * 4 * 2 * (4 * 128 * 128 * 128 / 2)
    expected = (4 * frozen + 6 * adapters) * tokens + attention
    assert columns("lora=on")["model_flops_per_step"] == expected


def test_checkpointing_raises_hardware_flops_only() -> None:
    plain, recomputed = columns(), columns("checkpointing=on")
    assert recomputed["model_flops_per_step"] == plain["model_flops_per_step"]
    blocks = 2 * (4 * 128 * 128 + 3 * 128 * 352)
    extra = 2 * blocks * 512 + 4 * 2 * (4 * 128 * 128 * 128 / 2)
    assert recomputed["hardware_flops_per_step"] - plain["hardware_flops_per_step"] == extra
    selective = columns("checkpointing=selective")
    assert selective["hardware_flops_per_step"] == plain["hardware_flops_per_step"]


@pytest.mark.parametrize("family", ["llama-tiny", "gpt2", "opt-125m", "mt0-small"])
def test_torchs_own_counter_agrees(family: str) -> None:
    small = (f"model={family}", "model.layers=2", "model.vocab_size=500", "seq_len=64")
    run = build(make_trial(*small), torch.device("cpu"))
    step(run)
    with FlopCounterMode(display=False) as counter:
        step(run)
    # it counts the whole square of a causal attention, and an encoder-decoder's more exactly
    assert observe.size_columns(run)["model_flops_per_step"] == pytest.approx(
        counter.get_total_flops(), rel=0.1
    )


@pytest.mark.parametrize(
    ("name", "dtype", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.4e12),
        ("NVIDIA H100 PCIe", "bfloat16", 756e12),
        ("NVIDIA A100-SXM4-80GB", "float16", 312e12),
        ("NVIDIA GeForce RTX 3090", "float16", 71e12),
        ("NVIDIA A10G", "float16", None),
        ("Tesla V100-SXM2-16GB", "bfloat16", None),
        ("CPU (AMD EPYC, 2 cores)", "float32", None),
    ],
)
def test_peak_of_a_device_by_its_name(name: str, dtype: str, peak: float | None) -> None:
    assert gpu_catalogue.peak_flops_per_sec(name, dtype) == peak
