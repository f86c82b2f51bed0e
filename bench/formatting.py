"""Numbers as people read them: bytes in GiB or MiB, changes in percent."""

from __future__ import annotations

import math
from collections.abc import Iterable


def format_bytes(of: float) -> str:
    """Bytes in words: GiB from a tenth of one on, MiB below."""
    gib = of / 2**30
    return f"{gib:,.1f} GiB" if gib >= 10 else f"{gib:.2f} GiB" if gib >= 0.1 else f"{of / 2**20:.1f} MiB"


def format_change(change: float, digits: int = 0) -> str:
    """A fraction as a signed change: `−36 %`; empty where it is not a number."""
    if math.isnan(change):
        return ""
    rounded = round(change * 100, digits) + 0.0  # no negative zero
    return f"{rounded:+.{digits}f} %".replace("-", "−") if rounded else f"{rounded:.{digits}f} %"


def count_of(number: int, thing: str) -> str:
    """`1 trial`, `2 trials`."""
    return f"{number:,} {thing}{'s' * (number != 1)}"


def markdown_line(cells: Iterable[str]) -> str:
    """One line of a table."""
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def markdown_table(header: list[str], rows: Iterable[Iterable[str]], numbers: Iterable[str] = ()) -> str:
    """A whole table, with a line feed at its end.

    Args:
        header: the columns' names.
        rows: cells, as many as there are names.
        numbers: the names of columns that are set to the right.
    """
    right = set(numbers)
    rule = ["---:" if name in right else "---" for name in header]
    return "\n".join(markdown_line(cells) for cells in (header, rule, *rows)) + "\n"


_GIB = 2**30


def format_duration(seconds: float) -> str:
    """Seconds in words: `8.1 s`, `2 min 5 s`, `3 h 10 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def format_gib(size: float) -> str:
    """GiB to three significant digits or more."""
    gib = size / _GIB
    return f"{gib:.1f}" if gib >= 100 else f"{gib:.2f}" if gib >= 1 else f"{gib:.4f}"
