"""Text that people read: bytes, changes, durations and counts in words, Markdown tables, the console.

In: plain numbers and text. Out: text. This module imports nothing of the project, nor torch or pandas:
every room may use it, and the commands start fast.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_MIB, _GIB = 2**20, 2**30
_GAP = 2  # spaces between two columns of a table


def byte_unit(largest: float | None) -> tuple[str, int]:
    """The unit for bytes up to `largest`, GiB from a tenth of one on or MiB, and the unit's size."""
    return ("GiB", _GIB) if largest and largest >= 0.1 * _GIB else ("MiB", _MIB)


def format_bytes(size: float) -> str:
    """Bytes with their unit: `12.3 GiB`, `1.23 GiB`, `12.3 MiB`."""
    unit, unit_size = byte_unit(size)
    number = size / unit_size
    if unit == "MiB":
        return f"{number:.1f} MiB"
    return f"{number:,.1f} GiB" if number >= 10 else f"{number:.2f} GiB"


def format_difference(size: float) -> str:
    """A difference of bytes with its sign and unit: `+12.3 MiB`, `−4.0 KiB`; `0` where there is none."""
    if not size:
        return "0"
    small = abs(size) < 2**20 / 10
    return (
        f"{'+' if size > 0 else '−'}{f'{abs(size) / 2**10:.1f} KiB' if small else format_bytes(abs(size))}"
    )


def format_peak(size: float, status: str) -> str:
    """A trial's peak with its unit; one that ran out of memory needs more than it reached."""
    return f"more than {format_bytes(size)}" if status == "oom" else format_bytes(size)


_UNITS: dict[str, int] = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12} | {
    f"{prefix}i": 2 ** (10 * power) for power, prefix in enumerate("KMGT", 1)
}


def parse_bytes(text: str) -> int:
    """Bytes from a number with a unit or without: `24GB`, `24 GiB`, `1.5e9`, `512`.

    Raises:
        ValueError: it is no number of bytes; the message says what was expected.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?(?:e\d{1,2})?) ?([kKMGT]?i?)B?", text.strip())
    prefix = "k" if match and match[2] == "K" else match and match[2]
    if match is None or prefix not in _UNITS:
        raise ValueError(f"{text}: must be bytes, as 24GB, 24GiB or 24000000000")
    return round(float(match[1]) * int(_UNITS[prefix]))


def format_gib(size: float) -> str:
    """GiB, without the unit, to three significant digits or more."""
    gib = size / _GIB
    return f"{gib:.1f}" if gib >= 100 else f"{gib:.2f}" if gib >= 1 else f"{gib:.4f}"


def format_gib_fixed(size: float) -> str:
    """GiB, without the unit, to two decimals: for columns that are read downwards."""
    return f"{size / _GIB:.2f}"


def format_change(change: float, digits: int = 0) -> str:
    """A fraction as a signed change: `−36 %`; empty where it is not a number."""
    if math.isnan(change):
        return ""
    rounded = round(change * 100, digits) + 0.0  # no negative zero
    return f"{rounded:+.{digits}f} %".replace("-", "−") if rounded else f"{rounded:.{digits}f} %"


def format_rate(per_second: float) -> str:
    """A rate: `8,960`, `95.6`, `0.82`."""
    return f"{per_second:,.0f}" if per_second >= 100 else f"{per_second:.3g}"


def format_duration(seconds: float) -> str:
    """Seconds in words: `8.1 s`, `2 min 5 s`, `3 h 10 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def count_of(number: int, thing: str) -> str:
    """`1 trial`, `2 trials`."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def markdown_line(cells: Iterable[str]) -> str:
    """One line of a Markdown table, without a line feed."""
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def markdown_table(header: list[str], rows: Iterable[Iterable[str]], numbers: Iterable[str] = ()) -> str:
    """A Markdown table, with a line feed at its end.

    Args:
        header: the columns' names.
        rows: lists of cells, as many as there are names.
        numbers: the names of columns that are aligned to the right.
    """
    right = set(numbers)
    rule = ["---:" if name in right else "---" for name in header]
    return "\n".join(markdown_line(cells) for cells in (header, rule, *rows)) + "\n"


def console(width: int) -> Console:
    """A console on stdout: as wide as the terminal or as $COLUMNS says, else `width` columns.

    Printing to a pipe that nobody reads any more is a BrokenPipeError.
    """
    from rich.console import Console  # not at the top: the commands must start fast

    class Screen(Console):
        def on_broken_pipe(self) -> None:
            raise

    terminal = Screen()
    return terminal if terminal.is_terminal or "COLUMNS" in os.environ else Screen(width=width)


def fits(screen: Console, table: Table) -> bool:
    """Whether the screen is wide enough for the table without breaking a word."""
    from rich.measure import Measurement

    unlimited = screen.options.update(width=10_000)
    return Measurement.get(screen, unlimited, table).minimum <= screen.width


def print_fitting(screen: Console, *tables: Table) -> None:
    """Prints the first of these tables that fits the screen, else the last."""
    chosen = next((table for table in tables if fits(screen, table)), tables[-1])
    screen.print(chosen, highlight=False)


def print_rows(
    screen: Console,
    header: list[str],
    rows: list[list[str]],
    *,
    wraps: Iterable[str] = (),
    right: Iterable[str] = (),
    styles: Iterable[str] = (),
) -> None:
    """Prints a table; where the screen is too narrow for it, each row as a list of what its cells are.

    Args:
        screen: where to print.
        header: the columns' names.
        rows: lists of cells, as many as there are names.
        wraps: the names of columns whose cells may have several lines.
        right: the names of columns that are aligned to the right.
        styles: a style for each row; default: none.
    """
    from rich.markup import escape
    from rich.table import Table

    styles = list(styles) or [""] * len(rows)
    widths = _widths(header, rows, set(wraps), screen.width - _GAP * (len(header) - 1))
    if widths:
        table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0))
        for name, width in zip(header, widths, strict=True):
            table.add_column(name, justify="right" if name in set(right) else "left", width=width)
        for row, style in zip(rows, styles, strict=True):
            table.add_row(*map(escape, row), style=style)
        screen.print(table, highlight=False)
        return
    indent = max(map(len, header[1:])) + 4
    for row, style in zip(rows, styles, strict=True):
        screen.print(row[0], style=style or "bold", highlight=False, markup=False)
        for name, cell in zip(header[1:], row[1:], strict=True):
            if cell:
                record = Table.grid(padding=0)
                record.add_column(width=indent, no_wrap=True)
                record.add_column(overflow="fold")
                record.add_row(f"  {name}", escape(cell))
                screen.print(record, style=style, highlight=False)


def _widths(header: list[str], rows: list[list[str]], wraps: set[str], room: int) -> list[int] | None:
    """The columns' widths, which break no word and add up to `room` at most; None if there are none."""
    columns = list(zip(header, *rows, strict=True))
    longest = [max(map(len, cells)) for cells in columns]
    words = [max(len(word) for cell in cells for word in (cell.split() or [""])) for cells in columns]
    widths = [
        least if name in wraps else whole for name, whole, least in zip(header, longest, words, strict=True)
    ]
    if sum(widths) > room:
        return None
    for _ in range(room - sum(widths)):  # the column that lacks most gets each further character
        lacking = max(range(len(widths)), key=lambda n: longest[n] - widths[n])
        widths[lacking] += longest[lacking] > widths[lacking]
    return widths
