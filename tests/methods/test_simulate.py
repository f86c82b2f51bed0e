"""The simulated step: extension in depth to the byte, CUDA's path, any number of ranks."""

from __future__ import annotations

from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from bitsandbytes.backends import utils as bnb_utils
from torch._subclasses.fake_tensor import FakeTensor

from bench.machine import gpu_catalogue
from bench.methods import simulate
from bench.methods.depth import repetition_of
from bench.trial.platform import CPU, CUDA, Platform, platform_of
from bench.trial.skip_rules import skip_reason
from bench.trial.vocabulary import CATEGORIES
from bench.workload.build import build
from bench.workload.loops.train_step import step
from tests.conftest import make_trial, some

DEEP = (
    "model=llama-tiny model.layers=10",
    "model=llama-tiny model.layers=10 precision=bf16 checkpointing=on",
    "model=llama-tiny model.layers=10 precision=int8 lora=on checkpointing=on",
    "model=llama-tiny model.layers=10 precision=nf4 lora=on optimizer=adamw_8bit seq_len=16",
    "model=llama-tiny model.layers=10 optimizer=adamw_foreach seq_len=8",
    "model=llama-tiny model.layers=10 optimizer=adafactor seq_len=8 micro_batch_size=1",
    "model=llama-tiny model.layers=14 fsdp=full_shard fsdp.world_size=8 precision=bf16",
    "model=llama-tiny model.layers=14 fsdp=shard_grad_op fsdp.world_size=4 optimizer=sgd",
    "model=llama-tiny model.layers=10 fsdp=no_shard fsdp.world_size=2",
    "model=llama-tiny model.layers=10 offload=activations",
    "model=opt-125m model.vocab_size=500",
    "model=gpt2 model.vocab_size=500 precision=fp16",
    "model=mt0-small model.layers=10 model.vocab_size=500 precision=bf16_pure optimizer=sgd",
    "model=llama-tiny model.layers=10 workload=decode workload.decode_tokens=7 seq_len=4",
    "model=llama-tiny model.layers=10 workload=decode workload.decode_tokens=7 kv_cache=static",
)


def simulated(*overrides: str, platform: Platform = CPU) -> dict[str, Any]:
    simulation = simulate.simulate(make_trial("method=simulate", *overrides), platform)
    columns: dict[str, Any] = {**simulation.columns, "work": simulation.work}
    del columns["simulation_seconds"]
    return columns


@pytest.mark.parametrize(
    ("overrides", "platform"),
    [
        *((overrides, CPU) for overrides in DEEP[12:13]),
        *((overrides, CUDA) for overrides in DEEP[7::6]),
        *(pytest.param(overrides, CUDA, marks=pytest.mark.slow) for overrides in (DEEP[1], *DEEP[4::6])),
        *(
            pytest.param(overrides, CPU, marks=pytest.mark.slow)
            for overrides in DEEP
            if overrides not in DEEP[12:13]
        ),
    ],
)
def test_a_deep_model_extended_from_shallow_ones_is_the_whole_one_to_the_byte(
    overrides: str, platform: Platform
) -> None:
    simulation = simulate._extrapolated(make_trial("method=simulate", *overrides.split()), platform)
    assert simulation is not None, "it was simulated whole"
    extended: dict[str, Any] = {**simulation.columns, "work": simulation.work}
    whole = simulated(*overrides.split(), "whole=true", platform=platform)
    sharded = make_trial(*overrides.split()).fsdp.shards
    assert (whole.pop("peak_reserved_bytes", None) is None) == (platform == CPU or sharded)
    assert extended == {name: whole[name] for name in extended}
    assert whole.keys() - extended.keys() == {"peak_allocated_bytes"}
    if "timeline" in whole:  # its highest stretch is the peak
        held = zip(*(whole["timeline"][category] for category in CATEGORIES), strict=True)
        assert max(map(sum, held)) == whole["tracked_peak_bytes"]


SMALL_MIXTURE = """model=gpt-oss-20b model.config.hidden_size=64 model.config.intermediate_size=64
model.config.num_attention_heads=4 model.config.num_key_value_heads=2 model.config.head_dim=16
model.config.num_local_experts=4 model.config.vocab_size=300 model.config.num_hidden_layers=20
micro_batch_size=1 seq_len=24"""
SMALL_LATENT = """model=deepseek-v3 model.config.hidden_size=64 model.config.intermediate_size=96
model.config.moe_intermediate_size=32 model.config.num_attention_heads=2 model.config.num_key_value_heads=2
model.config.q_lora_rank=32 model.config.kv_lora_rank=32 model.config.qk_nope_head_dim=16
model.config.qk_rope_head_dim=16 model.config.v_head_dim=16 model.config.n_routed_experts=8
model.config.n_group=2 model.config.topk_group=1 model.config.num_experts_per_tok=2
model.config.vocab_size=300 model.config.num_hidden_layers=18 micro_batch_size=1 seq_len=24"""


@pytest.mark.parametrize(
    "overrides",
    [
        f"{SMALL_MIXTURE} precision=bf16_pure optimizer=sgd",
        pytest.param(f"{SMALL_MIXTURE} precision=nf4 lora=on checkpointing=on", marks=pytest.mark.slow),
        pytest.param(f"{SMALL_LATENT} precision=bf16_pure lora=on", marks=pytest.mark.slow),
        pytest.param(f"{SMALL_LATENT} precision=nf4 lora=on checkpointing=on", marks=pytest.mark.slow),
    ],
)
def test_blocks_that_repeat_in_a_period_are_extended_to_the_byte(overrides: str) -> None:
    """gpt-oss alternates local and global attention; DeepSeek begins with three dense blocks."""
    test_a_deep_model_extended_from_shallow_ones_is_the_whole_one_to_the_byte(overrides, CUDA)


@pytest.mark.parametrize(
    ("kinds", "shallow", "deeper"),
    [
        ("a" * 10, [0, 1, 8, 9], [0, 1, 2, 8, 9]),
        ("ab" * 10, [0, 1, 2, 3, 16, 17, 18, 19], [0, 1, 2, 3, 4, 5, 16, 17, 18, 19]),
        ("ddd" + "m" * 20, [0, 1, 2, 3, 4, 21, 22], [0, 1, 2, 3, 4, 5, 21, 22]),
    ],
)
def test_blocks_that_stand_for_all(kinds: str, shallow: list[int], deeper: list[int]) -> None:
    repetition = repetition_of(list(kinds), peculiar=1)
    assert repetition is not None
    assert (repetition.shallow, repetition.deeper) == (shallow, deeper)
    assert len(shallow) + repetition.steps * repetition.period == len(kinds)


@pytest.mark.parametrize("kinds", ["abcdefghijklmnop", "a" * 9, "aab" * 4])
def test_blocks_that_do_not_repeat_often_enough(kinds: str) -> None:
    assert repetition_of(list(kinds), peculiar=1) is None


@pytest.mark.parametrize(
    "overrides",
    some(["precision=bf16", "fsdp=full_shard fsdp.world_size=2 checkpointing=on"], every=2, first=1),
)
def test_micro_steps_passed_over_change_nothing(overrides: str) -> None:
    """16 micro-steps cost as much to simulate as 4, and are the whole ones to the byte."""
    words = ("grad_accum_steps=7", "micro_batch_size=1", "seq_len=16", *overrides.split())
    short, whole = (simulated(*words, f"whole={whole}", platform=CUDA) for whole in ("false", "true"))
    assert ("peak_reserved_bytes" in whole) == ("fsdp" not in overrides), "FSDP's streams have pools"
    whole.pop("peak_reserved_bytes", None)
    assert short == whole


def test_a_model_that_saves_nothing_is_simulated_whole() -> None:
    trial = make_trial("method=simulate", "model=llama-tiny", "model.layers=9")
    assert simulate._extrapolated(trial, CPU) is None


def test_65b_on_64_ranks_in_its_own_numbers() -> None:
    found = simulated("model=llama-65b", "precision=bf16", "fsdp=full_shard", "fsdp.world_size=64")
    assert found["param_count"] == 65_285_660_672
    assert found["parameter_bytes"] == pytest.approx(4 * 65_285_660_672 / 64, rel=1e-5)
    assert found["optimizer_bytes"] == pytest.approx(8 * 65_285_660_672 / 64, rel=1e-5)


def test_more_ranks_hold_less_each() -> None:
    peaks = [
        simulated("fsdp=full_shard", f"fsdp.world_size={ranks}")["peak_allocated_bytes"]
        for ranks in (1, 2, 8, 64)
    ]
    assert peaks == sorted(peaks, reverse=True)


def test_every_tensor_on_cuda_is_rounded_to_512_bytes() -> None:
    found = simulated("model.vocab_size=1001", platform=CUDA)
    assert all(found[name] % 512 == 0 for name in found if name.endswith("_bytes"))
    assert found["peak_reserved_bytes"] >= found["peak_allocated_bytes"]


def test_a_smaller_card_makes_the_allocator_give_segments_back_until_it_cannot() -> None:
    words = ("optimizer=adamw_fused", "seq_len=512", "checkpointing=on")
    free = simulated(*words, platform=CUDA)
    reserved, peak = free["peak_reserved_bytes"], free["peak_allocated_bytes"]
    tight = simulated(*words, f"memory_limit_bytes={reserved - 2**21}", platform=CUDA)
    assert peak <= tight["peak_reserved_bytes"] <= reserved - 2**21
    assert "peak_reserved_bytes" not in simulated(
        *words, f"memory_limit_bytes={peak - 2**20}", platform=CUDA
    )


def test_what_a_card_leaves_to_tensors() -> None:
    """80 GiB, less context and two workspaces of 32 MiB (gpu_catalogue.py)."""
    card = gpu_catalogue.catalogue()["h100-sxm"]
    trial = make_trial("method=simulate", "gpu=h100-sxm", "device=cuda")
    left = card.memory_bytes - 794_820_608 - 2 * 32 * 2**20
    assert simulate._capacity_bytes(trial) == left
    assert simulate._capacity_bytes(make_trial("memory_limit_bytes=1GB")) == 10**9
    assert simulate._capacity_bytes(make_trial()) is None


def test_cuda_takes_foreach_by_default_and_the_cpu_the_loop() -> None:
    short = ("seq_len=8", "micro_batch_size=1")
    cpu, cuda = simulated(*short), simulated(*short, platform=CUDA)
    assert cpu["evidence"]["optimizer_implementation"] == "loop"
    assert cuda["evidence"]["optimizer_implementation"] == "foreach"
    assert cuda["temporary_bytes"] >= cuda["gradient_bytes"] > cpu["temporary_bytes"], (
        "the whole denominator at once"
    )


def test_cuda_autocast_widens_what_the_cpu_does_not() -> None:
    gpt2 = ("model=gpt2", "model.layers=2", "model.vocab_size=500", "precision=bf16")
    cpu, cuda = simulated(*gpt2), simulated(*gpt2, platform=CUDA)
    assert cuda["activation_max_bytes"] > 1.1 * cpu["activation_max_bytes"]


def test_what_is_offloaded_is_on_the_host_of_a_cuda_device() -> None:
    off, on = (simulated(f"offload={level}", platform=CUDA) for level in ("off", "activations"))
    assert on["activation_max_bytes"] < 0.01 * off["activation_max_bytes"]
    assert on["host_max_bytes"] > off["activation_max_bytes"]
    params = simulated("offload=params", "fsdp=full_shard", "fsdp.world_size=1", platform=CUDA)
    assert params["parameter_bytes"] == params["optimizer_bytes"] == 0
    assert params["host_max_bytes"] > 16 * 664_192
    assert simulated("offload=activations")["host_max_bytes"] == 0, "on a CPU the host is the device"


def test_paged_state_is_not_in_the_cuda_allocator() -> None:
    model = ("model=llama-20m", "seq_len=8")
    paged = simulated(*model, "optimizer=adamw_8bit_paged", platform=CUDA)
    resident = simulated(*model, "optimizer=adamw_8bit", platform=CUDA)
    assert paged["optimizer_bytes"] + paged["host_max_bytes"] == pytest.approx(
        resident["optimizer_bytes"], rel=0.01
    )
    assert paged["host_max_bytes"] > 16_000_000


@pytest.mark.parametrize("lora", ["off", "on"])
def test_int8_on_cuda_multiplies_in_int8(lora: str) -> None:
    found = simulated("precision=int8", f"lora={lora}", platform=CUDA)
    assert found["evidence"]["int8_modules"] == 14
    assert any(operation.dtype == "int8" and operation.flops for operation in found["work"])


def test_other_devices_are_skipped_with_the_reason() -> None:
    reason = skip_reason(make_trial("method=simulate"), platform_of("mps"), device_count=1)
    assert reason == "method=simulate knows what a step does on cpu and cuda, not on mps"


def test_a_simulation_leaves_no_fake_tensors_behind() -> None:
    """bitsandbytes caches its code books: a fake one would crash the next real kernel of this process."""
    simulated("precision=nf4", "lora=on", "optimizer=adamw_8bit")
    kept = [*bnb.functional.name2qmap.values(), *bnb_utils._code_4bit_cache.values()]
    assert not any(isinstance(tensor, FakeTensor) for tensor in kept)
    run = build(make_trial("precision=nf4", "lora=on"), torch.device("cpu"))
    assert step(run).isfinite()
