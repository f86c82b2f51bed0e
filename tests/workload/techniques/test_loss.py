"""The chunked loss: never more than a chunk's logits, the same loss, and models that it cannot serve."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench.methods import simulate
from bench.trial.outcome import CannotExistError
from bench.trial.platform import CPU, CUDA
from bench.trial.skip_rules import skip_reason
from bench.workload.build import build
from bench.workload.loops.train_step import step
from bench.workload.state import NotInForceError
from bench.workload.techniques import loss
from tests.conftest import SHORT, make_trial, some

DEVICE = torch.device("cpu")


@pytest.mark.parametrize(
    ("words", "tolerance"),
    [
        ("grad_accum_steps=2 loss.chunks=7", 1e-6),
        ("precision=bf16_autocast lora=on checkpointing=on", 1e-4),
    ],
)
def test_the_loss_is_the_full_one_and_so_are_its_gradients(words: str, tolerance: float) -> None:
    """Later steps' losses hang on the gradients of earlier ones."""
    runs = [
        build(make_trial(SHORT, f"loss={name}", *words.split()), DEVICE) for name in ("full", "chunked")
    ]
    full, chunked = ([step(run).item() for _ in range(3)] for run in runs)
    assert chunked == pytest.approx(full, rel=tolerance)
    assert full[2] < full[0]


def test_chunks_and_the_largest_logits_are_counted() -> None:
    run = build(make_trial("loss=chunked", "loss.chunks=7", "grad_accum_steps=2"), DEVICE)
    evidence = loss.watch(run)
    with pytest.raises(NotInForceError, match="0 chunks in 2 micro-steps, not twice 7"):
        evidence()
    step(run)
    rows = -(-4 * 128 // 7)
    assert evidence() == {
        "loss_chunks": 7,
        "recomputed_loss_chunks": 7,
        "largest_logits_bytes": rows * 1024 * 4,
    }


@pytest.mark.parametrize("platform", some([CUDA, CPU], every=2), ids=lambda platform: platform.device_type)
def test_an_eighth_of_the_logits_is_an_eighth_of_what_the_loss_holds(platform: object) -> None:
    """Log-softmax, its gradient and the logits' own: 12 bytes a token and entry of the vocabulary."""
    more = ("method=simulate", "lora=on", "model.vocab_size=50000", "checkpointing=on")
    peaks = [
        simulate.simulate(make_trial(*more, f"loss={name}"), platform).peak_bytes  # type: ignore[arg-type]
        for name in ("full", "chunked")
    ]
    assert peaks[0] - peaks[1] == pytest.approx(12 * 4 * 128 * 50_000 * 7 / 8, rel=0.01)


def test_recomputed_logits_count_as_work_of_the_hardware_alone() -> None:
    full, chunked = (
        simulate.simulate(make_trial("method=simulate", f"loss={name}"), CPU).columns
        for name in ("full", "chunked")
    )
    assert chunked["model_flops_per_step"] == full["model_flops_per_step"]
    head = 2 * 128 * 1024 * 4 * 128
    assert chunked["hardware_flops_per_step"] == full["hardware_flops_per_step"] + head


def test_a_model_that_scales_its_logits_is_skipped(tmp_path: Path) -> None:
    config = {"model_type": "cohere", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 50}
    config |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    run = build(make_trial(f"model={tmp_path}", SHORT, "loss=chunked"), DEVICE)
    with pytest.raises(CannotExistError, match="cohere changes its logits"):
        step(run)


def test_models_that_do_not_predict_the_next_token_are_skipped() -> None:
    trial = make_trial("model=mt0-small", "loss=chunked")
    assert "an encoder-decoder does not" in (skip_reason(trial, CPU, 1) or "")
    bert = ("model=bert-large", "model.config.num_hidden_layers=1", "model.config.hidden_size=64")
    with pytest.raises(CannotExistError, match="bert"):
        build(make_trial(*bert, "model.config.intermediate_size=64", "loss=chunked"), DEVICE)
    assert skip_reason(make_trial("workload=prefill", "loss=chunked"), CPU, 1) == (
        "workload=prefill computes no loss"
    )
