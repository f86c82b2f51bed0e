"""Formulas: the rule of thumb as it is told, the closed form against counts and simulation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from bench.config.compose import CONF
from bench.methods import simulate
from bench.methods.estimate.closed_form import closed_form
from bench.methods.estimate.rule_of_thumb import rule_of_thumb, rule_of_thumb_batch
from bench.trial.platform import CUDA
from bench.workload.architectures import on_meta
from bench.workload.shapes import shape_of
from tests.conftest import make_trial, some

GB = 10**9
SEED = ("model=llama-7b", "seq_len=2048", "micro_batch_size=1")


def test_the_rule_of_thumb_in_float32() -> None:
    found = rule_of_thumb(make_trial(*SEED, "precision=fp32"))
    assert found["parameter_bytes"] == found["gradient_bytes"] == 24 * GB
    assert found["optimizer_bytes"] == 48 * GB


def test_the_rule_of_thumb_in_int8() -> None:
    trial = make_trial(*SEED, "precision=int8")
    found = rule_of_thumb(trial)
    static = found["parameter_bytes"] + found["gradient_bytes"] + found["optimizer_bytes"]
    assert (static + found["context_bytes"]) / GB == pytest.approx(25.3)
    assert found["activation_bytes"] == (4096 + 11008) * 2048 * 32  # 990 MB
    assert found["activation_bytes"] / 10**6 == pytest.approx(990, abs=0.5)
    assert 50 <= rule_of_thumb_batch(trial, 80 * GB) < 60


BY_NUMBERS = sorted(p.stem for p in (CONF / "model").glob("*.yaml") if "\nfamily:" in p.read_text())


@pytest.mark.parametrize("model", BY_NUMBERS)
def test_parameters_are_counted_exactly(model: str) -> None:
    trial = make_trial(f"model={model}")
    built = sum(parameter.numel() for parameter in on_meta(trial).parameters())
    assert shape_of(trial.model).parameters == built


@pytest.mark.parametrize(
    ("overrides", "within"),
    some(
        [
            ("", 0.002),
            ("precision=bf16_pure", 0.002),
            ("precision=bf16 lora=on", 0.005),
            ("precision=bf16_pure lora=on", 0.005),
            ("precision=int8 lora=on", 0.02),
            ("precision=nf4 lora=on", 0.02),
            ("precision=nf4 lora=on checkpointing=on", 0.05),
            ("optimizer=adamw_fused", 0.002),
            ("optimizer=sgd", 0.002),
            ("fsdp=full_shard fsdp.world_size=8", 0.02),
            ("fsdp=full_shard fsdp.world_size=8 offload=params", 0.02),
        ],
        every=6,
    ),
)
def test_the_closed_form_of_llama_7b_on_cuda(overrides: str, within: float) -> None:
    """Against simulation, which is graded against measurement on the CPU."""
    trial = make_trial("model=llama-7b", "micro_batch_size=2", "seq_len=1024", *overrides.split())
    columns: Mapping[str, Any] = simulate.simulate(trial, CUDA).columns
    estimated = closed_form(trial, CUDA)
    assert estimated["peak_allocated_bytes"] == pytest.approx(columns["peak_allocated_bytes"], rel=within)
    peak = columns["peak_allocated_bytes"]
    for category in ("parameter", "gradient", "optimizer"):
        assert abs(estimated[f"{category}_bytes"] - columns[f"{category}_bytes"]) < 0.005 * peak, category
