"""The table at a sweep's end: replicates together, what ran out of memory, whose speed can be compared."""

from __future__ import annotations

import io
from typing import cast

import pytest
from rich.console import Console

from bench.sweep import summary
from bench.trial.spec import subject_of_rows
from tests import rows as made

RATE = "tokens_per_sec_per_device"


def test_replicates_are_one_line_with_an_interval_across_processes() -> None:
    rows = [made.measured(words, replicate=n, noise=0.05) for n in range(3) for words in ("", "lora=on")]
    plain, lora = summary.merged(rows)
    rates = sorted(row[RATE] for row in rows[::2])
    assert plain[RATE] == rates[1]
    assert plain[f"{RATE}_ci_low"] == min(row[f"{RATE}_ci_low"] for row in rows[::2])
    assert plain[f"{RATE}_ci_high"] == max(row[f"{RATE}_ci_high"] for row in rows[::2])
    assert summary.labels([plain, lora]) == ["(defaults) (×3)", "lora=on (×3)"]


def test_what_ran_out_of_memory_needs_more_than_it_reached_and_says_what_was_predicted() -> None:
    failed = made.measured(made.LARGE[0], made.H100)
    assert failed["status"] == "oom"
    (peak, *others) = summary.cells(failed, None)
    assert peak == f"> {failed['peak_allocated_bytes'] / 2**30:.2f}"
    assert not any(others)
    screen = Console(width=300, file=io.StringIO())
    summary.show_table(screen, [failed])
    said = cast(io.StringIO, screen.file).getvalue()
    assert "predicted to need 1" in said
    assert "GiB (closed form)" in said


def test_the_speed_of_ranks_that_share_a_device_is_not_compared() -> None:
    one, two = made.measured(""), made.measured("fsdp=no_shard fsdp.world_size=2")
    assert summary.cells(two, one)[-1] == ""
    assert any("tokens/s say nothing" in note for note in summary.notes([one, two]))
    assert not any("tokens/s say nothing" in note for note in summary.notes([one]))


def test_a_table_says_its_shape_and_device_and_what_a_precision_means() -> None:
    rows = [made.measured(words) for words in ("precision=fp32", "precision=bf16")]
    assert subject_of_rows(rows) == f"llama-tiny, train, 4 × 128 tokens, on {made.CPU.name}"
    (note,) = summary.notes(rows)
    assert note == "precision=bf16: float32 weights, bfloat16 arithmetic (mixed precision, autocast)."


@pytest.mark.parametrize(
    ("words", "meaning"),
    [
        ("precision=bf16_pure", "bfloat16 weights and arithmetic."),
        ("precision=bf16_autocast", "bfloat16 weights, bfloat16 arithmetic under autocast."),
        ("precision=nf4 lora=on precision.autocast=off", "bfloat16 arithmetic without autocast."),
    ],
)
def test_words_tell_autocast_from_weights_of_16_bits(words: str, meaning: str) -> None:
    row = made.measured(words)
    (note,) = summary.notes([row, row | {"autocast": row["autocast"]}])
    assert note.endswith(meaning)


def test_a_row_of_before_autocast_was_a_column_says_the_same() -> None:
    row = made.measured("precision=bf16")
    assert len(summary.notes([row, row | {"autocast": None}])) == 1
