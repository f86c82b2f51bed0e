"""Operations by hand, and their extension in depth."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from bench.methods import simulate
from bench.timing import operations
from bench.trial.columns import Operation, Work
from bench.trial.platform import CUDA
from tests.conftest import make_trial


def work(func: object, *arguments: object) -> Work:
    return operations.work_of(func, arguments, {}, func(*arguments), "forward")  # type: ignore[operator]


def entry(
    name: str, moved: int, flops: int = 0, shape: tuple[int, ...] = (), layout: str = ""
) -> Operation:
    return Operation(f"aten::{name}", "float32", shape, flops, moved, "forward", layout)


def test_a_matmul_by_hand() -> None:
    left, right = torch.ones(4, 8), torch.ones(8, 16)
    moved = 4 * (4 * 8 + 8 * 16 + 4 * 16)
    expected = entry("mm", moved, 2 * 4 * 8 * 16, (1, 4, 16, 8), "nn")
    assert work(torch.ops.aten.mm.default, left, right) == Counter([expected])
    bias = torch.ones(16)
    (added,) = work(torch.ops.aten.addmm.default, bias, left, right)
    assert added.shape == expected.shape
    assert added.flops == expected.flops
    (transposed,) = work(torch.ops.aten.mm.default, torch.ones(8, 4).t(), torch.ones(16, 8).t())
    assert (transposed.shape, transposed.layout) == (expected.shape, "tt")


def test_a_view_moves_nothing_but_is_issued() -> None:
    assert work(torch.ops.aten.t.default, torch.ones(4, 8)) == Counter([entry("t", 0)])
    assert work(torch.ops.aten.empty_like.default, torch.ones(4)) == Counter([entry("empty_like", 0)])
    assert not work(torch.ops.prim.device.default, torch.ones(4))


def test_an_operation_over_a_list_is_work_for_each_tensor_and_one_call() -> None:
    tensors = [torch.ones(4), torch.ones(4)]
    found = work(torch.ops.aten._foreach_sqrt.default, tensors)
    assert found == Counter({entry("_foreach_sqrt[]", 16): 4, entry("_foreach_sqrt", 0): 1})


def test_what_is_changed_and_not_returned_is_written_too() -> None:
    tensors = [torch.ones(4), torch.ones(4)]
    found = work(torch.ops.aten._foreach_mul_.Scalar, tensors, 2.0)
    assert found == Counter({entry("_foreach_mul_[]", 16): 4, entry("_foreach_mul_", 0): 1})


def test_a_recomputed_forward_is_told_from_the_backward() -> None:
    trial = make_trial("method=simulate", "model.layers=1", "seq_len=8", "checkpointing=on")
    forward, again = (
        {o.name: n for o, n in simulate.simulate(trial, CUDA).work.items() if o.phase == phase}
        for phase in ("forward", "recomputation")
    )
    attention = "aten::_scaled_dot_product_flash_attention_for_cpu"
    assert forward[attention] == again[attention] == 1
    assert forward["module"] > again["module"] > 0  # the block's modules, not the model's


def test_the_flops_of_a_step_are_those_counted_from_its_parameters() -> None:
    simulation = simulate.simulate(make_trial("method=simulate", "seq_len=64"), CUDA)
    columns = simulation.columns
    flops = sum(operation.flops * times for operation, times in simulation.work.items())
    # its backward of attention recomputes the scores: 5 matmuls where the model's arithmetic counts 4
    attention = 2 * 4 * 2 * 64 * 64 * 128 / 2
    assert flops == pytest.approx(columns["model_flops_per_step"] + attention, rel=0.001)


def test_an_expanded_tensor_is_read_once_and_a_row_of_a_cache_is_not_the_cache() -> None:
    column, row = torch.ones(8, 1).expand(8, 100), torch.ones(8, 100)
    assert work(torch.ops.aten.add.Tensor, column, row) == Counter([entry("add", 4 * (8 + 800 + 800))])
    cache, at, new = torch.zeros(64, 4), torch.tensor([3]), torch.ones(1, 4)
    found = work(torch.ops.aten.index_copy_.default, cache, 0, at, new)
    assert found == Counter([entry("index_copy_", 2 * new.nbytes)])
