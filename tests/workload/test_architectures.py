"""Architectures: parameter counts against published numbers, or computed by hand."""

from __future__ import annotations

import pytest
import torch

from bench.config.compose import CONF
from bench.trial import adaptable
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


_CATALOGUE = {  # in billions, as the papers and model cards that the levels name say
    "qwen3-0.6b": "0.60",
    "gemma3-1b": "1.00",  # 302M embeddings and 698M others
    "mamba-130m": "0.13",
    "bert-large": "0.34",
    "t0-3b": "2.85",
    "mixtral-8x7b": "46.7",
    "gpt-oss-20b": "20.9",
    "deepseek-v3": "671",
    "qwen3-1.7b": "1.7",
    "qwen3-4b": "4.0",
    "qwen3-8b": "8.2",
    "qwen3-14b": "14.8",
    "qwen3-32b": "32.8",
    "qwen3-30b-a3b": "30.5",
    "qwen3-next-80b-a3b": "80",
    "llama3.2-1b": "1.24",
    "llama3.2-3b": "3.21",
    "llama3.1-8b": "8.03",
    "llama3.1-70b": "70.6",
    "gemma3-4b": "3.88",  # 675M and 3,209M
    "gemma3-12b": "11.77",  # 1,012M and 10,759M
    "gemma3-27b": "27.0",  # 1,416M and 25,600M
    "mistral-7b": "7.25",
    "phi-4": "14.7",
    "gpt-oss-120b": "116.8",
    "olmo2-7b": "7.3",
    "modernbert-base": "0.15",
}
_IN_CI = 8  # one of each kind; the others are slow tests


@pytest.mark.parametrize(
    ("level", "billions"),
    [
        pytest.param(*entry, marks=[pytest.mark.slow] if number >= _IN_CI else [])
        for number, entry in enumerate(_CATALOGUE.items())
    ],
)
def test_the_catalogue_has_the_published_sizes(level: str, billions: str) -> None:
    digits = len(billions.partition(".")[2])
    assert f"{count(level) / 1e9:.{digits}f}" == billions


def test_every_level_that_a_configuration_describes_is_tested() -> None:
    by_config = {path.stem for path in (CONF / "model").glob("*.yaml") if "\nconfig:" in path.read_text()}
    assert by_config <= set(_CATALOGUE)


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
    for words in ([f"model.pretrained={tmp_path}"], [f"model={tmp_path}", "model.weights=pretrained"]):
        again = build(make_trial(*words), torch.device("cpu"))
        for name, parameter in first.model.named_parameters():
            assert torch.equal(parameter, again.model.get_parameter(name)), name
        assert again.trial.model.label == str(tmp_path).rsplit("/", 1)[-1]
    random = build(make_trial(f"model={tmp_path}"), torch.device("cpu"))
    assert not torch.equal(
        random.model.get_parameter("lm_head.weight"), first.model.get_parameter("lm_head.weight")
    )


def test_random_weights_of_a_wide_model_make_no_outliers() -> None:
    """LLM.int8 multiplies columns with a value beyond 6 in 16 bits; of a trained model few."""
    values = random_values(seed=0)
    gate, up = (values(name, torch.Size((512, 4096)), torch.device("cpu")) for name in ("gate", "up"))
    normed = torch.randn(512, 4096, generator=torch.Generator().manual_seed(0))
    down_input = torch.nn.functional.silu(normed @ gate.T) * (normed @ up.T)
    assert (normed @ gate.T).std().item() == pytest.approx(0.5, rel=0.05)
    assert down_input.abs().max() < 6


@pytest.mark.parametrize("level", ["llama-tiny", "opt-125m", "gpt2", "mt0-small"])
def test_what_lora_s_targets_may_be_called_is_what_transformers_calls_them(level: str) -> None:
    trial = make_trial(f"model={level}")
    modules = on_meta(trial).named_modules()
    matrices = {name.rpartition(".")[2] for name, m in modules if getattr(m, "weight", None) is not None}
    norms = {name for name in matrices if "norm" in name or name.startswith("ln_")}
    assert set(adaptable.MATRICES[trial.model.family]) == matrices - norms
