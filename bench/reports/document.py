"""What a report is made of: sections of text, tables and figures. page.py and summary.py give it a form."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pandas as pd


@dataclass(frozen=True)
class Table:
    """A table of text. `code` are the columns that hold commands; `numbers` are set to the right."""

    name: str
    header: list[str]
    rows: list[list[str]]
    code: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Figure:
    """A figure: its Vega-Lite specification, and what it shows in words."""

    name: str
    caption: str
    specification: dict[str, Any]


@dataclass(frozen=True)
class Section:
    """A heading with what is under it."""

    anchor: str
    title: str
    text: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    level: int = 2


@dataclass(frozen=True)
class Report:
    """Everything that a report says. `rows` has every trial on one line."""

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
