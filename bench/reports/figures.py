"""Figures of one study: each function takes a DataFrame and returns an Altair chart. Pure.

What colour shows is also shown by position, shape or text. charts.py has the look that figures share, and
figures_across.py the figures over several techniques, models or sets of rows.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal

import altair as alt
import pandas as pd

from bench.analysis.studies import BYTES, PEAK, RATE
from bench.analysis.tables import frontier
from bench.formatting import byte_unit, format_peak
from bench.reports.charts import INK, Chart, colours, styled_chart

_BARS = 30  # more cannot be read in one figure
_POINTS = 1500
_SHAPES = [
    "circle",
    "triangle-up",
    "square",
    "diamond",
    "cross",
    "triangle-down",
    "triangle-right",
    "triangle-left",
]

_NAMES = dict(
    zip(
        BYTES,
        (
            "parameters",
            "gradients",
            "optimizer",
            "activations",
            "KV cache",
            "temporaries",
            "inputs",
            "untracked",
        ),
        strict=True,
    )
)


def memory_bars(study: pd.DataFrame) -> Chart | None:
    """Peak memory by category, one stacked bar for each trial, fewest techniques first.

    A line marks the device's capacity if it is near the bars. A trial that ran out of memory is an empty
    bar up to the peak that it reached, with a note. At most 30 trials are drawn: those with the fewest
    techniques, then those with the lowest peaks. None if no trial has a peak.
    """
    shown = study[study["status"].isin(["ok", "oom"])].assign(many=study["steps"].map(len))
    shown = shown[shown[PEAK].notna() | (shown["status"] == "oom")]
    if shown.empty:
        return None
    shown = shown.sort_values(["many", PEAK]).head(_BARS)
    order = list(shown["label"])
    unit, size = byte_unit(shown[PEAK].max())
    parts = _category_sizes(shown, size)
    y = alt.Y("label:N", sort=order, title=None, axis=alt.Axis(labelLimit=260, labelPadding=6))
    bars = (
        alt.Chart(parts)
        .mark_bar(stroke=INK, strokeWidth=0.4)
        .encode(
            x=alt.X("size:Q", title=f"peak memory [{unit}]", stack="zero", axis=alt.Axis(tickCount=10)),
            y=y,
            color=alt.Color(
                "category:N",
                scale=alt.Scale(domain=list(_NAMES.values()), range=colours(0, 1, 2, 3, 7, 4, 5, 6)),
                legend=alt.Legend(title=None, orient="top", columns=4),
            ),
            order=alt.Order("nth:Q"),
            tooltip=["label:N", "category:N", alt.Tooltip("size:Q", title=unit, format=",.3f")],
        )
    )
    layers: list[alt.Chart] = [bars]
    failed = shown[shown["status"] == "oom"]
    capacities = shown["device_memory_bytes"].dropna()
    capacity = 0 if capacities.empty else capacities.max()
    if len(failed):
        layers += _out_of_memory(failed, size, capacity, y)
    if capacity and (capacity < 4 * (shown[PEAK].max() or 0) or len(failed)):
        line = pd.DataFrame({"at": [capacity / size], "says": [f"device: {capacity / size:,.1f} {unit}"]})
        layers += [
            alt.Chart(line)
            .mark_rule(color=INK, strokeDash=[6, 3], strokeWidth=1.5)
            .encode(x="at:Q", tooltip="says:N")
        ]
    return styled_chart(*layers, height=max(60, 22 * len(order)))


def _category_sizes(shown: pd.DataFrame, size: float) -> pd.DataFrame:
    """One line for each trial that fits and each category: `label`, `category`, `nth`, `size` in units."""
    fits = shown[shown["status"] == "ok"]
    tracked = fits["tracked_peak_bytes"].notna()
    # Without categories the whole peak is drawn as untracked.
    peak_alone = {"untracked_bytes": fits.loc[~tracked, PEAK]}
    untracked = fits[~tracked].assign(**dict.fromkeys(BYTES, 0) | peak_alone)
    parts = pd.concat([fits[tracked], untracked]).melt(
        id_vars="label", value_vars=list(BYTES), value_name="bytes"
    )
    parts = parts[parts["bytes"] > 0]
    nth = {name: number for number, name in enumerate(BYTES)}
    return parts.assign(
        size=parts["bytes"] / size, category=parts["variable"].map(_NAMES), nth=parts["variable"].map(nth)
    ).drop(columns=["variable", "bytes"])


def _out_of_memory(failed: pd.DataFrame, size: float, capacity: float, y: alt.Y) -> list[alt.Chart]:
    """An outline up to the peak that each trial reached (if unknown, the capacity), and a note."""
    reached = failed[PEAK].fillna(capacity).fillna(0) / size
    needs = [
        "out of memory" + ("" if pd.isna(peak) else f": needs {format_peak(peak, 'oom')}")
        for peak in failed[PEAK]
    ]
    table = pd.DataFrame({"label": failed["label"], "reached": reached, "says": needs})
    outline = alt.Chart(table).mark_bar(fillOpacity=0, stroke=INK, strokeDash=[3, 3], strokeWidth=1.2)
    text = (
        alt.Chart(table)
        .mark_text(align="left", dx=6, color=INK, fontStyle="italic")
        .encode(x=alt.datum(0), text="says:N")
    )
    return [outline.encode(x="reached:Q", y=y, tooltip=["label:N", "says:N"]), text.encode(y=y)]


def speed_against_memory(study: pd.DataFrame) -> Chart | None:
    """Throughput against peak memory, with intervals, and the Pareto frontier as a line with names.

    Colour is the precision, shape the techniques beside it. Of more than 1500 trials, the frontier and a
    random sample of the others are drawn. None if fewer than two trials have a rate.
    """
    fits = study[(study["status"] == "ok") & study[RATE].notna()]
    if len(fits) < 2:
        return None
    best = frontier(fits)
    if len(fits) > _POINTS:
        fits = pd.concat([best, fits.drop(best.index).sample(_POINTS - len(best), random_state=0)])
    unit, size = byte_unit(fits[PEAK].max())
    columns = ["label", "precision", RATE, f"{RATE}_ci_low", f"{RATE}_ci_high"]
    points = fits[columns].assign(peak=fits[PEAK] / size, techniques=_beside_precision(fits))
    edge = best[["label", RATE]].assign(peak=best[PEAK] / size)
    x = alt.X(
        "peak:Q",
        title=f"peak memory [{unit}]",
        scale=alt.Scale(zero=False, padding=25),
        axis=alt.Axis(tickCount=10),
    )
    y = alt.Y(f"{RATE}:Q", title="tokens/s per device", scale=alt.Scale(zero=False, padding=20))
    base = alt.Chart(points)
    intervals = base.mark_rule(color=INK, opacity=0.5).encode(
        x=x, y=alt.Y(f"{RATE}_ci_low:Q"), y2=f"{RATE}_ci_high:Q"
    )
    levels = sorted(points["precision"].unique())
    marks = base.mark_point(size=90, filled=True, opacity=0.95, stroke=INK, strokeWidth=0.6).encode(
        x=x,
        y=y,
        color=alt.Color(
            "precision:N",
            scale=alt.Scale(domain=levels, range=colours(0, 3, 2, 4, 1, 7, 5)[: len(levels)]),
            legend=alt.Legend(orient="top", title="precision"),
        ),
        shape=alt.Shape(
            "techniques:N",
            scale=alt.Scale(
                domain=(kinds := list(dict.fromkeys(points["techniques"]))), range=_SHAPES[: len(kinds)]
            ),
            legend=alt.Legend(orient="top", title=None, columns=3, labelLimit=260),
        ),
        tooltip=[
            alt.Tooltip("label:N", title="techniques"),
            alt.Tooltip("peak:Q", title=f"peak [{unit}]", format=",.3f"),
            alt.Tooltip(f"{RATE}:Q", title="tokens/s", format=",.0f"),
            alt.Tooltip(f"{RATE}_ci_low:Q", title="from", format=",.0f"),
            alt.Tooltip(f"{RATE}_ci_high:Q", title="to", format=",.0f"),
        ],
    )
    line = alt.Chart(edge).mark_line(
        color=INK, strokeDash=[4, 3], strokeWidth=1.2, interpolate="step-after"
    )
    right = edge["peak"] >= points["peak"].mean()
    places: tuple[tuple[pd.DataFrame, Literal["left", "right"], int, int], ...]
    places = ((edge[~right], "left", 9, 14), (edge[right], "right", -9, -7))
    names = [  # away from the line, and from the axis
        alt.Chart(some).mark_text(align=align, dx=dx, dy=dy, fontSize=10, color=INK)
        for some, align, dx, dy in places
        if not some.empty
    ]
    named = [name.encode(x=x, y=y, text="label:N") for name in names]
    return styled_chart(line.encode(x=x, y=y), intervals, marks, *named, height=420)


def _beside_precision(fits: pd.DataFrame) -> list[str]:
    """Each trial's techniques other than its precision, in words; the rarest are one kind, `other`."""
    words = [" + ".join(label.split(" + ")[1:]) or "no other technique" for label in fits["label"]]
    common = [word for word, _ in Counter(words).most_common()]
    shown = common if len(common) <= len(_SHAPES) else common[: len(_SHAPES) - 1]
    return [word if word in shown else "other" for word in words]
