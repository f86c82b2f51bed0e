"""Work by hand, its extension in depth, and the bound."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from bench.config.compose import CONF
from bench.machine import gpu_catalogue
from bench.methods import roofline, simulate
from bench.methods.least_time import step_seconds
from bench.trial.platform import CUDA
from tests.conftest import make_trial, some


def work(func: object, *tensors: torch.Tensor) -> roofline.Work:
    return roofline.work_of(func, tensors, {}, func(*tensors))  # type: ignore[operator]


def test_a_matmul_by_hand() -> None:
    left, right = torch.ones(4, 8), torch.ones(8, 16)
    assert work(torch.ops.aten.mm.default, left, right) == Counter(
        [("float32", 2 * 4 * 8 * 16, 4 * (4 * 8 + 8 * 16 + 4 * 16))]
    )


def test_a_view_is_no_work() -> None:
    assert not work(torch.ops.aten.t.default, torch.ones(4, 8))


def test_an_operation_over_a_list_is_work_for_each_tensor() -> None:
    tensors = [torch.ones(4), torch.ones(4)]
    func = torch.ops.aten._foreach_sqrt.default
    assert roofline.work_of(func, (tensors,), {}, func(tensors)) == Counter({("float32", 0, 16): 4})


def test_the_flops_of_a_step_are_those_counted_from_its_parameters() -> None:
    simulation = simulate.simulate(make_trial("method=simulate", "seq_len=64"), CUDA)
    columns = simulation.columns
    flops = sum(flops * times for (_, flops, _), times in simulation.work.items())
    # its backward of attention recomputes the scores: 5 matmuls where the model's arithmetic counts 4
    attention = 2 * 4 * 2 * 64 * 64 * 128 / 2
    assert flops == pytest.approx(columns["model_flops_per_step"] + attention, rel=0.001)


def test_the_bound_is_the_larger_of_arithmetic_and_traffic() -> None:
    card = gpu_catalogue.catalogue()["a100-80gb"]
    assert step_seconds(Counter({("bfloat16", 312 * 10**12, 1): 2}), card) == pytest.approx(2.0)
    assert step_seconds(Counter({("bfloat16", 1, 2039 * 10**9): 1}), card) == pytest.approx(1.0)


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


def test_what_moves_nothing_is_no_work() -> None:
    assert not roofline.work_of(torch.ops.aten.empty.memory_format, ([4, 4],), {}, torch.empty(4, 4))
    assert not work(torch.ops.aten.empty_like.default, torch.ones(4))
    assert not work(torch.ops.prim.device.default, torch.ones(4))


def test_an_expanded_tensor_is_read_once_and_a_row_of_a_cache_is_not_the_cache() -> None:
    column, row = torch.ones(8, 1).expand(8, 100), torch.ones(8, 100)
    assert work(torch.ops.aten.add.Tensor, column, row) == Counter([("float32", 0, 4 * (8 + 800 + 800))])
    cache, at, new = torch.zeros(64, 4), torch.tensor([3]), torch.ones(1, 4)
    args = (cache, 0, at, new)
    func = torch.ops.aten.index_copy_.default
    assert roofline.work_of(func, args, {}, func(*args)) == Counter([("float32", 0, 2 * new.nbytes)])


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
