"""Fused experts: quantised for real, counted, and passed over by nothing that a row calls nf4."""

from __future__ import annotations

import pytest
import torch

from bench.config.compose import trial_from
from bench.methods import observe
from bench.trial.outcome import CannotExistError
from bench.trial.spec import Trial
from bench.workload import flops
from bench.workload.architectures import config_of, on_meta
from bench.workload.build import build
from bench.workload.experts import active_shares, quantised_experts
from bench.workload.loops.train_step import step
from bench.workload.state import NotInForceError
from bench.workload.techniques import lora, precision
from tests.conftest import make_trial

CPU = torch.device("cpu")
HIDDEN, FFN, EXPERTS, LAYERS, VOCAB = 64, 96, 4, 2, 512
SMALL = (
    "model=mixtral-8x7b",
    f"model.config.hidden_size={HIDDEN}",
    f"model.config.intermediate_size={FFN}",
    f"model.config.num_local_experts={EXPERTS}",
    f"model.config.num_hidden_layers={LAYERS}",
    "model.config.num_attention_heads=4",
    "model.config.num_key_value_heads=2",
    f"model.config.vocab_size={VOCAB}",
    "micro_batch_size=2",
    "seq_len=16",
)
IN_EXPERTS = LAYERS * EXPERTS * 3 * HIDDEN * FFN
IN_ATTENTION = LAYERS * (2 * HIDDEN * HIDDEN + 2 * HIDDEN * HIDDEN // 2)
OTHERS = 2 * VOCAB * HIDDEN + LAYERS * (EXPERTS * HIDDEN + 2 * HIDDEN) + HIDDEN


def mixture(*words: str) -> Trial:
    return trial_from([*SMALL, *words])


def test_nf4_packs_the_experts_and_says_which_share() -> None:
    run = build(mixture("precision=nf4", "lora=on"), CPU)
    packed = list(quantised_experts(run.model))
    assert sum(experts.elements for experts in packed) == IN_EXPERTS
    assert sum(experts.packed.nbytes for experts in packed) == IN_EXPERTS // 2
    watched = precision.watch(run)
    losses = [float(step(run)) for _ in range(3)]
    evidence = watched()
    assert losses[2] < losses[0]
    assert evidence["nf4_experts"] == 2 * LAYERS
    share = (IN_EXPERTS + IN_ATTENTION) / (IN_EXPERTS + IN_ATTENTION + OTHERS)
    assert evidence["quantised_share"] == pytest.approx(share)


def test_dequantised_experts_are_near_the_plain_ones() -> None:
    """4 bits for each of 64 values: the loss of the first step moves by little."""
    plain, packed = (
        float(step(build(mixture(*words, "lora=on", "lora.targets=q_proj"), CPU)))
        for words in (("precision=bf16_pure",), ("precision=nf4", "precision.param_dtype=bfloat16"))
    )
    assert packed == pytest.approx(plain, rel=0.01)


def test_a_quantised_row_with_plain_experts_is_not_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "mark_for_4bit", lambda *_, **__: None)
    run = build(mixture("precision=nf4", "lora=on"), CPU)
    watched = precision.watch(run)
    step(run)
    with pytest.raises(NotInForceError, match=r"% of the weights are quantised; .*gate_up_proj"):
        watched()


def test_int8_of_experts_cannot_exist() -> None:
    with pytest.raises(CannotExistError, match="experts"):
        build(mixture("precision=int8", "lora=on"), CPU)


def test_adapters_lie_on_experts_where_peft_can_put_them() -> None:
    adapters = LAYERS * 4
    for words, on_experts in ((("precision=bf16_pure",), 2 * LAYERS), (("precision=nf4",), 0)):
        run = build(mixture(*words, "lora=on"), CPU)
        evidence = lora.watch(run)()
        assert evidence.get("lora_expert_parameters", 0) == on_experts
        assert evidence["lora_modules"] >= adapters + on_experts


@pytest.mark.parametrize(
    ("level", "billions"),
    [
        ("mixtral-8x7b", 12.9),  # arXiv 2401.04088
        ("qwen3-30b-a3b", 3.3),  # arXiv 2505.09388
        ("deepseek-v3", 37),  # arXiv 2412.19437
    ],
)
def test_active_parameters_are_the_published_ones(level: str, billions: float) -> None:
    trial = make_trial(f"model={level}")
    model = on_meta(trial)
    shares = active_shares(model, config_of(trial.model))
    passive = sum(parameter.numel() * (1 - share) for parameter, share in shares.items())
    active = (sum(p.numel() for p in model.parameters()) - passive) / 1e9
    assert active == pytest.approx(billions, rel=0.02)


def test_a_mixture_counts_the_arithmetic_of_active_experts_only() -> None:
    run = build(mixture("precision=bf16_pure"), CPU)
    columns = observe.size_columns(run)
    idle = IN_EXPERTS // 2  # 2 of 4 experts work on a token
    assert columns["active_param_count"] == columns["param_count"] - idle
    tokens = run.trial.tokens_per_step
    matmul = columns["param_count"] - VOCAB * HIDDEN - (2 * LAYERS + 1) * HIDDEN - idle
    attention = flops.attention_flops(run.trial)
    assert columns["model_flops_per_step"] == pytest.approx(6 * matmul * tokens + 3 * attention)
