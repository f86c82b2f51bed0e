"""How figures look, and how a chart becomes SVG or PNG.

One chart serves every place: the page embeds its specification and redraws it at the reader's width, with
text and lines in the page's own colour, light or dark; files (SVG, PNG) get dark ink on white paper. Fills
are from Okabe and Ito's palette (2008), told apart by colour-blind people and visible on either background.
"""

from __future__ import annotations

import json
from typing import Any

import altair as alt
import vl_convert

INK = "currentColor"  # in a page: whatever the text around the figure has
_OKABE_ITO = ("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#CC79A7", "#F0E442", "#999999", "#D55E00")
_WIDTH = 680
_GRID_OPACITY = 0.18

Chart = alt.LayerChart


def colours(*numbers: int) -> list[str]:
    """Colours of the palette, by place: blue, sky, green, orange, purple, yellow, grey, vermillion."""
    return [_OKABE_ITO[number] for number in numbers]


def unit_of(most: float | None) -> tuple[str, float]:
    """The unit for bytes up to `most`, and its size."""
    return ("GiB", 2**30) if most and most >= 0.1 * 2**30 else ("MiB", 2**20)


def styled_chart(*layers: alt.Chart, height: float, width: float = _WIDTH) -> Chart:
    """Layers, one over the other, with the look that all figures share; sizes in pixels."""
    chart: Chart = (
        alt.layer(*layers)
        .properties(width=width, height=height, background="transparent")
        .configure(font="system-ui, sans-serif")
        .configure_view(stroke=None)
        .configure_axis(
            labelColor=INK,
            titleColor=INK,
            domainColor=INK,
            tickColor=INK,
            gridColor=INK,
            gridOpacity=_GRID_OPACITY,
            labelFontSize=11,
            titleFontSize=12,
            titleFontWeight="normal",
        )
        .configure_legend(
            labelColor=INK, titleColor=INK, labelFontSize=11, titleFontSize=11, symbolStrokeWidth=0.6
        )
        .configure_text(font="system-ui, sans-serif", fontSize=11)
    )
    return chart


def spec(chart: Chart) -> dict[str, Any]:
    """The chart as a Vega-Lite specification."""
    plain: dict[str, Any] = json.loads(chart.to_json(indent=None))
    return plain


def svg(specification: dict[str, Any]) -> str:
    """The figure as SVG whose text and lines take the colour of the text around it."""
    return str(vl_convert.vegalite_to_svg(specification))


def on_white(drawing: str) -> str:
    """The same SVG with dark ink on white, for a file."""
    head, rest = drawing.split(">", 1)
    return f'{head}><rect width="100%" height="100%" fill="white"/>{rest}'.replace(INK, "#222222")


def png(drawing: str) -> bytes:
    """An SVG as PNG, at twice its size in pixels."""
    return bytes(vl_convert.svg_to_png(drawing, scale=2))
