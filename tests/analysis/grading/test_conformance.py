"""Architectures that nobody here chose: plain transformers trains them, and both ways to know agree."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.analysis.grading import conformance, shrunken_configs
from bench.analysis.grading.conformance import AXES, DIVERSE, Verdict
from bench.analysis.grading.conformance_table import page, summary
from tests.conftest import some

FP32, PURE, NF4 = AXES
SAMPLE = [
    *((name, FP32) for name in DIVERSE if name != "lfm2"),
    ("mixtral", PURE),
    ("qwen3", NF4),
    pytest.param("lfm2", FP32, marks=pytest.mark.slow),
    pytest.param("bart", PURE, marks=pytest.mark.slow),
]


def every_name() -> list[str]:
    return [*shrunken_configs.causal(), *shrunken_configs.sequence_to_sequence()]


@pytest.mark.parametrize(("architecture", "axis"), SAMPLE, ids=str)
def test_a_diverse_sample_is_measured_and_simulated_alike(architecture: str, axis: str) -> None:
    found = conformance.verdict(architecture, axis)
    assert found.status == "ok", found.reason
    assert abs(found.error) < 0.001


@pytest.mark.slow
@pytest.mark.parametrize("axis", AXES)
def test_of_all_that_train_95_percent_agree(axis: str, tmp_path: Path) -> None:
    found = [
        conformance.verdict(name, axis) for name in every_name() if conformance.untrained(name) is None
    ]
    possible = [v for v in found if v.status != "skipped"]
    others = [f"{v.architecture}: {v.status} {v.reason}" for v in possible if not v.conforms]
    assert len(others) <= 0.05 * len(possible), others


def test_the_sample_trains_in_plain_transformers() -> None:
    assert set(DIVERSE) <= set(every_name())
    assert conformance.untrained("qwen3") is None
    assert "batch_size (0)" in str(conformance.untrained("git"))  # it wants a picture


@pytest.mark.parametrize("architecture", some(["llama", "deepseek_v3", "lfm2", "gemma4_text", "mamba2"], 1))
def test_a_shrunken_configuration_is_small_and_keeps_a_layer_of_each_kind(architecture: str) -> None:
    config = shrunken_configs.shrunken(architecture).get_text_config()
    assert config.hidden_size == 64
    assert 2 <= config.num_hidden_layers <= 6
    published = shrunken_configs.CONFIG_MAPPING[architecture]().get_text_config()
    kinds = getattr(published, "layer_types", None)
    assert kinds is None or set(config.layer_types) == set(kinds)


def test_a_walk_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    known = tmp_path / "found.jsonl"
    line = '{"architecture": "llama", "axis": "AXIS", "measured_bytes": 1000, "simulated_bytes": 1009}\n'
    known.write_text("".join(line.replace("AXIS", axis) for axis in AXES))
    assert list(conformance.walk(["llama"], known)) == []
    assert [v.conforms for v in conformance.read(known)] == [True] * 3


def test_the_table_counts_what_can_be_combined_and_names_the_rest() -> None:
    found = [
        Verdict("a", FP32, measured_bytes=1000, simulated_bytes=1000),
        Verdict("b", FP32, measured_bytes=1000, simulated_bytes=1020),
        Verdict("c", FP32, "unsimulated", "a size | that is data", measured_bytes=1000),
        Verdict("d", FP32, "skipped", "no block"),
        Verdict("e", status="untrained", reason="needs sound"),
    ]
    assert summary(found)[0] == [FP32, "4", "3", "3", "2", "1", "33.3%"]
    text = page(found, "5", ["a", "e"])
    assert "Not walked on every axis yet (1): a." in text
    assert "+2.00%" in text
    assert "a size / that is data" in text
    assert "needs sound" in text
