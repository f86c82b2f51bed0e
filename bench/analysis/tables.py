"""Trials to tables: the ladder of techniques, pairs, the frontier, curves, and prediction errors. Pure.

Changes are fractions, new over old less one; bytes and tokens per second as they are.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from bench.analysis.accuracy import Graded, grade_trial
from bench.analysis.studies import TECHNIQUES, each_study, reference_trial, tell_apart, without_columns
from bench.trial.spec import from_text
from bench.trial.vocabulary import CATEGORIES

PEAK, RATE = "peak_allocated_bytes", "tokens_per_sec_per_device"

# What a cost curve is drawn over, and where the definition has it.
CURVES = {
    "lora_rank": "lora.rank",
    "seq_len": "seq_len",
    "micro_batch_size": "micro_batch_size",
    "world_size": "fsdp.world_size",
    "grad_accum_steps": "grad_accum_steps",
}
_POINTS = 3  # fewer are no curve


def changed(study: pd.DataFrame) -> pd.DataFrame:
    """The study's trials with `peak_change` and `rate_change` against its reference."""
    first = reference_trial(study)
    if first is None:
        return study.assign(peak_change=float("nan"), rate_change=float("nan"))
    fits = study["status"] == "ok"
    return study.assign(
        peak_change=(study[PEAK] / first[PEAK] - 1).where(fits),
        rate_change=(study[RATE] / (first[RATE] or float("nan")) - 1).where(fits),
    )


def ladder(study: pd.DataFrame) -> pd.DataFrame:
    """One technique added at a time, each the one that leaves the lowest peak.

    Returns:
        The study's baseline, and rung by rung the trial that differs from the one before by one more
        technique, with `added` (that technique in words) and the changes of `changed`.
    """
    rungs, added = study[study["baseline"]], [""]
    now: dict[str, str] = {}
    while True:
        more = [
            index
            for index, steps, status in zip(study.index, study["steps"], study["status"], strict=True)
            if status == "ok" and len(steps) == len(now) + 1 and now.items() <= steps.items()
        ]
        if not more:
            break
        best = study.loc[more].nsmallest(1, PEAK)
        steps = best["steps"].iloc[0]
        added.append(next(words for axis, words in steps.items() if axis not in now))
        rungs, now = pd.concat([rungs, best]), steps
    return changed(study).loc[rungs.index].assign(added=added)


def alone(study: pd.DataFrame) -> pd.DataFrame:
    """The trials that differ from the baseline by one technique (`added`), with their changes."""
    single = changed(study)[study["steps"].map(len) == 1]
    return single.assign(added=[next(iter(steps.values())) for steps in single["steps"]])


def pairs(study: pd.DataFrame) -> pd.DataFrame:
    """Two techniques at a time, and one with itself for one alone: the cells of a heatmap.

    Returns:
        `first`, `second`, `status`, `peak_change` and `rate_change`; each pair both ways round. Where
        several trials have the same two techniques, the one with the lowest peak.
    """
    cells: dict[tuple[str, str], dict[str, Any]] = {}
    few = changed(study)
    few = few[few["steps"].map(len).between(1, 2)].sort_values(PEAK)
    columns = ("status", "peak_change", "rate_change", "label")
    for row in each_study(few):
        names = list(row["steps"].values())
        for cell in {(names[0], names[-1]), (names[-1], names[0])}:
            cells.setdefault(cell, {name: row[name] for name in columns})
    return pd.DataFrame(
        [{"first": first, "second": second} | cell for (first, second), cell in cells.items()],
        columns=["first", "second", *columns],
    )


def frontier(study: pd.DataFrame) -> pd.DataFrame:
    """The Pareto frontier, lowest peak first: trials that no other beats in both peak and rate."""
    fits = study[(study["status"] == "ok") & study[RATE].notna() & study[PEAK].notna()]
    fits = fits.sort_values([PEAK, RATE], ascending=[True, False])
    best = fits[RATE].cummax().shift(fill_value=float("-inf"))
    return fits[fits[RATE] > best]


def curves(trials: pd.DataFrame, axis: str) -> pd.DataFrame:
    """Trials that differ in `axis` alone, where there are at least three values of it.

    Args:
        trials: what `studies.trials` returns.
        axis: a key of `CURVES`.

    Returns:
        `curve` (what the trials of one line share, in words), `value`, and the trials' columns, sorted.
    """
    fits = trials[(trials["status"] == "ok") & trials[axis].notna()]
    ignored = (CURVES[axis], "timing", "device")
    keys = [
        f"{d} {without_columns(f, *ignored)}" for d, f in zip(fits["device"], fits["facts"], strict=True)
    ]
    lines = fits.assign(key=keys, value=fits[axis].astype(int) if len(fits) else [])
    lines = lines.drop_duplicates(["key", "value"])
    lines = lines.assign(points=lines.groupby("key")["value"].transform("size"))
    lines = lines[lines["points"] >= _POINTS].sort_values(
        ["points", "key", "value"], ascending=[False, True, True]
    )
    return lines.assign(curve=lines["key"].map(_names(lines, axis)))


def _names(lines: pd.DataFrame, axis: str) -> dict[str, str]:
    """What each curve's trials share, in words that no other curve has."""
    first = lines.drop_duplicates("key")
    names = [
        _without_value(label, axis, value)
        for label, value in zip(first["label"], first["value"], strict=True)
    ]
    facts = [of | {"device": device} for of, device in zip(first["facts"], first["device"], strict=True)]
    said = tell_apart(names, facts, ignored=(CURVES[axis], "timing", *TECHNIQUES))
    return {
        key: f"{name} {more}".strip() for key, name, more in zip(first["key"], names, said, strict=True)
    }


def _without_value(label: str, axis: str, value: int) -> str:
    if axis == "lora_rank":
        return label.replace(f"LoRA r{value}", "LoRA")
    return label.replace(f" ×{value}", "") if axis == "world_size" else label


def ratios(trials: pd.DataFrame, axis: str, before: str, after: str, column: str) -> list[float]:
    """Measured trials that differ in one axis alone: `column` at one level over `column` at the other.

    Args:
        trials: what `studies.trials` returns.
        axis: a technique's axis.
        before: the level below the line.
        after: the level above it.
        column: a number that both have.
    """
    fits = trials[(trials["status"] == "ok") & (trials["method"] == "measure") & (trials[column] > 0)]
    # between two ways to shard, the ranks must be as many
    ignored = ("fsdp.name",) if axis == "fsdp" and "off" not in (before, after) else (axis,)
    values: dict[str, dict[str, float]] = {}
    for row in each_study(fits[fits[axis].isin([before, after])]):
        key = f"{row['device']} {without_columns(row['facts'], *ignored, 'timing', 'device')}"
        values.setdefault(key, {})[row[axis]] = row[column]
    return [found[after] / found[before] for found in values.values() if len(found) == 2]


def errors(trials: pd.DataFrame) -> list[Graded]:
    """Measured trials beside what these rows predict of the same trial, for the same kind of device."""
    keys = [
        f"{_kind(device)} {without_columns(facts, 'method', 'formula', 'whole', 'timing', 'device')}"
        for device, facts in zip(trials["device"], trials["facts"], strict=True)
    ]
    fits = trials.assign(key=keys)[(trials["status"] == "ok") & trials[PEAK].notna()]
    predicted: dict[str, dict[str, dict[str, Any]]] = {}
    for row in each_study(fits[fits["method"] != "measure"]):
        predictor = row["formula"] if row["method"] == "estimate" else row["method"]
        predicted.setdefault(row["key"], {})[predictor] = row
    return [
        grade_trial(row["label"], trial, row, predicted[row["key"]], row["device"])
        for row in each_study(fits[fits["method"] == "measure"])
        if row["key"] in predicted and isinstance(row["definition"], str)
        if (trial := from_text(row["definition"])) is not None
    ]


def _kind(device: str) -> str:
    """`cpu` or `cuda`, of a measured device's name or of what a prediction was for."""
    return "cpu" if device.startswith("CPU") or device.endswith(" cpu") else "cuda"


def rows_table(trials: pd.DataFrame) -> pd.DataFrame:
    """Every trial on one line, in units to read: the report's last table, and trials.csv."""
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
