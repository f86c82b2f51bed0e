"""Each technique proves that it was in force, and its watcher fails when it was not."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from bitsandbytes.autograd import _functions as bnb_autograd

from bench.workload.build import build
from bench.workload.loops.train_step import step
from bench.workload.state import NotInForceError, Run
from bench.workload.techniques import TECHNIQUES, checkpointing, fsdp, lora, offload, precision
from bench.workload.tensors import parameter_counts
from tests.conftest import make_trial

CPU = torch.device("cpu")


def evidence(run: Run) -> dict[str, Any]:
    watchers = [technique.watch(run) for technique in TECHNIQUES]
    step(run)
    found: dict[str, Any] = {}
    for watcher in watchers:
        found |= watcher()
    return found


def of(*overrides: str) -> dict[str, Any]:
    return evidence(build(make_trial(*overrides), CPU))


def test_the_baseline_shows_no_technique() -> None:
    found = of()
    assert found["trainable_fraction"] == 1.0
    assert found["recomputed_blocks"] == 0
    assert found["parameter_dtypes"] == {"float32": 21}
    assert "int8_modules" not in found
    assert "offloaded_bytes" not in found


@pytest.mark.parametrize(
    ("level", "stored", "computed"),
    [
        ("fp16", "float32", "float16"),
        ("bf16", "float32", "bfloat16"),
        ("fp16_pure", "float16", "float16"),
        ("bf16_pure", "bfloat16", "bfloat16"),
        ("bf16_autocast", "bfloat16", "bfloat16"),
    ],
)
def test_dtypes_of_storage_and_of_arithmetic(level: str, stored: str, computed: str) -> None:
    found = of(f"precision={level}")
    assert set(found["parameter_dtypes"]) == {stored}
    assert found["linear_output_dtypes"] == [computed]
    assert found.get("autocast_dtypes", []) == ([] if level.endswith("pure") else [computed])


@pytest.mark.parametrize(
    ("words", "dtype"),
    [
        ("precision=bf16_pure", "float32"),
        ("precision=bf16_pure lora.dtype=auto", "bfloat16"),
        ("precision=bf16 lora.dtype=auto", "float32"),
        ("precision=nf4 lora.dtype=auto", "bfloat16"),
    ],
)
def test_adapters_are_in_float32_or_as_their_base(words: str, dtype: str) -> None:
    run = build(make_trial("lora=on", *words.split()), CPU)
    assert {str(p.dtype) for p in run.model.parameters() if p.requires_grad} == {f"torch.{dtype}"}
    assert evidence(run)["adapter_dtypes"] == [dtype]


def test_autocast_that_is_not_on_is_noticed() -> None:
    run = build(make_trial("precision=bf16_autocast"), CPU)
    run.autocast = nullcontext  # type: ignore[method-assign]
    with pytest.raises(NotInForceError, match=r"autocast to \[\], not \['bfloat16'\]"):
        evidence(run)


@pytest.mark.parametrize(("level", "stored"), [("int8", "int8"), ("nf4", "uint8")])
def test_quantised_storage_covers_every_linear_of_every_block(level: str, stored: str) -> None:
    found = of(f"precision={level}", "lora=on")
    assert found[f"{level}_modules"] == 14
    assert found["quantised_weight_dtypes"] == [stored]
    assert found["parameter_dtypes"][stored] == 14


@pytest.mark.parametrize(("scale", "least", "most"), [(1.0, 0.0, 0.0), (1e4, 0.5, 1.0)])
def test_the_share_of_outlier_columns_is_told(
    monkeypatch: pytest.MonkeyPatch, scale: float, least: float, most: float
) -> None:
    """bitsandbytes looks for outliers in the matmul that it uses on CUDA, which runs on a CPU as well."""
    monkeypatch.setattr(bnb_autograd, "MatMul8bitFp", bnb_autograd.MatMul8bitLt)
    run = build(make_trial("precision=int8", "lora=on"), CPU)
    with torch.no_grad():
        for name, parameter in run.model.named_parameters():
            if "norm" in name:
                parameter.mul_(scale)
    assert least <= evidence(run)["int8_outlier_share"] <= most


def test_int8_without_lora_multiplies_int8_over_fp32_weights() -> None:
    run = build(make_trial("precision=int8"), CPU)
    found = evidence(run)
    assert found["int8_modules"] == 14
    assert found["quantised_weight_dtypes"] == ["float32"]
    states = [m.state.CB for m in run.model.modules() if isinstance(m, precision.Int8Linear)]
    assert {s.dtype for s in states} == {torch.int8}


def test_four_bits_leave_alone_what_t5_s_code_reads() -> None:
    """T5 casts the input of `wo` to its weight's dtype: packed, no gradient would come through."""
    small = ("model=mt0-small", "model.layers=1", "model.vocab_size=100", "seq_len=8", "lora=on")
    run = build(make_trial(*small, "precision=nf4"), CPU)
    modules = dict(run.model.named_modules())
    names = [name for name in modules if name.endswith("DenseReluDense.wo.base_layer")]
    assert len(names) == 2
    assert {modules[name].weight.dtype for name in names} == {torch.float32}
    step(run)
    before = [p for n, p in run.model.named_parameters() if "wi_0.lora_B" in n]
    assert len(before) == 2
    for parameter in before:
        assert run.optimizer.state[parameter]["exp_avg"].abs().sum() > 0, "the gradient came through `wo`"


@pytest.mark.parametrize("family", ["llama-tiny", "gpt2", "opt-125m", "mt0-small"])
def test_lora_trains_as_many_parameters_as_the_closed_form(family: str) -> None:
    small = (f"model={family}", "model.layers=2", "model.vocab_size=500", "seq_len=8")
    rank = 4
    plain = build(make_trial(*small), CPU)
    shapes = [
        tuple(m.weight.shape)
        for block in plain.blocks
        for m in block.modules()
        if type(m).__name__ in ("Linear", "Conv1D")
    ]
    adapted = build(make_trial(*small, "lora=on", f"lora.rank={rank}"), CPU)
    total, trainable = parameter_counts(adapted)
    assert trainable == sum(rank * (rows + columns) for rows, columns in shapes)
    assert total == parameter_counts(plain)[0] + trainable


def test_lora_targets_are_obeyed() -> None:
    found = of("lora=on", "lora.targets=q_proj+v_proj")
    assert found["lora_modules"] == 4


@pytest.mark.parametrize("level", ["on", "selective"])
@pytest.mark.parametrize("weights", ["fp32", "int8"])
def test_every_block_is_recomputed(level: str, weights: str) -> None:
    if (level, weights) == ("selective", "int8"):
        weights = "nf4"
    quantised = ("lora=on",) if weights != "fp32" else ()
    found = of(f"checkpointing={level}", f"precision={weights}", *quantised)
    assert found["recomputed_blocks"] == found["blocks"] == 2


def test_offloaded_activations_are_counted_and_weights_stay() -> None:
    shape = ("micro_batch_size=1", "seq_len=2")
    found = of("offload=activations", *shape)
    assert 0 < found["offloaded_bytes"] < 4 * 1024 * 128 * 4, "weights would be far more than this"
    assert found["host_is_device"] is True


def test_optimizers_are_the_ones_asked_for() -> None:
    assert of("optimizer=adamw")["optimizer_implementation"] == "loop"
    assert of("optimizer=adamw_foreach")["optimizer_implementation"] == "foreach"
    assert of("optimizer=adamw_fused")["optimizer_implementation"] == "fused"
    assert of("optimizer=adamw_8bit")["optimizer_class"] == "AdamW8bit"
    assert "uint8" in of("optimizer=adamw_8bit")["optimizer_state_dtypes"]
    assert of("optimizer=adafactor")["optimizer_class"] == "Adafactor"


@pytest.mark.parametrize(
    ("asked", "technique"),
    [
        (("precision=int8", "lora=on"), precision),
        (("lora=on",), lora),
        (("checkpointing=on",), checkpointing),
        (("fsdp=full_shard",), fsdp),
        (("fsdp=no_shard",), fsdp),
        (("offload=params", "fsdp=full_shard"), offload),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_technique_that_did_not_happen_is_an_error(
    asked: tuple[str, ...], technique: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plain model under a trial that asks for more: the watcher must not believe the config."""
    run = build(make_trial(), CPU)
    run.trial = make_trial(*asked)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    watcher = technique.watch(run)
    run_as_built = make_trial()
    asked_for, run.trial = run.trial, run_as_built
    step(run)
    run.trial = asked_for
    with pytest.raises(NotInForceError):
        watcher()


def test_fp16_weights_get_an_eps_that_fp16_can_hold() -> None:
    assert build(make_trial("precision=fp16_pure"), CPU).optimizer.defaults["eps"] == 1e-4
    assert build(make_trial("precision=fp16"), CPU).optimizer.defaults["eps"] == 1e-8
    chosen = build(make_trial("precision=fp16_pure", "optimizer.eps=0.01"), CPU)
    assert chosen.optimizer.defaults["eps"] == 0.01


def test_a_misspelt_target_beside_a_right_one_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"no module is called v_prj; this model has .*v_proj"):
        trial = make_trial("lora=on")
        build(replace(trial, lora=replace(trial.lora, targets="q_proj+v_prj")), CPU)


@pytest.mark.parametrize("technique", [checkpointing, fsdp], ids=["checkpointing", "fsdp"])
def test_an_architecture_without_blocks_is_not_in_force(
    technique: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = build(make_trial(), CPU)
    monkeypatch.setattr(type(run), "named_blocks", lambda _run: iter(()))
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    run.trial = make_trial("checkpointing=on", "fsdp=full_shard", "fsdp.world_size=1")
    with pytest.raises(NotInForceError):
        technique.watch(run)()
