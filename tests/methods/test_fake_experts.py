"""Mixtures of experts over fake tensors: the grouped product, routing that is data, and its work."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode

from bench.methods.fake_execution import (
    _grouped_product,
    _sizes_that_fit,
    fake_execution,
    without_real_tensors,
)
from bench.timing.operations import work_of
from bench.trial.platform import CPU
from tests.conftest import make_trial

GROUPED = torch.ops.aten._grouped_mm.default


def test_the_fake_grouped_product_lies_as_the_real_one() -> None:
    ends = torch.tensor([3, 8], dtype=torch.int32)
    rows, experts, gradient = torch.randn(8, 16), torch.randn(2, 12, 16), torch.randn(8, 12)
    for first, second in ((rows, experts.transpose(1, 2)), (gradient.t(), rows)):
        real = torch._grouped_mm(first, second, offs=ends)
        fake = _grouped_product(first, second, ends)
        assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), torch.float32)


def test_sizes_that_were_read_from_no_data_become_equal_parts() -> None:
    tokens = torch.empty(10, 4)
    assert _sizes_that_fit(tokens, [1, 1, 1, 1]) == [3, 3, 2, 2]
    assert _sizes_that_fit(tokens, [3, 1], dim=1) == [3, 1]


def test_each_token_meets_its_own_expert_alone() -> None:
    ends = torch.tensor([1, 2, 2, 2], dtype=torch.int32)
    rows, experts = torch.randn(2, 16), torch.randn(4, 16, 8)
    result = torch._grouped_mm(rows, experts, offs=ends)
    (one,) = work_of(GROUPED, (rows, experts, ends), {}, result, "forward")
    assert (one.dtype, one.flops) == ("float32", 2 * 2 * 16 * 8)
    # two of the four experts are read, at most
    assert one.moved_bytes == rows.nbytes + experts.nbytes // 2 + ends.nbytes + result.nbytes


def test_a_view_of_a_buffer_has_the_buffers_own_storage() -> None:
    model = torch.nn.Module()
    model.register_buffer("table", torch.ones(8, 8), persistent=False)
    model.plain = torch.ones(4)
    with FakeTensorMode(allow_non_fake_inputs=True):
        without_real_tensors(model)
        table = model.table
        assert table[:, :2].untyped_storage()._cdata == table.untyped_storage()._cdata
        assert isinstance(model.plain, type(table))


def test_a_loop_over_experts_finds_equally_many_tokens_for_each() -> None:
    trial = make_trial("method=simulate")
    with fake_execution(trial, CPU):
        scores = torch.empty(64, 4)
        chosen = scores.topk(2).indices  # of DBRX, which has a class more than experts
        mask = torch.nn.functional.one_hot(chosen, num_classes=5).permute(2, 1, 0)
        hit = torch.greater(mask.sum(dim=(-1, -2)), 0).nonzero()
        assert [int(expert) for expert in hit] == [0, 1, 2, 3]
        for expert in hit:
            choice, token = torch.where(mask[expert].squeeze(0))
            assert choice.shape == token.shape == (64 * 2 // 4,)
        with pytest.raises(DynamicOutputShapeException):  # of which nothing is known
            torch.empty(64).nonzero()
