"""Architectures and techniques that cannot be combined: said in one sentence, and never an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.falcon.modeling_falcon import FalconLinear
from transformers.models.llama4.modeling_llama4 import Llama4Router

from bench.analysis.grading.shrunken_configs import shrunken
from bench.processes.nodes import Seat
from bench.processes.worker import run_rank
from bench.trial.outcome import CannotExistError
from bench.trial.spec import Trial
from bench.workload.architectures import on_meta
from bench.workload.build import build
from bench.workload.tensors import computes_as_linear, quantised_linears
from tests.conftest import make_trial


def tiny(folder: Path, *words: str) -> Trial:
    """The trial of a configuration that was saved in `folder`."""
    return make_trial(f"model={folder}", "device=cpu", *words)


def test_a_subclass_of_linear_is_one_if_it_computes_the_same() -> None:
    router = Llama4Router(shrunken("llama4_text"))
    assert computes_as_linear(FalconLinear(4, 4))
    assert computes_as_linear(torch.nn.Linear(4, 4))
    assert not computes_as_linear(router)
    assert not computes_as_linear(torch.nn.Embedding(4, 4))


@pytest.mark.parametrize("method", ["measure", "simulate"])
def test_checkpointing_without_blocks_is_skipped(tmp_path: Path, method: str) -> None:
    shrunken("openai-gpt").save_pretrained(tmp_path)
    said: list[tuple[str, Any]] = []
    trial = make_trial(
        f"method={method}", f"model={tmp_path}", "device=cpu", "threads=1", "checkpointing=on"
    )
    run_rank(trial, Seat(0, 0, 1, ""), lambda kind, payload: said.append((kind, payload)))
    kind, payload = said[-1]
    assert kind == "skipped"
    assert payload["reason"].startswith("openai-gpt has no")


def test_without_blocks_every_linear_but_the_head_is_quantised(tmp_path: Path) -> None:
    config = shrunken("openai-gpt")
    config.save_pretrained(tmp_path)
    run = build(tiny(tmp_path, "method=simulate", "precision=nf4", "lora=on"), torch.device("cpu"))
    assert len(quantised_linears(run.model)) == 4 * config.num_hidden_layers
    assert type(run.model.get_output_embeddings()) is torch.nn.Linear


def test_a_weight_that_the_model_reads_itself_is_not_packed(tmp_path: Path) -> None:
    config = shrunken("gemma3n_text")  # it clamps AltUp's coefficients in every step
    config.save_pretrained(tmp_path)
    run = build(tiny(tmp_path, "method=simulate", "precision=nf4", "lora=on"), torch.device("cpu"))
    packed = quantised_linears(run.model)
    coefficients = [m for name, m in run.model.named_modules() if name.endswith("coefs.base_layer")]
    assert len(coefficients) == 2 * config.num_hidden_layers
    assert packed
    assert not set(coefficients) & set(packed)


@pytest.mark.parametrize("architecture", ["gemma3", "encoder-decoder"])
def test_no_part_of_a_model_keeps_a_cache(tmp_path: Path, architecture: str) -> None:
    shrunken(architecture).save_pretrained(tmp_path)
    parts = [m.config for m in on_meta(tiny(tmp_path)).modules() if hasattr(m, "config")]
    assert not any(getattr(config, "use_cache", False) for config in parts)


@pytest.mark.parametrize("architecture", ["bert", "biogpt"])
def test_more_tokens_than_positions_is_one_sentence(tmp_path: Path, architecture: str) -> None:
    shrunken(architecture).save_pretrained(tmp_path)
    trial = tiny(tmp_path, "method=simulate", "seq_len=129")
    with pytest.raises(CannotExistError, match="128 learned positions, fewer than 129 tokens"):
        build(trial, torch.device("cpu"))


def test_rotary_positions_have_no_table(tmp_path: Path) -> None:
    shrunken("qwen3").save_pretrained(tmp_path)
    build(tiny(tmp_path, "method=simulate", "seq_len=129"), torch.device("cpu"))
