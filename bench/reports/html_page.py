"""A report as one HTML file that opens from a disk and makes no request.

The file contains its libraries: Vega (figures, from vl-convert) and DataTables (the last table, from
itables). Without JavaScript everything but the last table is shown: figures are also inlined as SVG. A
content security policy forbids the page to load anything.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping
from importlib.resources import files
from types import MappingProxyType
from typing import Any

import pandas as pd
import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from bench.reports.document import Report
from bench.trial.vocabulary import TECHNIQUE_AXES

# Columns of the last table that have a list of their values as a filter.
FILTERS = (
    *("status", "model", "workload", "method"),
    *(axis for axis in TECHNIQUE_AXES if axis != "kv_cache"),
)
_SIGNIFICANT_DIGITS = 5  # of a number in the last table


def html_page(
    report: Report, drawn: dict[str, str], links: Mapping[str, str] = MappingProxyType({})
) -> str:
    """The page as text.

    Args:
        report: the report.
        drawn: its figures as SVG, by name.
        links: the addresses of other pages, by the text of the link.
    """
    templates = Environment(
        loader=PackageLoader("bench.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    datatables = files("itables") / "html"
    return templates.get_template("report.html").render(
        report=report,
        links=links,
        drawn={name: Markup(svg) for name, svg in drawn.items()},
        specifications=_json({figure.name: figure.specification for figure in report.figures()}),
        rows=_json(_columns(report.rows)),
        filters=FILTERS,
        style=_template_file("report.css"),
        script=_template_file("report.js"),
        datatables_css=_unclosing((datatables / "dt_bundle.css").read_text(), "style"),
        datatables=b64encode((datatables / "dt_bundle.js").read_bytes()).decode(),
        vega=_unclosing(_vega(), "script"),
    )


def _vega() -> str:
    return vl_convert.javascript_bundle()  # type: ignore[call-arg]  # the argument has a default


def _template_file(name: str) -> Markup:
    return Markup((files("bench.reports") / "templates" / name).read_text())


def _unclosing(text: str, tag: str) -> Markup:
    """A library's text for inside an element `tag`, with its closing tag escaped."""
    return Markup(text.replace(f"</{tag}", f"<\\/{tag}"))


def _json(value: Any) -> Markup:
    """The value as JSON for inside a script element, with the letters escaped that could close it."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace("&", "\\u0026"))


def _columns(rows: pd.DataFrame) -> dict[str, Any]:
    """The rows by column; numbers are rounded, and each text is stored once."""
    columns = []
    for name in rows.columns:
        values = rows[name]
        if pd.api.types.is_numeric_dtype(values):
            columns.append({"name": name, "numbers": [_rounded(value) for value in values]})
        else:
            codes, texts = pd.factorize(values.fillna("").astype(str))
            columns.append({"name": name, "codes": codes.tolist(), "texts": list(texts)})
    return {"columns": columns, "size": len(rows)}


def _rounded(value: float) -> float | int | None:
    if pd.isna(value):
        return None
    number = float(f"{float(value):.{_SIGNIFICANT_DIGITS}g}")
    return int(number) if number.is_integer() else number
