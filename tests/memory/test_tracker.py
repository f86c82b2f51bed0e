"""The tracker and the CPU recorder: bytes computed by hand, conservation, and each other."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

from bench.memory.cpu_allocator import CpuRecorder
from bench.memory.hidden_allocations import workspace_bytes
from bench.memory.tracker import Attribution, Tracker
from bench.methods.measure import allocator_pass
from bench.trial.platform import platform_of
from bench.trial.spec import Trial
from bench.workload.build import build
from bench.workload.loops.train_step import step
from bench.workload.state import Run
from tests.conftest import make_trial, some

CPU = torch.device("cpu")
HIDDEN, FFN, VOCAB, LAYERS = 128, 352, 1024, 2
MATRICES = LAYERS * (4 * HIDDEN * HIDDEN + 3 * HIDDEN * FFN)  # inside the blocks
EMBEDDINGS, NORMS = 2 * VOCAB * HIDDEN, (2 * LAYERS + 1) * HIDDEN
PARAMETERS = MATRICES + EMBEDDINGS + NORMS
TENSORS = 21
ROTARY_BYTES = 2 * 16 * 4  # inv_freq and original_inv_freq: head_dim / 2 fp32 each


def steady(trial: Trial) -> tuple[Run, Attribution]:
    run = build(trial, CPU)
    step(run)
    step(run)
    tracker = Tracker(run)
    with tracker:
        step(run, tracker.enter_phase)
    return run, tracker.attribution()


@pytest.mark.parametrize(
    ("precision", "weight", "gradient", "state"),
    [
        ("fp32", 4, 4, 8),
        ("fp16", 4, 4, 8),
        ("bf16", 4, 4, 8),
        ("fp16_pure", 2, 2, 4),
        ("bf16_pure", 2, 2, 4),
    ],
)
def test_bytes_of_each_precision_by_hand(precision: str, weight: int, gradient: int, state: int) -> None:
    _, found = steady(make_trial(f"precision={precision}"))
    assert found.largest["parameter"] == PARAMETERS * weight + ROTARY_BYTES
    assert found.largest["gradient"] == PARAMETERS * gradient
    assert found.largest["optimizer"] == PARAMETERS * state + TENSORS * 4  # and a step count each


def test_bytes_of_int8_storage_by_hand() -> None:
    _, found = steady(make_trial("precision=int8", "lora=on", "lora.rank=8"))
    rows = LAYERS * (4 * HIDDEN + 2 * FFN + HIDDEN)  # one fp32 scale for each output row
    adapters = LAYERS * 8 * (4 * (HIDDEN + HIDDEN) + 3 * (HIDDEN + FFN))
    rest = (EMBEDDINGS + NORMS) * 4
    assert found.largest["parameter"] == MATRICES + rows * 4 + rest + adapters * 4 + ROTARY_BYTES
    assert found.largest["gradient"] == adapters * 4
    assert found.largest["optimizer"] == adapters * 8 + 2 * 7 * LAYERS * 4


def test_int8_without_lora_saves_no_weight_memory() -> None:
    _, mixed = steady(make_trial("precision=bf16"))
    _, int8 = steady(make_trial("precision=int8"))
    assert int8.largest["parameter"] >= mixed.largest["parameter"]


def test_bytes_of_nf4_storage_by_hand() -> None:
    _, found = steady(make_trial("precision=nf4", "lora=on", "precision.double_quant=false"))
    adapters = LAYERS * 16 * (4 * (HIDDEN + HIDDEN) + 3 * (HIDDEN + FFN))
    packed = MATRICES // 2
    scales = MATRICES // 64 * 4  # one fp32 for each block of 64 weights
    codes = LAYERS * 7 * 16 * 4  # the 16 levels, once for each linear
    rest = (EMBEDDINGS + NORMS) * 4 + adapters * 4 + ROTARY_BYTES
    assert found.largest["parameter"] == packed + scales + codes + rest


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        ("adamw", PARAMETERS * 8 + TENSORS * 4),
        ("adamw_fused", PARAMETERS * 8 + TENSORS * 4),
        ("adamw_foreach", PARAMETERS * 8 + TENSORS * 4),
        ("sgd", 0),
    ],
)
def test_bytes_of_each_optimizer_by_hand(optimizer: str, expected: int) -> None:
    _, found = steady(make_trial(f"optimizer={optimizer}"))
    assert found.largest["optimizer"] == expected


def test_momentum_is_one_copy_of_the_weights() -> None:
    _, found = steady(make_trial("optimizer=sgd", "optimizer.momentum=0.9"))
    assert found.largest["optimizer"] == PARAMETERS * 4


def test_8bit_state_by_hand() -> None:
    _, found = steady(make_trial("optimizer=adamw_8bit"))
    large = MATRICES + EMBEDDINGS  # tensors of fewer than 4096 elements keep 32-bit state
    scales = large // 256 * 4 * 2  # one fp32 for each block of 256 elements and moment
    maps = 2 * 256 * 4
    assert found.largest["optimizer"] == large * 2 + scales + maps + NORMS * 8


def test_foreach_needs_temporaries_that_the_loop_does_not() -> None:
    levels = ("adamw", "adamw_foreach", "adamw_fused")
    loop, foreach, fused = (
        steady(make_trial(f"optimizer={level}"))[1].peak_by_phase["optimizer"] for level in levels
    )
    state = PARAMETERS * 16 + TENSORS * 4  # weights, gradients and two moments
    assert fused == pytest.approx(state, rel=0.001)
    assert foreach == pytest.approx(state + PARAMETERS * 4, rel=0.001)
    largest = VOCAB * HIDDEN * 4
    assert fused + largest <= loop <= fused + 3.01 * largest, "a few temporaries of one tensor's size"


GRID = [
    (),
    ("precision=fp16",),
    ("precision=bf16", "checkpointing=on"),
    ("precision=bf16_autocast", "lora=on"),
    ("checkpointing=selective",),
    ("precision=int8",),
    ("precision=int8", "lora=on"),
    ("precision=int8", "lora=on", "checkpointing=on", "seq_len=32"),
    ("precision=nf4", "lora=on"),
    ("optimizer=adamw_8bit",),
    ("optimizer=adafactor",),
    ("optimizer=adamw_foreach", "micro_batch_size=1", "seq_len=4"),
    ("offload=activations",),
    ("grad_accum_steps=2",),
    ("model.kv_heads=2",),
    ("model=gpt2", "seq_len=8", "model.layers=2", "model.vocab_size=1000"),
    ("model=opt-125m", "seq_len=8", "model.layers=2", "model.vocab_size=1000"),
    ("model=mt0-small", "seq_len=8", "model.layers=2", "model.vocab_size=1000"),
]


@cache
def attributed(overrides: tuple[str, ...]) -> Attribution:
    return steady(make_trial(*overrides))[1]


@pytest.mark.parametrize("overrides", some(GRID, every=3), ids=" ".join)
def test_the_tracker_agrees_with_theallocator_pass(overrides: tuple[str, ...]) -> None:
    """Two independent measurements: what operations return, and what malloc was asked for."""
    counted = allocator_pass(make_trial(*overrides), CPU, rank=0, steps=1)["peak_allocated_bytes"]
    assert attributed(overrides).peak == pytest.approx(counted, rel=0.0015)


@pytest.mark.parametrize("overrides", some(GRID, every=3), ids=" ".join)
def test_categories_sum_to_the_tracked_peak(overrides: tuple[str, ...]) -> None:
    found = attributed(overrides)
    assert sum(found.at_peak.values()) == found.peak
    assert all(found.at_peak[name] <= found.largest[name] for name in found.at_peak)
    assert found.peak == max(found.peak_by_phase.values())


def test_checkpointing_keeps_little_more_than_each_blocks_input() -> None:
    more = ("model.layers=8", "model.vocab_size=16")  # blocks rule, not the head
    _, kept = steady(make_trial(*more))
    _, recomputed = steady(make_trial("checkpointing=on", *more))
    inputs = 8 * 4 * 128 * HIDDEN * 4
    one_block = kept.largest["activation"] / 8
    assert recomputed.largest["activation"] < inputs + 1.3 * one_block
    assert recomputed.largest["activation"] > inputs


def test_selective_checkpointing_lies_between() -> None:
    more = ("model.layers=8", "model.vocab_size=16")
    levels = [steady(make_trial(f"checkpointing={c}", *more))[1] for c in ("on", "selective", "off")]
    full, selective, off = (found.largest["activation"] for found in levels)
    assert full < selective < off


def test_int8_checkpointing_really_frees_the_inputs() -> None:
    """The trap: the non-reentrant kind cannot free what bitsandbytes keeps on its own context."""
    more = ("precision=int8", "lora=on", "model.layers=8", "model.vocab_size=16", "seq_len=8")
    _, kept = steady(make_trial(*more))
    _, recomputed = steady(make_trial("checkpointing=on", *more))
    assert recomputed.largest["activation"] < 0.4 * kept.largest["activation"]


def test_autocast_keeps_16_bit_copies_of_the_weights() -> None:
    tokens = ("micro_batch_size=1", "seq_len=2")  # so few that activations proper are next to nothing
    _, full = steady(make_trial("precision=fp32", *tokens))
    _, mixed = steady(make_trial("precision=bf16", *tokens))
    copies = (MATRICES + EMBEDDINGS // 2) * 2  # every matmul's weight; not the looked-up embedding
    difference = mixed.largest["activation"] - full.largest["activation"]
    assert difference == pytest.approx(copies, rel=0.05)


def test_autocast_over_16_bit_weights_copies_none_and_narrows_what_adapters_keep() -> None:
    """Without autocast each adapter keeps its input in its own float32, under autocast in 16 bits."""
    _, plain = steady(make_trial("precision=bf16_pure"))
    _, autocast = steady(make_trial("precision=bf16_autocast"))
    assert autocast.largest == plain.largest
    _, wide = steady(make_trial("precision=bf16_pure", "lora=on", "model.layers=8"))
    _, narrow = steady(make_trial("precision=bf16_autocast", "lora=on", "model.layers=8"))
    model = make_trial().model
    hidden, between, rank, tokens = model.hidden_size, model.intermediate_size, 16, 4 * 128
    read_and_ranked = tokens * (
        6 * hidden + between + 7 * rank
    )  # of the 7 linears' inputs, and A's outputs
    copied = rank * (8 * hidden + 3 * (hidden + between))  # autocast's copies of A and B
    difference = wide.largest["activation"] - narrow.largest["activation"]
    assert difference == pytest.approx(8 * 2 * (read_and_ranked - copied), rel=0.003)


def test_the_recorder_counts_what_is_allocated_inside_only() -> None:
    before = torch.empty(1000, dtype=torch.uint8)
    with CpuRecorder() as recorder:
        with recorder.span("one"):
            kept = torch.empty(3000, dtype=torch.uint8)
            del before
            torch.empty(5000, dtype=torch.uint8)
        with recorder.span("two"):
            torch.empty(700, dtype=torch.uint8)
    allocations = recorder.allocations()
    assert allocations.peak("one") == 8000
    assert allocations.peak("two") == 3700
    assert kept.numel() == 3000


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_16_bit_sum_is_built_in_a_copy_in_32_bits(dtype: torch.dtype) -> None:
    add = torch.ops.aten.scatter_add_.default
    total, index, parts = torch.zeros(50, 40, dtype=dtype), torch.zeros(50, 7).long(), torch.ones(50, 7)
    arguments = (total, 1, index, parts.to(dtype))
    with CpuRecorder() as recorder, recorder.span("add"):
        before = torch.empty(1, dtype=torch.uint8)
        add(*arguments)
    expected = workspace_bytes(add, arguments, total, platform_of("cpu"), 1)
    assert expected == (50 * 40 * 4 if dtype == torch.bfloat16 else 0)
    assert recorder.allocations().peak("add") == before.nbytes + expected


def test_weights_from_a_disk_are_counted_as_random_ones_are(tmp_path: Path) -> None:
    """What the tracker does not see is as little: safetensors are mapped, and copied when they are read."""
    build(make_trial(), CPU).model.save_pretrained(tmp_path)
    untracked = []
    for weights in ("random", "pretrained"):
        trial = make_trial(f"model={tmp_path}", f"model.weights={weights}")
        counted = allocator_pass(trial, CPU, rank=0, steps=1)["peak_allocated_bytes"]
        untracked.append((counted or 0) - steady(trial)[1].peak)
    assert max(map(abs, untracked)) < 0.002 * 4 * PARAMETERS, untracked


def test_the_step_does_not_hold_the_logits_through_backward() -> None:
    """Only the loss's own graph may hold vocabulary-sized tensors when backward begins."""
    trial = make_trial("model.vocab_size=50000", "model.layers=1")
    run = build(trial, CPU)
    step(run)
    tracker = Tracker(run)
    at_backward: list[int] = []
    with tracker:

        def enter(phase: str) -> None:
            tracker.enter_phase(phase)
            if phase == "backward":
                live = tracker._storages.values()
                at_backward.append(sum(s.bytes >= 4 * 128 * 50000 * 4 for s in live))

        step(run, enter)
    weights_and_states = 0  # 50000 x 128 weights are smaller than 512 x 50000 logits
    assert at_backward == [weights_and_states + 1], "the log-probabilities, and nothing else"
