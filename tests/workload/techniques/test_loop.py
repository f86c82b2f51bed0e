"""What a loop adds to the step: clipped gradients, kept outputs, updates in the backward."""

from __future__ import annotations

import pytest
import torch

from bench.methods import simulate
from bench.trial.platform import CPU
from bench.trial.skip_rules import skip_reason
from bench.workload.build import build
from bench.workload.loops.train_step import step
from bench.workload.state import NotInForceError
from bench.workload.techniques import loop, optimizer
from tests.conftest import SHORT, make_trial

DEVICE = torch.device("cpu")
EMBEDDING = 1024 * 128 * 4  # bytes of llama-tiny's largest gradient


def simulated_peak(*words: str) -> int:
    return simulate.simulate(make_trial("method=simulate", *words), CPU).peak_bytes


def test_an_update_is_no_longer_than_the_norm_that_was_asked_for() -> None:
    run = build(make_trial(SHORT, "optimizer=sgd", "optimizer.lr=1", "max_grad_norm=0.25"), DEVICE)
    before = [parameter.detach().clone() for parameter in run.model.parameters()]
    evidence = loop.watch(run)
    with pytest.raises(NotInForceError, match="no norm"):
        evidence()
    step(run)
    assert evidence() == {"gradients_clipped": True}
    moved = [p.detach() - old for p, old in zip(run.model.parameters(), before, strict=True)]
    assert run.gradient_norm is not None
    assert run.gradient_norm.item() > 0.25
    assert torch.nn.utils.get_total_norm(moved).item() == pytest.approx(0.25, rel=1e-4)


def test_outputs_that_are_kept_hold_16_bit_logits_through_the_backward() -> None:
    logits = 4 * 128 * 1024 * 2
    kept = simulated_peak("precision=bf16", "keep_outputs=true")
    assert kept - simulated_peak("precision=bf16") == pytest.approx(logits, rel=1e-4)
    run = build(make_trial("precision=bf16", "keep_outputs=true"), DEVICE)
    evidence = loop.watch(run)
    step(run)
    assert evidence() == {"kept_logits_bytes": logits}


@pytest.mark.parametrize("level", ["adamw", "adamw_8bit"])
def test_updates_in_the_backward_are_the_same_updates(level: str) -> None:
    words = (SHORT, f"optimizer={level}")
    plain, early = (
        build(make_trial(*words, f"optimizer.in_backward={value}"), DEVICE) for value in ("false", "true")
    )
    assert [step(early).item() for _ in range(3)] == [step(plain).item() for _ in range(3)]
    evidence = optimizer.watch(early)
    with pytest.raises(NotInForceError, match="0 of 21 parameters"):
        evidence()
    step(early)
    found = evidence()
    assert found["updates_in_backward"] == 21
    assert found["optimizer_class"] == {"adamw": "AdamW", "adamw_8bit": "AdamW8bit"}[level]


def test_updates_in_the_backward_never_hold_all_gradients() -> None:
    """Fused AdamW holds weights, gradients and two moments; here all gradients but a few are gone."""
    words = ("micro_batch_size=1", "seq_len=2", "optimizer=adamw_fused")
    weights = sum(p.nbytes for p in build(make_trial(), DEVICE).model.parameters())
    assert simulated_peak(*words) > 4 * weights
    assert simulated_peak(*words, "optimizer.in_backward=true") < 3 * weights + 2 * EMBEDDING


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("grad_accum_steps=2", "no gradient stays to accumulate"),
        ("max_grad_norm=1", "leave max_grad_norm out"),
        ("precision=fp16", "choose bf16 in place of fp16"),
        ("fsdp=full_shard fsdp.world_size=2", "reduce gradients after that"),
    ],
)
def test_updates_in_the_backward_cannot_wait_for_other_gradients(words: str, reason: str) -> None:
    trial = make_trial("optimizer.in_backward=true", *words.split())
    assert reason in (skip_reason(trial, CPU, 2) or "")


def test_a_chunked_loss_has_no_logits_to_keep() -> None:
    assert "returns none" in (skip_reason(make_trial("keep_outputs=true", "loss=chunked"), CPU, 1) or "")
