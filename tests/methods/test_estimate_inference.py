"""The formula of inference against simulation, and its parts by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from bench.methods import simulate
from bench.methods.estimate.closed_form import closed_form
from bench.methods.estimate.inference import cache_bytes
from bench.methods.estimate.rule_of_thumb import rule_of_thumb
from bench.trial.platform import CPU, CUDA, Platform
from tests.conftest import make_trial, some

LONG = "micro_batch_size=2 seq_len=1024"
BRIEF = "micro_batch_size=64 seq_len=8 workload.decode_tokens=3"  # the cache's copy outweighs the prompt


@pytest.mark.parametrize(
    "overrides",
    some(
        [
            f"workload=prefill precision=fp32 {LONG}",
            f"workload=prefill precision=fp16_pure {LONG}",
            f"workload=prefill precision=int8 {LONG}",
            f"workload=prefill precision=nf4 {LONG}",
            f"workload=prefill precision=nf4 precision.double_quant=false {LONG}",
            f"workload=decode precision=bf16_pure kv_cache=static workload.decode_tokens=3 {LONG}",
            f"workload=decode precision=bf16_pure {BRIEF}",
            f"workload=decode precision=int8 {BRIEF}",
            f"workload=decode precision=nf4 kv_cache=static {BRIEF}",
            "workload=decode precision=fp32 micro_batch_size=64 seq_len=2 workload.decode_tokens=6",
        ],
        every=4,
        first=2,
    ),
)
def test_llama_7b_on_cuda_is_within_a_five_thousandth_of_simulation(overrides: str) -> None:
    trial = make_trial("method=simulate", "model=llama-7b", *overrides.split())
    columns: Mapping[str, Any] = simulate.simulate(trial, CUDA).columns
    estimated = closed_form(trial, CUDA)
    peak = columns["peak_allocated_bytes"]
    assert estimated["peak_allocated_bytes"] == pytest.approx(peak, rel=0.0002)
    assert estimated["peak_phase"] == columns["peak_phase"]
    for category in ("parameter", "kv_cache", "temporary", "input"):
        assert abs(estimated[f"{category}_bytes"] - columns[f"{category}_bytes"]) < 0.0002 * peak, category


@pytest.mark.parametrize(
    ("overrides", "platform", "within"),
    some(
        [
            ("model=llama3-8b workload=decode precision=bf16_pure micro_batch_size=8", CUDA, 0.0002),
            ("model=opt-6.7b workload=decode precision=fp16_pure micro_batch_size=8", CUDA, 0.0002),
            ("model=gpt2 workload=decode precision=bf16_pure micro_batch_size=8", CUDA, 0.001),
            ("model=llama-tiny workload=decode precision=fp32", CPU, 0.001),
            ("model=llama-tiny workload=decode precision=nf4", CPU, 0.001),
            ("model=llama-7b workload=decode precision=int8", CPU, 0.001),
        ],
        every=2,
    ),
)
def test_other_architectures_and_the_cpu(overrides: str, platform: Platform, within: float) -> None:
    trial = make_trial("method=simulate", *overrides.split(), "workload.decode_tokens=3")
    columns: Mapping[str, Any] = simulate.simulate(trial, platform).columns
    found = closed_form(trial, platform)["peak_allocated_bytes"]
    assert found == pytest.approx(columns["peak_allocated_bytes"], rel=within)


def test_the_cache_by_hand() -> None:
    words = (
        "model=llama3-8b",
        "workload=decode",
        "precision=bf16_pure",
        "micro_batch_size=3",
        "seq_len=100",
    )
    trial = make_trial(*words, "workload.decode_tokens=5")
    assert cache_bytes(trial, 1) == 3 * 131_072  # Llama 3: 32 layers, 8 heads of 128: 128 KiB a token
    thumb = rule_of_thumb(trial)
    assert thumb["kv_cache_bytes"] == 3 * 104 * 131_072  # the last token is not fed back
    assert thumb["parameter_bytes"] == 16 * 10**9
    assert thumb["peak_allocated_bytes"] == thumb["kv_cache_bytes"] + thumb["parameter_bytes"]


def test_a_static_cache_is_whole_from_the_start() -> None:
    words = ("model=llama-7b", "workload=decode", "precision=bf16_pure", "workload.decode_tokens=100")
    dynamic, static = (
        closed_form(make_trial(*words, f"kv_cache={kind}"), CUDA) for kind in ("dynamic", "static")
    )
    assert static["peak_phase"] == "prefill"
    assert static["kv_cache_bytes"] == cache_bytes(make_trial(*words), 128 + 99)
    replaced = 4 * 226 * 4096 * 2  # one layer's old values, while the new keys and values are there
    assert dynamic["peak_phase"] == "decode"
    assert dynamic["kv_cache_bytes"] == static["kv_cache_bytes"] + replaced
