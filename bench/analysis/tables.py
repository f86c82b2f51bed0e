"""Tables of trials: the ladder of techniques, pairs, the Pareto frontier, curves, prediction errors. Pure.

In: DataFrames of studies.py. Out: DataFrames. Changes are fractions, (new - old) / old; sizes are bytes,
rates tokens per second.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from bench.analysis.accuracy import Graded, grade_trial
from bench.analysis.studies import TECHNIQUES, definition_without, reference_trial, row_dicts, tell_apart
from bench.trial.spec import from_text
from bench.trial.vocabulary import CATEGORIES

PEAK, RATE = "peak_allocated_bytes", "tokens_per_sec_per_device"

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
    """The study's trials with `peak_change` and `rate_change` against its reference."""
    reference = reference_trial(study)
    if reference is None:
        return study.assign(peak_change=float("nan"), rate_change=float("nan"))
    fits = study["status"] == "ok"
    return study.assign(
        peak_change=(study[PEAK] / reference[PEAK] - 1).where(fits),
        rate_change=(study[RATE] / (reference[RATE] or float("nan")) - 1).where(fits),
    )


def ladder(study: pd.DataFrame) -> pd.DataFrame:
    """The study's baseline, then one technique more at a time, each time the one with the lowest peak.

    Returns:
        The trials in this order, with `added` (the technique that was added, in words; "" for the baseline)
        and the columns that `changed` adds.
    """
    rungs, added = study[study["baseline"]], [""]
    current: dict[str, str] = {}
    while True:
        candidates = [
            index
            for index, steps, status in zip(study.index, study["steps"], study["status"], strict=True)
            if status == "ok" and len(steps) == len(current) + 1 and current.items() <= steps.items()
        ]
        if not candidates:
            break
        best = study.loc[candidates].nsmallest(1, PEAK)
        steps = best["steps"].iloc[0]
        added.append(next(words for axis, words in steps.items() if axis not in current))
        rungs, current = pd.concat([rungs, best]), steps
    return changed(study).loc[rungs.index].assign(added=added)


def alone(study: pd.DataFrame) -> pd.DataFrame:
    """The trials that differ from the baseline by one technique, `added`, with the columns of `changed`."""
    single = changed(study)[study["steps"].map(len) == 1]
    return single.assign(added=[next(iter(steps.values())) for steps in single["steps"]])


def pairs(study: pd.DataFrame) -> pd.DataFrame:
    """The trials of one or two techniques, as the cells of a heatmap.

    Returns:
        `first` and `second` (techniques in words; equal for a technique alone), `status`, `peak_change`,
        `rate_change` and `label`; each pair in both orders. If several trials have the same two techniques,
        the one with the lowest peak.
    """
    cells: dict[tuple[str, str], dict[str, Any]] = {}
    few = changed(study)
    few = few[few["steps"].map(len).between(1, 2)].sort_values(PEAK)
    columns = ("status", "peak_change", "rate_change", "label")
    for row in row_dicts(few):
        names = list(row["steps"].values())
        for cell in {(names[0], names[-1]), (names[-1], names[0])}:
            cells.setdefault(cell, {name: row[name] for name in columns})
    return pd.DataFrame(
        [{"first": first, "second": second} | cell for (first, second), cell in cells.items()],
        columns=["first", "second", *columns],
    )


def frontier(study: pd.DataFrame) -> pd.DataFrame:
    """The Pareto frontier: trials that no other trial beats in both peak and rate, lowest peak first."""
    fits = study[(study["status"] == "ok") & study[RATE].notna() & study[PEAK].notna()]
    fits = fits.sort_values([PEAK, RATE], ascending=[True, False])
    best = fits[RATE].cummax().shift(fill_value=float("-inf"))
    return fits[fits[RATE] > best]


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
    differences = tell_apart(names, facts, ignored=(CURVES[axis], "timing", *TECHNIQUES))
    return {
        key: f"{name} {difference}".strip()
        for key, name, difference in zip(first["key"], names, differences, strict=True)
    }


def _without_value(label: str, axis: str, value: int) -> str:
    """A trial's label without its value on the axis, in which the trials of a curve differ."""
    if axis == "lora_rank":
        return label.replace(f"LoRA r{value}", "LoRA")
    return label.replace(f" ×{value}", "") if axis == "world_size" else label


def ratios(trials: pd.DataFrame, axis: str, before: str, after: str, column: str) -> list[float]:
    """Of pairs of measured trials that differ in one axis alone: `column` at `after` over that at `before`.

    Args:
        trials: what `studies.trials` returns.
        axis: a technique's axis.
        before: the level in the denominator.
        after: the level in the numerator.
        column: a column of numbers.
    """
    fits = trials[(trials["status"] == "ok") & (trials["method"] == "measure") & (trials[column] > 0)]
    # Two ways to shard are compared at the same number of ranks.
    ignored = ("fsdp.name",) if axis == "fsdp" and "off" not in (before, after) else (axis,)
    values: dict[str, dict[str, float]] = {}
    for row in row_dicts(fits[fits[axis].isin([before, after])]):
        key = f"{row['device']} {definition_without(row['facts'], *ignored, 'timing', 'device')}"
        values.setdefault(key, {})[row[axis]] = row[column]
    return [pair[after] / pair[before] for pair in values.values() if len(pair) == 2]


def errors(trials: pd.DataFrame) -> list[Graded]:
    """The errors of predictions among these trials of measured ones, for the same kind of device."""
    ignored = ("method", "formula", "whole", "timing", "device")
    keys = [
        f"{_device_type(device)} {definition_without(facts, *ignored)}"
        for device, facts in zip(trials["device"], trials["facts"], strict=True)
    ]
    fits = trials.assign(key=keys)[(trials["status"] == "ok") & trials[PEAK].notna()]
    predicted: dict[str, dict[str, dict[str, Any]]] = {}
    for row in row_dicts(fits[fits["method"] != "measure"]):
        predictor = row["formula"] if row["method"] == "estimate" else row["method"]
        predicted.setdefault(row["key"], {})[predictor] = row
    return [
        grade_trial(row["label"], trial, row, predicted[row["key"]], row["device"])
        for row in row_dicts(fits[fits["method"] == "measure"])
        if row["key"] in predicted and isinstance(row["definition"], str)
        if (trial := from_text(row["definition"])) is not None
    ]


def _device_type(device: str) -> str:
    """`cpu` or `cuda`: from the name of a measured device, or of the device that a prediction is for."""
    return "cpu" if device.startswith("CPU") or device.endswith(" cpu") else "cuda"


def rows_table(trials: pd.DataFrame) -> pd.DataFrame:
    """One line for each trial, in units for people: the report's last table, and trials.csv."""
    gib = {f"{category} GiB": trials[f"{category}_bytes"] / 2**30 for category in CATEGORIES}
    return pd.DataFrame(
        {
            "model": trials["model"],
            "workload": trials["workload"],
            "techniques": trials["label"],
            "status": trials["status"],
            "peak GiB": trials[PEAK] / 2**30,
            "tokens/s/device": trials[RATE],
            "low": trials[f"{RATE}_ci_low"],
            "high": trials[f"{RATE}_ci_high"],
            "micro-batch": trials["micro_batch_size"],
            "tokens": trials["seq_len"],
            "ranks": trials["world_size"],
            "replicates": trials["replicates"],
            "method": trials["method"].where(trials["formula"].isna(), trials["formula"]),
            **{axis: trials[axis] for axis in TECHNIQUES},
            "LoRA rank": trials["lora_rank"],
            "peak in": trials["peak_phase"],
            **gib,
            "device": trials["device"],
            "date": trials["started_at"].astype(str).str.slice(0, 10),
            "reason": trials["reason"],
            "command": trials["overrides"],
        }
    )
