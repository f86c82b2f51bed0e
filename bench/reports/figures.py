"""Figures of one study: each function takes a DataFrame and returns an Altair chart. Pure.

What colour shows is also shown by position, shape or text. charts.py has the look that figures share, and
figures_across.py the figures over several techniques, models or sets of rows.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

import altair as alt
import pandas as pd

from bench.analysis.studies import BYTES, PEAK, RATE
from bench.analysis.tables import frontier
from bench.formatting import byte_unit, format_peak
from bench.reports.charts import INK, Chart, colours, styled_chart
from bench.trial.vocabulary import CATEGORIES

_BARS = 30  # more cannot be read in one figure
_POINTS = 1500
_STEP_HEIGHT = 220
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
            color=_category_colour(),
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


def memory_over_step(trial: Mapping[str, Any]) -> Chart | None:
    """What one step held, from its first block to its last update, by category.

    Each stretch (the forward or backward of a block, the code between two, an operation of the optimizer)
    is as high as the most that it held. None if the row has no timeline.
    """
    if not isinstance(trial["timeline"], str):
        return None
    stretches = pd.DataFrame(json.loads(trial["timeline"]))
    total = stretches[list(CATEGORIES)].sum(axis=1)
    unit, size = byte_unit(total.max())
    to_the_end = pd.concat([stretches, stretches.tail(1)], ignore_index=True)  # the last has a width, too
    names = ["at", "phase", "stack", "block"]
    parts = to_the_end.reset_index(names="at").melt(names, list(CATEGORIES), "of", "bytes")
    parts = parts[parts["of"].map(parts.groupby("of")["bytes"].max()) > 0]
    parts = parts.assign(
        size=parts["bytes"] / size,
        category=parts["of"].map(lambda name: _NAMES[f"{name}_bytes"]),
        nth=parts["of"].map(list(CATEGORIES).index),
    ).drop(columns=["of", "bytes"])
    area = (
        alt.Chart(parts)
        .mark_area(interpolate="step-after", stroke=INK, strokeWidth=0.3)
        .encode(
            x=alt.X("at:Q", title=None, axis=None, scale=alt.Scale(domain=[0, len(stretches)], nice=False)),
            y=alt.Y("size:Q", title=f"memory [{unit}]", stack="zero"),
            color=_category_colour(),
            order=alt.Order("nth:Q"),
            tooltip=[*names[1:], "category:N", alt.Tooltip("size:Q", title=unit, format=",.3f")],
        )
    )
    first = stretches["phase"] != stretches["phase"].shift()
    phases = stretches.loc[first, ["phase"]].reset_index(names="at")
    top, at = total.max() / size, int(total.argmax()) + 0.5
    peak = pd.DataFrame({"at": [at], "size": [top], "says": [f"peak {top:,.2f} {unit}"]})
    left = at < len(stretches) / 2
    return styled_chart(
        area,
        alt.Chart(phases).mark_rule(color=INK, strokeDash=[2, 3]).encode(x="at:Q"),
        alt.Chart(phases[phases["phase"] != "done"])
        .mark_text(align="left", dx=4, dy=14, color=INK)
        .encode(x="at:Q", y=alt.value(_STEP_HEIGHT), text="phase:N"),
        alt.Chart(peak).mark_point(color=INK, size=40).encode(x="at:Q", y="size:Q"),
        alt.Chart(peak)
        .mark_text(align="left" if left else "right", dx=8 if left else -8, dy=-8, color=INK)
        .encode(x="at:Q", y="size:Q", text="says:N"),
        height=_STEP_HEIGHT,
    )


def _category_colour() -> alt.Color:
    """Categories by colour, the same in each figure."""
    return alt.Color(
        "category:N",
        scale=alt.Scale(domain=list(_NAMES.values()), range=colours(0, 1, 2, 3, 7, 4, 5, 6)),
        legend=alt.Legend(title=None, orient="top", columns=4),
    )
