"""What the notebooks show: tables, figures and sentences, the same in Jupyter and in rendered pages.

A column's name says its unit, so it says its format too: bytes become MiB or GiB, changes signed percent.
What comes from rows is text: it is escaped, and never run. Where there is nothing to show, words say so.
"""

from __future__ import annotations

import html
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from IPython.display import HTML, display

from bench.analysis import studies
from bench.reports import charts

_MOST_LINES = 60
_MOST_STUDIES = 6
_SHORT = 24  # letters that need not be broken into lines


def folder(variable: str, default: str | None = None) -> Path | None:
    """The results folder that an environment variable names, or the default; None if there is neither."""
    named = os.environ.get(variable) or default
    return Path(named).expanduser() if named else None


def say(text: str) -> None:
    """One sentence."""
    _show(f"<p>{html.escape(text)}</p>")


def heading(text: str) -> None:
    """What the next table or figure is about: a study's title, say."""
    _show(f"<h4>{html.escape(text)}</h4>")


def chosen(of: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The studies worth a picture, each with its title: those of several trials, the six largest at most.

    Args:
        of: what `studies.trials` returns. Measured studies come before predicted ones, and it is said how
            many are left out. A study of one trial is shown if there is no other.
    """
    found = studies.studies(of)
    several = studies.of_several(found)
    shown = several[:_MOST_STUDIES]
    if len(shown) < len(found):
        single = len(found) - len(several)
        say(
            f"{len(found)} studies: {len(shown)} are shown, {len(several) - len(shown)} smaller ones and "
            f"{single} of a single trial are left out here."
        )
    return [(study["title"].iloc[0], study) for study in shown]


def figure(chart: charts.Chart | None, nothing: str) -> None:
    """The chart as SVG, drawn here; or, where there is none, what `nothing` says."""
    if chart is None:
        say(nothing)
    else:
        _show(f"<figure>{charts.svg(charts.spec(chart))}</figure>")


def table(frame: pd.DataFrame, nothing: str, *, most: int = _MOST_LINES) -> None:
    """The first lines as a table with units; or, where there is no line, what `nothing` says.

    A column's name gives its format: `_bytes`, `_seconds` and `tokens_per_sec` in it; at its end `_share`
    (percent), `_change` and `error` (signed percent; `_bytes_change` signed bytes). Anything else is shown
    as it is, and a column that is empty throughout not at all.
    """
    if frame.empty:
        say(nothing)
        return
    shown = frame.head(most).dropna(axis="columns", how="all")
    columns = [_Column.of(str(name), shown[name]) for name in shown]
    head = "".join(f'<th class="{column.kind}">{html.escape(column.title)}</th>' for column in columns)
    lines = [
        "<tr>" + "".join(f'<td class="{c.kind}">{html.escape(c.cells[n])}</td>' for c in columns) + "</tr>"
        for n in range(len(shown))
    ]
    body = "\n".join(lines)
    _show(
        f'<div class="table"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'
    )
    if len(frame) > len(shown):
        say(f"and {len(frame) - len(shown):,} more.")


def _show(markup: str) -> None:
    display(HTML(markup))  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class _Column:
    """As it is shown: title with unit, kind (`number`, `short` or long `text`), and cells."""

    title: str
    kind: str
    cells: list[str]

    @classmethod
    def of(cls, name: str, values: pd.Series[Any]) -> _Column:
        title, form = _format(name, values)
        cells = ["" if _missing(value) else form(value) for value in values]
        if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
            return cls(title, "number", cells)
        return cls(title, "short" if max(map(len, cells)) <= _SHORT else "text", cells)


def _missing(value: Any) -> bool:
    return value is None or (not isinstance(value, str) and bool(pd.isna(value)))


def _format(name: str, values: pd.Series[Any]) -> tuple[str, Callable[[Any], str]]:
    """The column's title with its unit, and how one value reads."""
    if name == "title":
        return "study", str
    words = name.replace("tokens_per_sec_per_device", "tokens/s/device").replace(
        "tokens_per_sec", "tokens/s"
    )
    words = words.replace("_bytes", "").replace("_seconds", "").removesuffix("_share").replace("_", " ")
    if "_bytes" in name:
        unit, size = charts.unit_of(float(values.abs().max()))
        sign = "+" if name.endswith("_change") else ""
        return f"{words} [{unit}]", lambda value: _minus(f"{value / size:{sign},.3f}")
    if "_seconds" in name:
        return f"{words} [ms]", lambda value: f"{value * 1e3:,.2f}"
    if name.endswith("_share"):
        return f"{words} [%]", lambda value: f"{value * 100:,.2f}"
    if name.endswith(("_change", "error")):
        return f"{words} [%]", lambda value: _minus(f"{round(value * 100, 2) + 0.0:+,.2f}")  # no -0.00
    if "tokens_per_sec" in name:
        return words, lambda value: f"{value:,.0f}"
    if pd.api.types.is_float_dtype(values):
        return words, lambda value: f"{value:,.4g}"
    return words, str


def _minus(number: str) -> str:
    return number.replace("-", "−")
