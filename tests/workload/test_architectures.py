"""Architectures: parameter counts against published numbers, or computed by hand."""

from __future__ import annotations

import pytest
import torch

from bench.workload.architectures import blocks_of, on_meta
from bench.workload.weights import random_values
from tests.conftest import make_trial


def count(level: str) -> int:
    return sum(p.numel() for p in on_meta(make_trial(f"model={level}")).parameters())


@pytest.mark.parametrize(
    ("level", "published"),
    [
        ("llama-1b", 1_100_048_384),  # TinyLlama's model card: 1.1B
        ("llama-7b", 6_738_415_616),  # LLaMA's checkpoint, 6.7B in table 2
        ("llama-13b", 13_015_864_320),
        ("llama-33b", 32_528_943_616),
        ("llama-65b", 65_285_660_672),
        ("llama3-8b", 8_030_261_248),
        ("opt-125m", 125_239_296),
        ("opt-6.7b", 6_658_473_984),
        ("gpt2", 124_439_808),
        ("mt0-small", 300_176_768),
        ("mt0-xl", 3_742_619_648),
    ],
)
def test_parameter_count_is_the_published_one(level: str, published: int) -> None:
    assert count(level) == published


def test_llama_tiny_by_hand() -> None:
    hidden, ffn, vocab, layers = 128, 352, 1024, 2
    per_layer = 4 * hidden * hidden + 3 * hidden * ffn + 2 * hidden
    assert count("llama-tiny") == 2 * vocab * hidden + layers * per_layer + hidden


def test_parameters_are_shapes_and_buffers_are_real() -> None:
    model = on_meta(make_trial("model=llama-7b"))
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert {b.device.type for b in model.buffers()} == {"cpu"}


def test_grouped_query_attention_has_smaller_keys_and_values() -> None:
    layer = next(iter(blocks_of(on_meta(make_trial("model=llama3-8b"))).values()))
    assert layer.self_attn.k_proj.weight.shape == (8 * 128, 4096)
    assert layer.self_attn.q_proj.weight.shape == (32 * 128, 4096)


@pytest.mark.parametrize(("level", "blocks"), [("llama-7b", 32), ("gpt2", 12), ("mt0-small", 16)])
def test_blocks_are_found_in_every_family(level: str, blocks: int) -> None:
    assert len(blocks_of(on_meta(make_trial(f"model={level}")))) == blocks


@pytest.mark.parametrize("level", ["opt-125m", "gpt2"])
def test_tied_embeddings_stay_tied(level: str) -> None:
    model = on_meta(make_trial(f"model={level}"))
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_pretrained_weights_are_used(tmp_path: object) -> None:
    from bench.workload.build import build

    trial = make_trial()
    first = build(trial, torch.device("cpu"))
    with torch.no_grad():
        first.model.get_parameter("lm_head.weight").fill_(0.25)
    first.model.save_pretrained(tmp_path)
    again = build(make_trial(f"model.pretrained={tmp_path}"), torch.device("cpu"))
    for name, parameter in first.model.named_parameters():
        assert torch.equal(parameter, again.model.get_parameter(name)), name
    assert again.trial.model.label == str(tmp_path).rsplit("/", 1)[-1]


def test_random_weights_of_a_wide_model_make_no_outliers() -> None:
    """LLM.int8 multiplies columns with a value beyond 6 in 16 bits; of a trained model few."""
    values = random_values(seed=0)
    gate, up = (values(name, torch.Size((512, 4096)), torch.device("cpu")) for name in ("gate", "up"))
    normed = torch.randn(512, 4096, generator=torch.Generator().manual_seed(0))
    down_input = torch.nn.functional.silu(normed @ gate.T) * (normed @ up.T)
    assert (normed @ gate.T).std().item() == pytest.approx(0.5, rel=0.05)
    assert down_input.abs().max() < 6
