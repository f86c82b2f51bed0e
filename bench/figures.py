"""Tables to figures: each function takes a DataFrame and returns an Altair chart. Pure.

What matters is said by position, shape or text as well as by colour; `drawing.py` has the look they share.
"""

from __future__ import annotations

import altair as alt
import pandas as pd

from bench.drawing import INK, Chart, colours, dressed, unit_of
from bench.grading import PREDICTORS, Graded
from bench.studies import BYTES
from bench.tables import PEAK, RATE, frontier
from bench.units import percent

_BARS = 30  # more cannot be read in one picture
_POINTS = 1500
_CELLS = 14
_LINES = 7

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


def memory(study: pd.DataFrame) -> Chart | None:
    """Peak memory by category, one stacked bar for each trial, fewest techniques first.

    The device's capacity is a line where it is in sight; a trial that ran out of memory is an empty bar up
    to what it held, and says so. None if no trial has a peak. At most 30 trials: those with the fewest
    techniques, then those with the lowest peaks.
    """
    shown = study[study["status"].isin(["ok", "oom"])].assign(many=study["steps"].map(len))
    shown = shown[shown[PEAK].notna() | (shown["status"] == "oom")]
    if shown.empty:
        return None
    shown = shown.sort_values(["many", PEAK]).head(_BARS)
    order = list(shown["label"])
    unit, size = unit_of(shown[PEAK].max())
    parts = _parts(shown, size)
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
    full = shown[shown["status"] == "oom"]
    capacity = (
        shown["device_memory_bytes"].dropna().max() if shown["device_memory_bytes"].notna().any() else 0
    )
    in_sight = capacity and (capacity < 4 * (shown[PEAK].max() or 0) or len(full))
    if len(full):
        layers += _out_of_memory(full, size, capacity, y)
    if in_sight:
        line = pd.DataFrame({"at": [capacity / size], "says": [f"device: {capacity / size:,.1f} {unit}"]})
        layers += [
            alt.Chart(line)
            .mark_rule(color=INK, strokeDash=[6, 3], strokeWidth=1.5)
            .encode(x="at:Q", tooltip="says:N")
        ]
    return dressed(*layers, height=max(60, 22 * len(order)))


def _parts(shown: pd.DataFrame, size: float) -> pd.DataFrame:
    fits = shown[shown["status"] == "ok"]
    known = fits["tracked_peak_bytes"].notna()  # nothing is untracked in a prediction
    bare = fits[~known].assign(**dict.fromkeys(BYTES, 0) | {"untracked_bytes": fits.loc[~known, PEAK]})
    parts = pd.concat([fits[known], bare]).melt(id_vars="label", value_vars=list(BYTES), value_name="bytes")
    parts = parts[parts["bytes"] > 0]
    nth = {name: number for number, name in enumerate(BYTES)}
    return parts.assign(
        size=parts["bytes"] / size, category=parts["variable"].map(_NAMES), nth=parts["variable"].map(nth)
    ).drop(columns=["variable", "bytes"])


def _out_of_memory(full: pd.DataFrame, size: float, capacity: float, y: alt.Y) -> list[alt.Chart]:
    reached = full[PEAK].fillna(capacity).fillna(0) / size
    table = pd.DataFrame({"label": full["label"], "reached": reached, "says": "out of memory"})
    outline = alt.Chart(table).mark_bar(fillOpacity=0, stroke=INK, strokeDash=[3, 3], strokeWidth=1.2)
    text = (
        alt.Chart(table)
        .mark_text(align="left", dx=6, color=INK, fontStyle="italic")
        .encode(x=alt.datum(0), text="says:N")
    )
    return [outline.encode(x="reached:Q", y=y, tooltip=["label:N", "says:N"]), text.encode(y=y)]


def trade_off(study: pd.DataFrame) -> Chart | None:
    """Throughput against peak memory, with intervals and the Pareto frontier as a line.

    None without two measured trials. Above 1500 trials, the frontier and an even sample of the others.
    """
    fits = study[(study["status"] == "ok") & study[RATE].notna()]
    if len(fits) < 2:
        return None
    best = frontier(fits)
    if len(fits) > _POINTS:
        fits = pd.concat([best, fits.drop(best.index).sample(_POINTS - len(best), random_state=0)])
    unit, size = unit_of(fits[PEAK].max())
    columns = ["label", "precision", "lora", RATE, f"{RATE}_ci_low", f"{RATE}_ci_high"]
    points = fits[columns].assign(peak=fits[PEAK] / size)
    edge = best[[RATE]].assign(peak=best[PEAK] / size)
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
            "lora:N",
            scale=alt.Scale(domain=["off", "on"], range=["circle", "triangle-up"]),
            legend=alt.Legend(orient="top", title="LoRA"),
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
    return dressed(line.encode(x=x, y=y), intervals, marks, height=380)


def techniques_by_technique(cells: pd.DataFrame) -> Chart | None:
    """How two techniques together change the peak (colour and number) and the speed (number below).

    Args:
        cells: what `tables.pairs` returns.

    Returns:
        A square of at most 14 techniques, alone on the diagonal; None if there is none. A cell without a
        number was not run, or did not work, and then says its status.
    """
    if cells.empty:
        return None
    single = cells[cells["first"] == cells["second"]].sort_values("peak_change")
    order = list(dict.fromkeys([*single["first"], *cells["first"]]))[:_CELLS]
    shown = cells[cells["first"].isin(order) & cells["second"].isin(order)]
    shown = shown.assign(
        peak=[
            percent(c) if s == "ok" else s
            for c, s in zip(shown["peak_change"], shown["status"], strict=True)
        ],
        rate=["" if pd.isna(c) else f"{percent(c)} t/s" for c in shown["rate_change"]],
    )
    base = alt.Chart(shown).encode(
        x=alt.X("second:N", sort=order, title=None, axis=alt.Axis(labelAngle=-40, labelLimit=160)),
        y=alt.Y("first:N", sort=order, title=None, axis=alt.Axis(labelLimit=160)),
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
    return dressed(tiles, upper, lower, height=44 * len(order), width=max(240, 74 * len(order)))


def cost_curve(lines: pd.DataFrame, axis: str, column: str) -> Chart | None:
    """A column over one axis, a line for each set of trials that differ in nothing else; None if none.

    Args:
        lines: what `tables.curves` returns.
        axis: the key of `tables.CURVES` that they are over.
        column: `peak_allocated_bytes` or `tokens_per_sec_per_device`.
    """
    lines = lines[lines[column].notna()]
    if lines.empty:
        return None
    lines = lines[lines["curve"].isin(list(dict.fromkeys(lines["curve"]))[:_LINES])]
    unit, size = unit_of(lines[column].max()) if column == PEAK else ("", 1.0)
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
    return dressed(base.mark_line(), marks, height=260)


def predicted_against_measured(all_graded: list[Graded]) -> Chart | None:
    """Predicted over measured peaks by measured peak, logarithmic, with a line at one; None if none."""
    points = pd.DataFrame(
        [
            {
                "label": one.label,
                "measured": one.measured_bytes / 2**30,
                "error": error,
                "ratio": 1 + error,
                "predictor": name.replace("_", " "),
            }
            for one in all_graded
            for name, error in one.errors.items()
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
    return dressed(agree.encode(y="ratio:Q"), marks, height=300)


def two_sets(found: pd.DataFrame) -> Chart:
    """Speed of the same trials in two sets, new over old, with a line where nothing changed.

    Args:
        found: `label` and `speed_change`, a fraction.
    """
    base = alt.Chart(found).encode(
        y=alt.Y("label:N", sort=list(found["label"]), title=None, axis=alt.Axis(labelLimit=300))
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
    return dressed(bars, zero, height=max(60, 22 * len(found)))
