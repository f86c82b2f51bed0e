"""Tables, figures and sentences for the notebooks of analysis/, alike in Jupyter and in rendered pages.

A column's name tells its unit and so its format: bytes become MiB or GiB, changes signed percent. Text from
rows is escaped, so nothing in it is run. Where there is nothing to show, a sentence says so.
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
from bench.formatting import byte_unit
from bench.reports import charts

_MOST_LINES = 60
_MOST_STUDIES = 6
_SHORT = 24  # letters; cells up to this length stay on one line


def folder(variable: str, default: str | None = None) -> Path | None:
    """The results folder that an environment variable names, else the default; None without either."""
    named = os.environ.get(variable) or default
    return Path(named).expanduser() if named else None


def say(text: str) -> None:
    """Shows one sentence."""
    _show(f"<p>{html.escape(text)}</p>")


def heading(text: str) -> None:
    """Shows a heading above a table or figure, such as a study's title."""
    _show(f"<h4>{html.escape(text)}</h4>")


def chosen(trials: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The studies to draw, each with its title: the six largest that have several trials.

    Measured studies come before predicted ones. A study of one trial is drawn only if there is no other.
    If studies are left out, a sentence says how many.

    Args:
        trials: what `studies.trials` returns.
    """
    every = studies.studies(trials)
    several = studies.comparable_studies(every)
    shown = several[:_MOST_STUDIES]
    if len(shown) < len(every):
        single = len(every) - len(several)
        say(
            f"{len(every)} studies: {len(shown)} are shown, {len(several) - len(shown)} smaller ones and "
            f"{single} of a single trial are left out here."
        )
    return [(study["title"].iloc[0], study) for study in shown]


def figure(chart: charts.Chart | None, nothing: str) -> None:
    """Shows the chart as SVG, or the sentence `nothing` if there is no chart."""
    if chart is None:
        say(nothing)
    else:
        _show(f"<figure>{charts.svg(charts.spec(chart))}</figure>")


def table(frame: pd.DataFrame, nothing: str, *, most: int = _MOST_LINES) -> None:
    """Shows the first lines as a table with units, or the sentence `nothing` if there is no line.

    A column's name gives its format: `_bytes`, `_seconds` or `tokens_per_sec` anywhere in it; `_share`
    (percent), `_change` or `error` (signed percent; `_bytes_change`: signed bytes) at its end. Other
    columns are shown as they are; columns without any value are left out.
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
    """A column as shown: its title with the unit, its CSS class (number, short or text), and its cells."""

    title: str
    kind: str
    cells: list[str]

    @classmethod
    def of(cls, name: str, values: pd.Series[Any]) -> _Column:
        title, format_value = _title_and_format(name, values)
        cells = ["" if _missing(value) else format_value(value) for value in values]
        if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
            return cls(title, "number", cells)
        return cls(title, "short" if max(map(len, cells)) <= _SHORT else "text", cells)


def _missing(value: Any) -> bool:
    return value is None or (not isinstance(value, str) and bool(pd.isna(value)))


def _title_and_format(name: str, values: pd.Series[Any]) -> tuple[str, Callable[[Any], str]]:
    """The column's title with its unit, and the function that formats one value."""
    if name == "title":
        return "study", str
    title = name.replace("tokens_per_sec_per_device", "tokens/s/device")
    title = title.replace("tokens_per_sec", "tokens/s")
    title = title.replace("_bytes", "").replace("_seconds", "").removesuffix("_share").replace("_", " ")
    if "_bytes" in name:
        unit, size = byte_unit(float(values.abs().max()))
        sign = "+" if name.endswith("_change") else ""
        return f"{title} [{unit}]", lambda value: _minus(f"{value / size:{sign},.3f}")
    if "_seconds" in name:
        return f"{title} [ms]", lambda value: f"{value * 1e3:,.2f}"
    if name.endswith("_share"):
        return f"{title} [%]", lambda value: f"{value * 100:,.2f}"
    if name.endswith(("_change", "error")):
        return f"{title} [%]", lambda value: _minus(f"{round(value * 100, 2) + 0.0:+,.2f}")  # no -0.00
    if "tokens_per_sec" in name:
        return title, lambda value: f"{value:,.0f}"
    if pd.api.types.is_float_dtype(values):
        return title, lambda value: f"{value:,.4g}"
    return title, str


def _minus(number: str) -> str:
    """The number with a minus sign in place of a hyphen."""
    return number.replace("-", "−")
