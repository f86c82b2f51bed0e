"""Two queues by hand, and what a card's data sheet says about an operation."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pytest

from bench.machine import gpu_catalogue
from bench.timing import data_sheet
from bench.timing.data_sheet import DataSheet
from bench.timing.step_time import Cost, step_time
from bench.trial.columns import Columns, Operation
from bench.trial.spec import Trial
from tests.conftest import make_trial


@dataclass(frozen=True)
class ByHand:
    """A device on which each operation takes the seconds that are given for its name."""

    seconds: dict[str, float]
    issue: float = 0.0
    host_is_device: bool = False
    unknown: set[str] = field(default_factory=set)
    waiting: set[str] = field(default_factory=set)
    name: str = "by hand"

    def cost(self, operation: Operation) -> Cost:
        return Cost(self.seconds[operation.name], operation.name not in self.unknown)

    def issue_seconds(self, operation: Operation, trial: Trial) -> float:
        return self.issue

    def bounds(self, trial: Trial) -> tuple[float, float]:
        return 0.75, 1.25

    def fresh_memory_seconds(self, size: float) -> float:
        return size if self.host_is_device else 0.0

    def waits(self, operation: Operation) -> bool:
        return operation.name in self.waiting

    def transfer_seconds(self, size: float) -> float:
        return size

    def host_optimizer_seconds(self, size: float) -> float:
        return 10 * size


def operation(name: str, phase: str = "forward", flops: int = 0, moved: int = 1) -> Operation:
    return Operation(name, "bfloat16", (), flops, moved, phase)


WORK = Counter(
    {
        operation("mm", flops=1): 2,
        operation("attention", flops=1): 1,
        operation("add"): 1,
        operation("view", moved=0): 1,
        operation("c10d::gather"): 1,
        operation("update", "optimizer"): 1,
    }
)
SECONDS = {"mm": 1.0, "attention": 2.0, "add": 3.0, "c10d::gather": 4.0, "update": 5.0}


def test_a_device_that_is_slower_than_its_host_sets_the_time() -> None:
    found = step_time(WORK, make_trial(), {}, ByHand(SECONDS, issue=0.1))
    assert found.seconds == 2 + 2 + 3 + 5  # the collective runs beside the seven seconds before the update
    assert found.host_seconds == pytest.approx(0.7)
    assert found.host_bound_share == 0
    assert found.by_kind == {
        "products": 2, "attention": 2, "elementwise": 3, "optimizer": 5, "transfer": 0, "collective": 4
    }  # fmt: skip


def test_a_host_that_is_slower_sets_the_time_and_on_a_cpu_both_add_up() -> None:
    slow = step_time(WORK, make_trial(), {}, ByHand(SECONDS, issue=3.0))
    assert slow.seconds == 21.0
    assert slow.host_bound_share == pytest.approx(1 - 12 / 21)
    both = step_time(WORK, make_trial(), {}, ByHand(SECONDS, issue=3.0, host_is_device=True))
    assert both.seconds == 21 + 12 + 4
    held: Columns = {"peak_allocated_bytes": 10, "parameter_bytes": 3, "optimizer_bytes": 2}
    fresh = step_time(WORK, make_trial(), held, ByHand(SECONDS, issue=3.0, host_is_device=True))
    assert fresh.seconds == both.seconds + 5


def test_a_phase_in_which_the_host_waits_takes_the_sum() -> None:
    found = step_time(WORK, make_trial(), {}, ByHand(SECONDS, issue=0.5, waiting={"add"}))
    forward, update = (
        6 * 0.5 + 7,
        5,
    )  # two products, attention, sum, view, collective; the update runs ahead
    assert found.seconds == forward + update


def test_what_is_not_calibrated_is_counted() -> None:
    found = step_time(WORK, make_trial(), {}, ByHand(SECONDS, unknown={"add"}))
    assert found.uncalibrated_share == pytest.approx(3 / 16)


def test_activations_go_to_the_host_and_back_and_an_update_on_the_host_is_the_hosts() -> None:
    columns: Columns = {"evidence": {"offloaded_bytes": 7}}
    away = step_time(WORK, make_trial("offload=activations"), columns, ByHand(SECONDS))
    assert away.by_kind["transfer"] == 14
    sharded = make_trial("offload=params", "fsdp=full_shard", "fsdp.world_size=2")
    found = step_time(WORK, sharded, columns, ByHand(SECONDS))
    assert found.by_kind["transfer"] == 21  # weights for the forward and the backward, gradients back
    assert found.by_kind["optimizer"] == 10


def test_a_decoding_has_the_time_of_a_token_and_of_its_prompt() -> None:
    work = Counter({operation("add", "prefill"): 4, operation("add", "decode"): 1})
    found = step_time(work, make_trial("workload=decode"), {}, ByHand(SECONDS))
    assert (found.seconds, found.first_token_seconds) == (3, 12)


def test_the_interval_of_the_rate_is_the_predictions() -> None:
    columns = step_time(WORK, make_trial(), {}, ByHand(SECONDS)).columns(make_trial(), 1200)
    assert columns["tokens_per_sec_per_device"] == 100
    assert columns["tokens_per_sec_per_device_ci_low"] == 80
    assert columns["tokens_per_sec_per_device_ci_high"] == pytest.approx(133.33, abs=0.01)


def product(dtype: str, batches: int, rows: int, columns: int, inner: int) -> Operation:
    flops = 2 * batches * rows * columns * inner
    return Operation("aten::mm", dtype, (batches, rows, columns, inner), flops, 1, "forward")


def test_a_large_product_by_hand_and_a_wave_that_is_not_full() -> None:
    card = DataSheet(gpu_catalogue.catalogue()["a100-80gb"])  # 108 multiprocessors
    full = product("bfloat16", 1, 128 * 108, 256 * 4, 4096)
    reached = 312e12 * data_sheet.PRODUCTS_SHARE / data_sheet.REACHED
    gap = data_sheet.KERNEL_SECONDS
    assert card.cost(full).seconds == pytest.approx(full.flops / reached + gap)
    # one row of tiles more is a fifth wave for a hundredth of the work
    more = product("bfloat16", 1, 128 * 109, 256 * 4, 4096)
    assert card.cost(more).seconds - gap == pytest.approx(5 / 4 * (card.cost(full).seconds - gap))


def test_traffic_sets_the_time_of_what_computes_nothing() -> None:
    card = DataSheet(gpu_catalogue.catalogue()["a100-80gb"])
    copy = Operation("aten::copy_", "bfloat16", (), 0, 2**30, "forward")
    seconds = 2**30 / (2039e9 * data_sheet.BANDWIDTH_SHARE) * data_sheet.REACHED
    assert card.cost(copy).seconds == pytest.approx(seconds + data_sheet.KERNEL_SECONDS)
    one_of_many = copy._replace(name="aten::_foreach_copy_[]")
    assert card.cost(one_of_many).seconds == pytest.approx(seconds)


def test_int8_reads_its_input_again_for_outliers_and_waits_for_the_answer() -> None:
    card = DataSheet(gpu_catalogue.catalogue()["rtx-3090"])
    quantise = Operation("bitsandbytes::int8_vectorwise_quant", "float16", (), 0, 2**24, "forward")
    plain = quantise._replace(name="aten::copy_")
    assert card.cost(quantise).seconds == pytest.approx(4 * card.cost(plain).seconds)
    assert card.issue_seconds(quantise, make_trial()) == 10 * card.issue_seconds(plain, make_trial())
    assert card.waits(quantise) and not card.waits(plain)
