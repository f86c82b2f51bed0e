"""The mathematics: techniques that must not change it do not, and gradients accumulate."""

from __future__ import annotations

import pytest
import torch

from bench.workload.architectures import blocks_of
from bench.workload.build import build
from bench.workload.loops.train_step import step
from bench.workload.weights import canonical_name
from tests.conftest import SHORT, make_trial

CPU = torch.device("cpu")
STEPS = 4


def losses(*overrides: str) -> list[float]:
    run = build(make_trial(SHORT, *overrides), CPU)
    return [step(run).item() for _ in range(STEPS)]


@pytest.mark.parametrize("base", ["precision=fp32", "precision=bf16", "precision=bf16_pure"])
@pytest.mark.parametrize(
    "technique", ["checkpointing=on", "checkpointing=selective", "offload=activations"]
)
def test_memory_techniques_leave_the_losses_alone(base: str, technique: str) -> None:
    assert losses(base, technique) == pytest.approx(losses(base), rel=1e-6)


@pytest.mark.parametrize("family", ["llama-tiny", "gpt2", "opt-125m", "mt0-small"])
def test_checkpointing_leaves_the_losses_alone_in_every_family(family: str) -> None:
    small = (f"model={family}", "model.layers=2", "model.vocab_size=500", "seq_len=16")
    assert losses(*small, "checkpointing=on") == pytest.approx(losses(*small), rel=1e-6)


@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_checkpointing_leaves_quantised_losses_alone(precision: str) -> None:
    base = (f"precision={precision}", "lora=on")
    assert losses(*base, "checkpointing=on") == pytest.approx(losses(*base), rel=1e-6)


@pytest.mark.parametrize(
    ("overrides", "tolerance"),
    [
        (("precision=fp16",), 1e-3),
        (("precision=bf16",), 1e-3),
        (("precision=bf16_pure",), 5e-3),
        (("precision=int8",), 1e-3),
        (("optimizer=adamw_fused",), 1e-5),
        (("optimizer=adamw_foreach",), 1e-5),
        (("optimizer=adamw_8bit",), 1e-3),
    ],
)
def test_approximations_stay_near_the_fp32_losses(overrides: tuple[str, ...], tolerance: float) -> None:
    assert losses(*overrides) == pytest.approx(losses(), rel=tolerance)


@pytest.mark.parametrize("precision", ["bf16", "int8", "nf4"])
def test_quantised_bases_stay_near_the_unquantised_ones_under_lora(precision: str) -> None:
    assert losses(f"precision={precision}", "lora=on") == pytest.approx(losses("lora=on"), rel=2e-3)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "fp16_pure", "bf16_pure", "int8"])
def test_it_learns(precision: str) -> None:
    run = build(make_trial(SHORT, f"precision={precision}"), CPU)
    history = [step(run).item() for _ in range(12)]
    assert history[-1] < 0.9 * history[0]


@pytest.mark.parametrize("base", [("precision=int8",), ("precision=nf4",), ("precision=fp32",)])
def test_adapters_learn_and_the_base_stays(base: tuple[str, ...]) -> None:
    run = build(make_trial(*base, "lora=on", "optimizer.lr=0.01"), CPU)
    frozen = {n: p.detach().clone() for n, p in run.model.named_parameters() if not p.requires_grad}
    history = [step(run).item() for _ in range(8)]
    assert history[-1] < 0.97 * history[0]
    for name, parameter in run.model.named_parameters():
        if name in frozen:
            assert torch.equal(parameter, frozen[name]), name
            assert parameter.grad is None


def test_loss_of_the_first_step_is_that_of_a_uniform_guess() -> None:
    import math

    assert losses()[0] == pytest.approx(math.log(1024), rel=0.01)


def test_micro_steps_accumulate_to_the_mean_gradient() -> None:
    whole = build(make_trial("grad_accum_steps=2", "micro_batch_size=2", "optimizer=sgd"), CPU)
    joined = build(make_trial("micro_batch_size=4", "optimizer=sgd"), CPU)
    joined.batches = [{k: torch.cat([batch[k] for batch in whole.batches]) for k in whole.batches[0]}]
    assert step(whole).item() == pytest.approx(step(joined).item(), rel=1e-5)
    for (name, a), (_, b) in zip(
        whole.model.named_parameters(), joined.model.named_parameters(), strict=True
    ):
        assert torch.allclose(a, b, atol=1e-6), name


def test_same_seed_same_weights_whatever_wraps_them() -> None:
    plain = dict(build(make_trial(), CPU).model.named_parameters())
    wrapped = build(make_trial("lora=on", "checkpointing=on"), CPU).model.named_parameters()
    names = {canonical_name(name): p for name, p in wrapped if "lora_" not in name}
    assert names.keys() == plain.keys()
    for name, parameter in plain.items():
        assert torch.equal(parameter, names[name]), name
    other = dict(build(make_trial("seed=1"), CPU).model.named_parameters())
    assert not torch.equal(other["lm_head.weight"], plain["lm_head.weight"])


def test_quantised_weights_are_near_the_ones_they_were_made_from() -> None:
    import bitsandbytes as bnb

    plain = build(make_trial(), CPU)
    for precision in ("int8", "nf4"):
        quantised = build(make_trial(f"precision={precision}", "lora=on"), CPU)
        name, block = next(iter(blocks_of(plain.model).items()))
        exact = block.mlp.gate_proj.weight
        layer = quantised.model.get_submodule(f"base_model.model.{name}.mlp.gate_proj.base_layer")
        if precision == "int8":
            near = layer.weight.data.float() * layer.weight.SCB.unsqueeze(1) / 127
            worst = 0.02 * 5 / 127  # half a step of a row whose largest is about 4 sigma
        else:
            near = bnb.functional.dequantize_4bit(layer.weight.data, layer.quant_state).float()
            worst = 0.02
        assert (near - exact).abs().max() < worst
