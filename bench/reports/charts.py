"""The look that all figures share, and the conversion of a chart to SVG or PNG.

In: Altair charts. Out: Vega-Lite specifications, SVG text and PNG bytes. The page embeds the specification
and redraws it at the reader's width, with text and lines in the page's own colour, light or dark; files
have dark ink on white. Fills are from the palette of Okabe and Ito (2008), which colour-blind people can
tell apart and which is visible on both backgrounds.
"""

from __future__ import annotations

import json
from typing import Any

import altair as alt
import vl_convert

INK = "currentColor"  # in a page: the colour of the text around the figure
_OKABE_ITO = ("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#CC79A7", "#F0E442", "#999999", "#D55E00")
_WIDTH = 680
_GRID_OPACITY = 0.18

Chart = alt.LayerChart


def colours(*numbers: int) -> list[str]:
    """Colours of the palette by number: blue, sky, green, orange, purple, yellow, grey, vermillion."""
    return [_OKABE_ITO[number] for number in numbers]


def styled_chart(*layers: alt.Chart, height: float, width: float = _WIDTH) -> Chart:
    """The layers, one over the other, with the look that all figures share; sizes are pixels."""
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
    """The specification as SVG, whose text and lines take the colour of the text around it."""
    return str(vl_convert.vegalite_to_svg(specification))


def on_white(drawing: str) -> str:
    """An SVG of `svg` with dark ink on white, for a file."""
    head, rest = drawing.split(">", 1)
    return f'{head}><rect width="100%" height="100%" fill="white"/>{rest}'.replace(INK, "#222222")


def png(drawing: str) -> bytes:
    """An SVG as PNG, at twice its size in pixels: for screens with two pixels a point."""
    return bytes(vl_convert.svg_to_png(drawing, scale=2))
