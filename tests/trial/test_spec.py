"""Trial: identity, validation, and why a combination is skipped."""

from __future__ import annotations

import dataclasses

import pytest

from bench.config.compose import trial_from
from bench.trial.axes import Lora, Timing
from bench.trial.platform import CPU, CUDA, Platform
from bench.trial.skip_rules import skip_reason
from tests.conftest import make_trial


def test_equal_definitions_have_equal_ids() -> None:
    assert make_trial("precision=bf16").trial_id == make_trial("precision=bf16").trial_id


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "seq_len=64",
        "timing.max_steps=3",
        "timing.budget_seconds=9.0",
        "precision=bf16",
        "precision.int8_threshold=1.0",
        "optimizer.lr=0.5",
        "model.vocab_size=2048",
        "memory_limit_bytes=1000000000",
        "device=cpu",
        "lora=on",
        "loop=trainer",
    ],
)
def test_any_change_that_defines_the_trial_makes_a_new_id(override: str) -> None:
    assert make_trial(override).trial_id != make_trial().trial_id


@pytest.mark.parametrize(
    ("words", "trial_id"),
    [
        ("", "55bc3df5d1c4e38c"),
        ("precision=bf16", "749b6304e0f53172"),
        ("precision=nf4 lora=on lora.rank=8", "4d5b72e2b84ba85c"),
        ("precision=int8 fsdp=full_shard fsdp.world_size=2 method=simulate", "acc19756c22f7dbc"),
        ("workload=decode precision=nf4", "f65dea05e015b427"),
        ("precision=nf4 precision.param_dtype=bfloat16 lora=on", "c2e1ff5052dd5f22"),
    ],
)
def test_a_key_that_came_later_does_not_change_the_trials_of_before(words: str, trial_id: str) -> None:
    """The ids that rows of schema 3 have."""
    assert trial_from(words.split()).trial_id == trial_id


def test_autocast_is_part_of_the_identity_only_where_the_dtypes_say_otherwise() -> None:
    for words, said in (("bf16", "on"), ("bf16_pure", "off"), ("nf4", "on")):
        plain = make_trial(f"precision={words}")
        assert make_trial(f"precision={words}", f"precision.autocast={said}").trial_id == plain.trial_id
    assert make_trial("precision=bf16_autocast").trial_id != make_trial("precision=bf16_pure").trial_id
    assert make_trial("precision=nf4", "precision.autocast=off").trial_id != plain.trial_id


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("precision=fp32 precision.autocast=on", "autocast computes in 16 bits"),
        ("precision=bf16 precision.autocast=off", "choose precision=fp32"),
        ("precision=fp16_autocast", "GradScaler refuses 16-bit gradients"),
        ("precision=bf16_autocast workload=decode", "without autocast"),
    ],
)
def test_autocast_that_cannot_be_is_skipped_with_the_remedy(words: str, reason: str) -> None:
    assert reason in (skip_reason(make_trial(*words.split()), CPU, 1) or "")
    assert skip_reason(make_trial("precision=fp16_autocast", "lora=on"), CPU, 1) is None
    narrow = make_trial("precision=fp16_autocast", "lora=on", "lora.dtype=auto")
    assert "lora.dtype=float32" in (skip_reason(narrow, CPU, 1) or "")


def test_details_of_an_axis_that_is_off_do_not_make_a_new_trial() -> None:
    assert make_trial("loss.chunks=4").trial_id == make_trial().trial_id
    assert make_trial("loss=chunked", "loss.chunks=4").trial_id != make_trial("loss=chunked").trial_id
    assert make_trial("lora.rank=4").trial_id == make_trial("lora.rank=64").trial_id
    assert make_trial("lora=on", "lora.rank=4").trial_id != make_trial("lora=on").trial_id


@pytest.mark.parametrize(
    ("override", "reason"),
    [("fsdp.world_size=2", "fsdp=off runs one process"), ("kv_cache=static", "keeps no keys and values")],
)
def test_what_an_axis_that_is_off_cannot_do_is_skipped_and_not_the_default_trial(
    override: str, reason: str
) -> None:
    trial = make_trial(override)
    assert reason in (skip_reason(trial, CPU, 1) or "")
    assert trial.trial_id != make_trial().trial_id
    assert trial.world_size == 1


def test_where_rows_go_and_how_often_it_runs_do_not_define_a_trial() -> None:
    names = {field.name for field in dataclasses.fields(make_trial())}
    assert not names & {"results_dir", "timeout_seconds", "replicate", "replicates", "sweep_id"}


def test_tokens_per_step_counts_micro_steps_and_both_sides_of_an_encoder_decoder() -> None:
    assert make_trial("micro_batch_size=3", "seq_len=7", "grad_accum_steps=5").tokens_per_step == 105
    both = make_trial("model=mt0-small", "micro_batch_size=3", "seq_len=7", "grad_accum_steps=5")
    assert both.tokens_per_step == 210


def test_a_value_out_of_range_names_key_value_and_what_was_expected() -> None:
    with pytest.raises(ValueError, match=r"^lora\.rank=0: must be at least 1$"):
        Lora(name="on", rank=0)
    with pytest.raises(ValueError, match=r"timing\.max_steps=2: must be at least timing\.min_steps=5"):
        Timing(max_steps=2)


@pytest.mark.parametrize(
    ("overrides", "platform", "words"),
    [
        (("precision=nf4",), CPU, "lora=on"),
        (("precision=int8", "lora=on", "fsdp=full_shard"), CPU, "quantisation state"),
        (("offload=params",), CPU, "needs fsdp=full_shard"),
        (("offload=params", "fsdp=no_shard"), CPU, "needs fsdp=full_shard"),
        (("optimizer=adamw_8bit", "fsdp=full_shard"), CPU, "sharded parameters"),
        (("optimizer=adamw_8bit_paged",), CPU, "CUDA unified memory"),
        (("model=gpt2", "seq_len=2048"), CPU, "1024 learned positions"),
        (("checkpointing=selective", "precision=int8"), CPU, "autograd context"),
        (("fsdp=full_shard", "fsdp.world_size=3"), CUDA, "this machine has 1"),
    ],
)
def test_impossible_combinations_are_skipped_with_a_reason(
    overrides: tuple[str, ...], platform: Platform, words: str
) -> None:
    reason = skip_reason(make_trial(*overrides), platform, device_count=1)
    assert reason is not None
    assert words in reason


@pytest.mark.parametrize(
    "overrides",
    [
        ("precision=int8",),
        ("precision=nf4", "lora=on", "fsdp=full_shard", "checkpointing=on"),
        ("offload=params", "fsdp=full_shard", "fsdp.world_size=1"),
        ("model=llama-tiny", "seq_len=4096"),
    ],
)
def test_possible_combinations_are_not_skipped(overrides: tuple[str, ...]) -> None:
    assert skip_reason(make_trial(*overrides), CPU, device_count=0) is None
