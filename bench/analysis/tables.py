"""Tables of trials: the ladder of techniques, pairs, the Pareto frontier, curves. Pure.

A change that is put down to a technique is against a trial that differs in that technique alone
(`neighbours.py`), and missing where there is none.

In: DataFrames of studies.py. Out: DataFrames. Changes are fractions, (new - old) / old; sizes are bytes,
rates tokens per second.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from bench.analysis import neighbours
from bench.analysis.neighbours import HIGH, LOW, Neighbours
from bench.analysis.studies import PEAK as PEAK
from bench.analysis.studies import RATE as RATE
from bench.analysis.studies import (
    baseline_trial,
    definition_without,
    row_dicts,
    tell_apart,
)
from bench.trial.vocabulary import CATEGORIES, TECHNIQUE_AXES

# The axes of cost curves, and their keys in a definition.
CURVES = {
    "lora_rank": "lora.rank",
    "seq_len": "seq_len",
    "micro_batch_size": "micro_batch_size",
    "world_size": "fsdp.world_size",
    "grad_accum_steps": "grad_accum_steps",
}
_LEAST_POINTS = 3  # of a curve


def changed(study: pd.DataFrame) -> pd.DataFrame:
    """The trials with `peak_change` and `rate_change`: all their techniques against the plain trial.

    There is no change where the plain trial is not ok, and none of the speed where ranks share a device.
    """
    plain, rows = baseline_trial(study), row_dicts(study)
    return study.assign(
        peak_change=[neighbours.change(plain, row, PEAK) for row in rows],
        rate_change=[neighbours.rate_change(plain, row) for row in rows],
    )


def _pairs_as_table(study: pd.DataFrame, pairs: list[Neighbours]) -> pd.DataFrame:
    """One line for each pair: the trial with the technique, and the change from the one without it.

    Returns:
        The columns of `after`, and `added`, `against` (the label of `before`), `freed_bytes`,
        `peak_change`, `rate_change` and `rates_differ`.
    """
    return study.loc[[pair.after["index"] for pair in pairs]].assign(
        added=[pair.technique for pair in pairs],
        against=[pair.before["label"] for pair in pairs],
        freed_bytes=[pair.before[PEAK] - pair.after[PEAK] for pair in pairs],
        peak_change=[pair.peak_change for pair in pairs],
        rate_change=[pair.rate_change for pair in pairs],
        rates_differ=pd.array([pair.rates_differ for pair in pairs], dtype=bool),
    )


def ladder(study: pd.DataFrame) -> pd.DataFrame:
    """The study's baseline, then one technique more at a time, each time the one with the lowest peak.

    Returns:
        The trials in this order, with `added` (the technique that was added, in words; "" for the
        baseline), and `peak_change` and `rate_change` from the line above.
    """
    found: dict[Any, list[Neighbours]] = {}
    for pair in neighbours.neighbours(study):
        if pair.after["status"] == "ok":
            found.setdefault(pair.before["index"], []).append(pair)
    rung = study.index[study["baseline"]][0]
    chosen: list[Neighbours] = []
    while rung in found:
        chosen.append(min(found[rung], key=lambda pair: pair.after[PEAK]))
        rung = chosen[-1].after["index"]
    foot = study[study["baseline"]].assign(added="", peak_change=float("nan"), rate_change=float("nan"))
    columns = [*study.columns, "added", "peak_change", "rate_change"]
    return pd.concat([foot[columns], _pairs_as_table(study, chosen)[columns]]) if chosen else foot


def by_technique(study: pd.DataFrame) -> pd.DataFrame:
    """What each technique changes, with as few others as these trials allow; the largest saving first.

    Returns:
        The trials with the technique, and `added` (the technique), `against` (the label of the trial that
        lacks it and is otherwise alike), `freed_bytes`, `peak_change`, `rate_change`, and `rates_differ`
        (whether the intervals of the rates are apart).
    """
    return _pairs_as_table(study, neighbours.plainest(study))


def pairs(study: pd.DataFrame) -> pd.DataFrame:
    """What a technique changes alone and beside each other one, as the cells of a heatmap.

    Returns:
        `added` and `beside` (techniques in words; equal for a technique alone), `status` of the trial that
        has both, `before` (that of the trial without `added`), `peak_change`, `rate_change`,
        `rates_differ` and `label`.
        If several trials have the same two techniques, the one with the lowest peak.
    """
    cells = [
        {
            "added": pair.technique,
            "beside": next(iter(pair.before["steps"].values()), pair.technique),
            "status": pair.after["status"],
            "before": pair.before["status"],
            "peak_change": pair.peak_change,
            "rate_change": pair.rate_change,
            "rates_differ": pair.rates_differ,
            "label": pair.after["label"],
            "peak": pair.after[PEAK],
        }
        for pair in neighbours.neighbours(study)
        if len(pair.before["steps"]) <= 1
    ]
    columns = ["added", "beside", "status", "before", "peak_change", "rate_change", "rates_differ"]
    columns += ["label", "peak"]
    table = pd.DataFrame(cells, columns=columns).sort_values("peak", kind="stable")
    return table.drop_duplicates(["added", "beside"]).drop(columns="peak")


def frontier(study: pd.DataFrame) -> pd.DataFrame:
    """The Pareto frontier: trials that no other trial beats in both peak and rate, lowest peak first.

    Rates are medians. Trials whose ranks shared one device are left out: their rates are not of a device.
    """
    fits = study[(study["status"] == "ok") & study[RATE].notna() & study[PEAK].notna()]
    fits = _where(fits, [neighbours.timed_alone(row) for row in row_dicts(fits)])
    fits = fits.sort_values([PEAK, RATE], ascending=[True, False])
    best = fits[RATE].cummax().shift(fill_value=float("-inf"))
    return fits[fits[RATE] > best]


def fastest_within(study: pd.DataFrame) -> pd.DataFrame:
    """The fastest trial for any amount of memory: those of the frontier that are faster beyond doubt.

    A trial is left out if its interval overlaps that of a smaller one that is here: it needs more memory,
    and these rows do not tell that it is faster.
    """
    kept, fastest = [], float("-inf")
    for row in row_dicts(edge := frontier(study)):
        kept.append(row[LOW] > fastest)
        fastest = row[HIGH] if kept[-1] else fastest
    return _where(edge, kept)


def _where(table: pd.DataFrame, kept: list[bool]) -> pd.DataFrame:
    """The rows that are kept; an empty list would be taken for one of columns."""
    return table[pd.Series(kept, index=table.index, dtype=bool)]


def curves(trials: pd.DataFrame, axis: str) -> pd.DataFrame:
    """The trials that differ in `axis` alone, if they have at least three values of it.

    Args:
        trials: what `studies.trials` returns.
        axis: a key of `CURVES`.

    Returns:
        The trials' columns, `curve` (what the trials of one line share, in words) and `value` (theirs on
        the axis), sorted by curve and value.
    """
    fits = trials[(trials["status"] == "ok") & trials[axis].notna()]
    ignored = (CURVES[axis], "timing", "device")
    keys = [
        f"{device} {definition_without(facts, *ignored)}"
        for device, facts in zip(fits["device"], fits["facts"], strict=True)
    ]
    lines = fits.assign(key=keys, value=fits[axis].astype(int) if len(fits) else [])
    lines = lines.drop_duplicates(["key", "value"])
    lines = lines.assign(points=lines.groupby("key")["value"].transform("size"))
    lines = lines[lines["points"] >= _LEAST_POINTS].sort_values(
        ["points", "key", "value"], ascending=[False, True, True]
    )
    return lines.assign(curve=lines["key"].map(_curve_names(lines, axis)))


def _curve_names(lines: pd.DataFrame, axis: str) -> dict[str, str]:
    """The name of each curve, by key: what its trials share, in words that no other curve has."""
    first = lines.drop_duplicates("key")
    names = [
        _without_value(label, axis, value)
        for label, value in zip(first["label"], first["value"], strict=True)
    ]
    facts = [
        facts | {"device": device} for facts, device in zip(first["facts"], first["device"], strict=True)
    ]
    differences = tell_apart(names, facts, ignored=(CURVES[axis], "timing", *TECHNIQUE_AXES))
    return {
        key: f"{name} {difference}".strip()
        for key, name, difference in zip(first["key"], names, differences, strict=True)
    }


def _without_value(label: str, axis: str, value: int) -> str:
    """A trial's label without its value on the axis, in which the trials of a curve differ."""
    if axis == "lora_rank":
        return label.replace(f"LoRA r{value}", "LoRA")
    return label.replace(f" ×{value}", "") if axis == "world_size" else label


def rows_table(trials: pd.DataFrame) -> pd.DataFrame:
    """One line for each trial of `with_expected_peaks`: the report's last table, and trials.csv.

    A peak is of a trial that came to an end. What one that ran out of memory reached is in a column of its
    own, for it needs more.
    """
    gib = {f"{category} GiB": trials[f"{category}_bytes"] / 2**30 for category in CATEGORIES}
    ok = trials["status"] == "ok"
    return pd.DataFrame(
        {
            "model": trials["model"],
            "workload": trials["workload"],
            "techniques": trials["label"],
            "method": trials["method"].where(trials["formula"].isna(), trials["formula"]),
            "status": trials["status"],
            "peak GiB": trials[PEAK].where(ok) / 2**30,
            "more than GiB": trials[PEAK].where(trials["status"] == "oom") / 2**30,
            "predicted GiB": trials["expected_bytes"] / 2**30,
            "tokens/s/device": trials[RATE],
            "low": trials[f"{RATE}_ci_low"],
            "high": trials[f"{RATE}_ci_high"],
            "reason": trials["reason"],
            "micro-batch": trials["micro_batch_size"],
            "tokens": trials["seq_len"],
            "ranks": trials["world_size"],
            "replicates": trials["replicates"],
            "device": trials["device"],
            **{axis: trials[axis] for axis in TECHNIQUE_AXES},
            "LoRA rank": trials["lora_rank"],
            "peak in": trials["peak_phase"],
            **gib,
            "date": trials["started_at"].astype(str).str.slice(0, 10),
            "command": trials["overrides"],
        }
    )
