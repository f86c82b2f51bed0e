"""Bytes from words, and tables on narrow screens."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from bench import formatting


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("24GB", 24 * 10**9),
        ("24 GiB", 24 * 2**30),
        ("1.5e3", 1500),
        ("8k", 8000),
        ("8Ki", 8192),
        ("512", 512),
        ("0.5T", 5 * 10**11),
    ],
)
def test_bytes_take_units(text: str, size: int) -> None:
    assert formatting.parse_bytes(text) == size


@pytest.mark.parametrize("text", ["24XB", "GB", "", "-1", "1e999", "1.2.3", "24 G B"])
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="must be bytes, as 24GB"):
        formatting.parse_bytes(text)


def shown(width: int) -> list[str]:
    screen = Console(width=width, file=io.StringIO())
    header = ["trial", "peak MiB", "change", "note"]
    rows = [["checkpointing=selective precision=bf16", "1.0 -> 2.0", "+5 %", "a note of several words"]]
    formatting.print_rows(screen, header, rows, wraps=["trial", "note"])
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_a_table_of_any_width_breaks_no_word(width: int) -> None:
    lines = shown(width)
    assert max(map(len, lines)) <= width
    words = " ".join(lines).split()
    for word in ("checkpointing=selective", "precision=bf16", "1.0", "+5", "several", "words"):
        assert word in words


def test_where_a_table_does_not_fit_each_row_is_a_list() -> None:
    assert len(shown(120)) == 2
    assert [line.split()[0] for line in shown(45)] == ["checkpointing=selective", "peak", "change", "note"]
