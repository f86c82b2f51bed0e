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
from bench.workload.build import build
from bench.workload.state import CannotExistError
from bench.workload.tensors import computes_as_linear
from tests.conftest import make_trial


def test_a_subclass_of_linear_is_one_if_it_computes_the_same() -> None:
    router = Llama4Router(shrunken("llama4_text"))
    assert computes_as_linear(FalconLinear(4, 4))
    assert computes_as_linear(torch.nn.Linear(4, 4))
    assert not computes_as_linear(router)
    assert not computes_as_linear(torch.nn.Embedding(4, 4))


@pytest.mark.parametrize("word", ["checkpointing=on", "precision=nf4 lora=on"])
@pytest.mark.parametrize("method", ["measure", "simulate"])
def test_an_architecture_without_blocks_is_skipped(tmp_path: Path, word: str, method: str) -> None:
    shrunken("openai-gpt").save_pretrained(tmp_path)
    said: list[tuple[str, Any]] = []
    trial = make_trial(f"method={method}", f"model={tmp_path}", "device=cpu", "threads=1", *word.split())
    run_rank(trial, Seat(0, 0, 1, ""), lambda kind, payload: said.append((kind, payload)))
    kind, payload = said[-1]
    assert kind == "skipped"
    assert payload["reason"].startswith("openai-gpt has no")


@pytest.mark.parametrize("architecture", ["bert", "biogpt"])
def test_more_tokens_than_positions_is_one_sentence(tmp_path: Path, architecture: str) -> None:
    shrunken(architecture).save_pretrained(tmp_path)
    trial = make_trial("method=simulate", f"model={tmp_path}", "device=cpu", "seq_len=129")
    with pytest.raises(CannotExistError, match="128 learned positions, fewer than 129 tokens"):
        build(trial, torch.device("cpu"))


def test_rotary_positions_have_no_table(tmp_path: Path) -> None:
    shrunken("qwen3").save_pretrained(tmp_path)
    trial = make_trial("method=simulate", f"model={tmp_path}", "device=cpu", "seq_len=129")
    build(trial, torch.device("cpu"))
