"""The bound of the roofline, and the catalogue of cards that it reads."""

from __future__ import annotations

from collections import Counter

import pytest

from bench.config.compose import CONF
from bench.machine import gpu_catalogue
from bench.methods import simulate
from bench.timing.roofline import step_seconds
from bench.trial.columns import Operation
from bench.trial.platform import CUDA
from tests.conftest import make_trial, some


def operation(flops: int, moved: int) -> Operation:
    return Operation("aten::mm", "bfloat16", (), flops, moved, "forward")


def test_the_bound_is_the_larger_of_arithmetic_and_traffic() -> None:
    card = gpu_catalogue.catalogue()["a100-80gb"]
    assert step_seconds(Counter({operation(312 * 10**12, 1): 2}), card) == pytest.approx(2.0)
    assert step_seconds(Counter({operation(1, 2039 * 10**9): 1}), card) == pytest.approx(1.0)


def test_every_card_of_the_catalogue_loads_under_its_own_name() -> None:
    cards = gpu_catalogue.catalogue()
    assert set(cards) == {path.stem for path in (CONF / "gpu").glob("*.yaml")}
    names = [name for card in cards.values() for name in card.device_names]
    assert len(names) == len(set(names))
    for card in cards.values():
        assert 8 * 2**30 < card.memory_bytes < 200 * 2**30
        assert card.peak_flops_per_sec["float16"] > card.peak_flops_per_sec["float32"] > 10**12  # type: ignore[operator]
        assert 10**11 < card.bandwidth_bytes_per_sec < 10**13


def test_what_hardware_adds_depends_on_the_trial() -> None:
    card = gpu_catalogue.catalogue()["t4"]
    alone = card.hardware_bytes(make_trial())
    assert "nccl" not in alone
    assert card.hardware_bytes(make_trial("fsdp=full_shard", "fsdp.world_size=2"))["nccl"] > 0
    assert card.hardware_bytes(make_trial("precision=int8"))["context"] > alone["context"]
    assert 2 * card.hardware_bytes(make_trial("workload=prefill"))["workspace"] == alone["workspace"]
    assert gpu_catalogue.workspaces_bytes("Tesla T4", make_trial()) == alone["workspace"]
    assert gpu_catalogue.workspaces_bytes("CPU (whichever, 2 cores)", make_trial()) == 0


@pytest.mark.parametrize("cache", some(["dynamic", "static"], every=2))
def test_the_bound_of_decoding_is_of_one_token(cache: str) -> None:
    """At least its weights and its cache are read, for a token, whatever the number of tokens."""
    card = gpu_catalogue.catalogue()["rtx-3090"]
    seconds = []
    for tokens in (4, 8):
        words = ("workload=decode", "model=llama-7b", "precision=bf16_pure", f"kv_cache={cache}")
        trial = make_trial(
            "method=simulate", *words, f"workload.decode_tokens={tokens}", "micro_batch_size=1"
        )
        simulation = simulate.simulate(trial, CUDA)
        seconds.append(step_seconds(simulation.work, card))
    table = 32000 * 4096 * 2  # of the embeddings one row is read
    least = (simulation.columns["parameter_bytes"] - table) / card.bandwidth_bytes_per_sec
    assert seconds[1] == pytest.approx(seconds[0], rel=0.01)
    assert least < seconds[0] < 1.1 * least
