"""The parts of a report: sections of text, tables and figures.

contents.py makes them; html_page.py, markdown_page.py and write.py turn them into files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pandas as pd


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        name: the name of its CSV file.
        header: the columns' names.
        rows: the cells.
        code: the names of columns that hold commands.
        numbers: the names of columns that are aligned to the right.
    """

    name: str
    header: list[str]
    rows: list[list[str]]
    code: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Figure:
    """A figure: the name of its file, its caption, and its Vega-Lite specification."""

    name: str
    caption: str
    specification: dict[str, Any]


@dataclass(frozen=True)
class Section:
    """A heading (`title`, of this `level`) with text, tables and figures under it."""

    anchor: str
    title: str
    text: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    level: int = 2


@dataclass(frozen=True)
class Report:
    """A whole report. `rows` has one line for each trial."""

    written_at: datetime
    findings: list[str]
    sections: list[Section]
    rows: pd.DataFrame

    def figures(self) -> Iterator[Figure]:
        """All figures, in order."""
        for section in self.sections:
            yield from section.figures

    def tables(self) -> Iterator[Table]:
        """All tables, in order."""
        for section in self.sections:
            yield from section.tables
