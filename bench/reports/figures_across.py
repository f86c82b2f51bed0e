"""Figures over several techniques, models or sets of rows; figures.py has those of one study. Pure.

In: DataFrames of analysis/tables.py, or graded predictions. Out: Altair charts, or None if there is nothing
to draw.
"""

from __future__ import annotations

import altair as alt
import pandas as pd

from bench.analysis.grading.accuracy import PREDICTORS, Graded
from bench.analysis.studies import PEAK
from bench.formatting import byte_unit, format_change
from bench.reports.charts import INK, Chart, colours, styled_chart

_TECHNIQUES = 14
_LINES = 7


def techniques_by_technique(cells: pd.DataFrame) -> Chart | None:
    """Heatmap of what a technique changes beside each other one: the peak (colour, number), the speed.

    Args:
        cells: what `tables.pairs` returns.

    Returns:
        A square of at most 14 techniques, each alone on the diagonal; None if there is none. An empty cell
        was not run; words in place of a number say why there is no change to show.
    """
    if cells.empty:
        return None
    single = cells[cells["added"] == cells["beside"]].sort_values("peak_change")
    order = list(dict.fromkeys([*single["added"], *cells["added"]]))[:_TECHNIQUES]
    shown = cells[cells["added"].isin(order) & cells["beside"].isin(order)]
    shown = shown.assign(
        peak=[
            format_change(change) or _without_change(status, before)
            for change, status, before in zip(
                shown["peak_change"], shown["status"], shown["before"], strict=True
            )
        ],
        rate=[
            "" if pd.isna(change) else f"{format_change(change)} t/s" if differ else "same t/s?"
            for change, differ in zip(shown["rate_change"], shown["rates_differ"], strict=True)
        ],
    )
    base = alt.Chart(shown).encode(
        x=alt.X("beside:N", sort=order, title="beside", axis=alt.Axis(labelAngle=-40, labelLimit=160)),
        y=alt.Y("added:N", sort=order, title="added", axis=alt.Axis(labelLimit=160)),
    )
    scale = alt.Scale(scheme="blueorange", domain=[-1, 1], domainMid=0, clamp=True)
    tiles = base.mark_rect(stroke=INK, strokeWidth=0.5).encode(
        color=alt.condition(
            "isValid(datum.peak_change)",
            alt.Color("peak_change:Q", scale=scale, legend=None),
            alt.value("transparent"),
        ),
        tooltip=[
            "label:N",
            "status:N",
            alt.Tooltip("peak:N", title="peak"),
            alt.Tooltip("rate:N", title="speed"),
        ],
    )
    ink = alt.condition("!isValid(datum.peak_change)", alt.value(INK), alt.value("#111"))
    upper = base.mark_text(dy=-6, fontWeight="bold").encode(text="peak:N", color=ink)
    lower = base.mark_text(dy=8, fontSize=9).encode(text="rate:N", color=ink)
    return styled_chart(tiles, upper, lower, height=44 * len(order), width=max(240, 74 * len(order)))


def _without_change(status: str, before: str) -> str:
    """Why a pair of trials shows no change: how one ended, or that the technique mends it."""
    if status != "ok":
        return status
    return "fits with it" if before == "oom" else "runs with it"


def cost_curve(lines: pd.DataFrame, axis: str, column: str) -> Chart | None:
    """A column over one axis, one line for trials that differ in that axis alone; None if there is none.

    Args:
        lines: what `tables.curves` returns.
        axis: a key of `tables.CURVES`.
        column: `peak_allocated_bytes` or `tokens_per_sec_per_device`.
    """
    lines = lines[lines[column].notna()]
    if lines.empty:
        return None
    lines = lines[lines["curve"].isin(list(dict.fromkeys(lines["curve"]))[:_LINES])]
    unit, size = byte_unit(lines[column].max()) if column == PEAK else ("", 1.0)
    title = f"peak memory [{unit}]" if column == PEAK else "tokens/s per device"
    table = pd.DataFrame({"value": lines["value"], "of": lines[column] / size, "trials": lines["curve"]})
    x = alt.X(
        "value:Q",
        title=axis,
        scale=alt.Scale(type="log", base=2, nice=False, padding=12),
        axis=alt.Axis(values=sorted(set(table["value"])), format="d", grid=False),
    )
    legend = alt.Legend(orient="top", title=None, columns=1, labelLimit=600)
    base = alt.Chart(table).encode(
        x=x,
        y=alt.Y("of:Q", title=title),
        color=alt.Color("trials:N", scale=alt.Scale(range=colours(0, 3, 2, 4, 1, 7, 6)), legend=legend),
        tooltip=[
            "trials:N",
            alt.Tooltip("value:Q", title=axis),
            alt.Tooltip("of:Q", title=title, format=",.3f"),
        ],
    )
    marks = base.mark_point(size=70, filled=True, opacity=1).encode(
        shape=alt.Shape("trials:N", legend=None)
    )
    return styled_chart(base.mark_line(), marks, height=260)


def predicted_against_measured(all_graded: list[Graded]) -> Chart | None:
    """Predicted over measured peak, against measured peak, with a line at 1; logarithmic. None if empty."""
    points = pd.DataFrame(
        [
            {
                "label": graded.label,
                "measured": graded.measured_bytes / 2**30,
                "error": error,
                "ratio": 1 + error,
                "predictor": name.replace("_", " "),
            }
            for graded in all_graded
            for name, error in graded.errors.items()
        ]
    )
    if points.empty:
        return None
    names = [name.replace("_", " ") for name in PREDICTORS]
    size = alt.X(
        "measured:Q",
        title="measured peak [GiB]",
        scale=alt.Scale(type="log", padding=20, nice=False),
        axis=alt.Axis(tickCount=5, format="~g", grid=False),
    )
    ratio = alt.Y(
        "ratio:Q",
        title="predicted over measured",
        scale=alt.Scale(type="log", padding=20, nice=False),
        axis=alt.Axis(values=[0.05, 0.1, 0.2, 0.5, 0.8, 1, 1.25, 2, 5, 10], format="~g"),
    )
    marks = (
        alt.Chart(points)
        .mark_point(size=70, filled=True, opacity=0.85)
        .encode(
            x=size,
            y=ratio,
            color=alt.Color(
                "predictor:N",
                scale=alt.Scale(domain=names, range=colours(0, 3, 4)),
                legend=alt.Legend(orient="top", title=None),
            ),
            shape=alt.Shape(
                "predictor:N",
                scale=alt.Scale(domain=names),
                legend=alt.Legend(orient="top", title=None),
            ),
            tooltip=["label:N", "predictor:N", alt.Tooltip("error:Q", format="+.2%")],
        )
    )
    agree = alt.Chart(pd.DataFrame({"ratio": [1.0]})).mark_rule(color=INK, strokeWidth=1.2)
    return styled_chart(agree.encode(y="ratio:Q"), marks, height=300)


def speed_changes(compared: pd.DataFrame) -> Chart:
    """The change of each trial's speed between two sets of rows, with a line at no change.

    Args:
        compared: one line for each trial, with `label` and `speed_change`, a fraction.
    """
    base = alt.Chart(compared).encode(
        y=alt.Y("label:N", sort=list(compared["label"]), title=None, axis=alt.Axis(labelLimit=300))
    )
    bars = base.mark_bar(color=colours(0)[0]).encode(
        x=alt.X(
            "speed_change:Q",
            title="change of tokens/s per device",
            axis=alt.Axis(format="+~%", tickCount=6),
        ),
        tooltip=["label:N", alt.Tooltip("speed_change:Q", format="+.1%")],
    )
    zero = alt.Chart(pd.DataFrame({"x": [0]})).mark_rule(color=INK).encode(x="x:Q")
    return styled_chart(bars, zero, height=max(60, 22 * len(compared)))
