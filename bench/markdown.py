"""Markdown tables, written one way: a cell cannot end its column or its line."""

from __future__ import annotations

from collections.abc import Iterable


def line(cells: Iterable[str]) -> str:
    """One line of a table."""
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def table(header: list[str], rows: Iterable[Iterable[str]], numbers: Iterable[str] = ()) -> str:
    """A whole table, with a line feed at its end.

    Args:
        header: the columns' names.
        rows: cells, as many as there are names.
        numbers: the names of columns that are set to the right.
    """
    right = set(numbers)
    rule = ["---:" if name in right else "---" for name in header]
    return "\n".join(line(cells) for cells in (header, rule, *rows)) + "\n"
