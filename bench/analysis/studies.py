"""Merges rows into trials, and groups trials into studies: those that differ in techniques alone.

A study is one model, one shape of batch and one device, measured (or predicted) with several combinations
of techniques; its baseline is the trial with the fewest of them. Everything that compares techniques
(tables, figures, findings, notebooks) starts here. Pure: a DataFrame in, DataFrames out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pandas as pd

from bench.trial.outcome import STATUSES, counting_executions
from bench.trial.spec import from_text, shape_words
from bench.trial.vocabulary import CATEGORIES, PRECISION_COLUMNS, TECHNIQUE_AXES

PLAIN = dict.fromkeys(("lora", "checkpointing", "fsdp", "offload"), "off")
PLAIN |= {"precision": "fp32", "loss": "full", "loop": "bare", "kv_cache": "dynamic"}
PLAIN_OPTIMIZERS = ("adamw", "adamw_foreach", "adamw_fused")  # one method, three implementations
PEAK, RATE = "peak_allocated_bytes", "tokens_per_sec_per_device"
BYTES = (*(f"{category}_bytes" for category in CATEGORIES), "untracked_bytes")

# The columns that analysis and reports use; reading only these is much faster than reading all.
COLUMNS = (
    *("trial_id", "sweep_id", "replicate", "started_at", "method", "formula", "status", "reason"),
    *("model", *TECHNIQUE_AXES, "lora_rank", "world_size", "workload", "micro_batch_size", "seq_len"),
    *PRECISION_COLUMNS,
    *("grad_accum_steps", "seed", "threads", "overrides", "definition", "param_count"),
    *("trainable_param_count", "peak_allocated_bytes", "peak_reserved_bytes", "tracked_peak_bytes"),
    *(*BYTES, "peak_phase", "peak_host_rss_bytes", "host_max_bytes", "oom_requested_bytes"),
    *("decode_tokens", "first_token_seconds", "step_seconds_p95"),
    *("step_seconds_median", "step_seconds_iqr", "step_outliers", "stop_reason", "mfu", "hfu"),
    *(f"tokens_per_sec_per_device{end}" for end in ("", "_ci_low", "_ci_high")),
    *("tokens_per_sec_global", "evidence", "timeline", "device_throttled", "device_shared", "device_name"),
    *("device_memory_bytes", "driver_version", "torch_version", "transformers_version", "peft_version"),
    *("bitsandbytes_version", "accelerate_version", "python_version", "git_commit", "git_dirty"),
)

# Parts of a definition in which the trials of one study may differ.
_NOT_THE_STUDY = ("timing", "device", "whole", *TECHNIQUE_AXES)
_HOW_IT_WAS_FOUND = ("method", "formula")


def trials(rows: pd.DataFrame) -> pd.DataFrame:
    """One line for each trial on each device, oldest first; replicates are merged.

    Of replicates the largest peak is kept, the median rate, an interval that spans all of theirs, and the
    worst status. Further columns:

    - `study`, `title`: which study the trial belongs to, and that study in words;
    - `label`: the trial's techniques in words, unique within its study;
    - `steps`: the techniques in which it differs from its study's baseline, a dict from axis to words;
    - `baseline`: whether it is the baseline;
    - `replicates`: how many rows were merged;
    - `facts`: its definition as a flat dict, with keys like `lora.rank`.

    Args:
        rows: what `store.read` returns, with at least `COLUMNS`.
    """
    if rows.empty:
        added = ("device", "study", "title", "label", "steps", "baseline", "facts", "replicates")
        return pd.DataFrame(columns=[*rows.columns, *added])
    executions = rows.assign(device=_devices(rows), order=rows["status"].map(STATUSES.index))
    replicates = zip(executions["trial_id"], executions["replicate"], strict=True)
    counting = counting_executions(zip(replicates, executions["status"], strict=True))
    merged = _merge_replicates(executions[counting])
    merged["facts"] = pd.Series([_facts(row) for row in row_dicts(merged)], index=merged.index)
    merged["study"] = [
        _study_key(facts, row) for facts, row in zip(merged["facts"], row_dicts(merged), strict=True)
    ]
    merged["title"] = _titles(merged)
    merged["label"] = _labels(merged)
    merged["baseline"] = merged.index.isin(_baselines(merged))
    return merged.assign(steps=pd.Series(_steps(merged), index=merged.index))


def row_dicts(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The lines of a table as dicts from column to value."""
    return [{str(name): value for name, value in line.items()} for line in frame.to_dict("records")]


def _devices(rows: pd.DataFrame) -> pd.Series[str]:
    """The device of each row; a skipped trial has none, and gets that of its sweep."""
    of_sweep = rows.groupby(["sweep_id", "method"])["device_name"].transform("first")
    return rows["device_name"].fillna(of_sweep).fillna("no device")


def _merge_replicates(executions: pd.DataFrame) -> pd.DataFrame:
    """One line for each trial and device, with `replicates`."""
    rate = "tokens_per_sec_per_device"
    how: dict[str, str] = dict.fromkeys(executions.columns, "first")
    how |= {
        "peak_allocated_bytes": "max",
        rate: "median",
        f"{rate}_ci_low": "min",
        f"{rate}_ci_high": "max",
        "order": "max",
        "replicate": "count",
    }
    keys = ["trial_id", "device"]
    merged = executions.groupby(keys, sort=False).agg(
        {column: function for column, function in how.items() if column not in keys}
    )
    merged = merged.reset_index().rename(columns={"replicate": "replicates"})
    return merged.assign(status=[STATUSES[int(order)] for order in merged["order"]])


def _facts(row: dict[str, Any]) -> dict[str, Any]:
    """The row's definition as a flat dict, or, if it has none that can be read, its axis columns."""
    if isinstance(row["definition"], str) and from_text(row["definition"]) is not None:
        return dict(_flat(json.loads(row["definition"]), ""))
    named = {
        f"{axis}.name": row[axis] for axis in (*TECHNIQUE_AXES, "model", "workload") if pd.notna(row[axis])
    }
    rank = {} if pd.isna(row["lora_rank"]) else {"lora.rank": int(row["lora_rank"])}
    sharded = {} if row["fsdp"] == "off" else {"fsdp.world_size": int(row["world_size"])}
    shape = {key: row[key] for key in ("micro_batch_size", "seq_len", "grad_accum_steps", "method")}
    return named | rank | sharded | shape


def _flat(values: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """The pairs of a nested dict, with keys like `lora.rank`."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def definition_without(facts: dict[str, Any], *parts: str) -> str:
    """A definition without some of its parts (`lora`, or `lora.rank`), as text, to be used as a key."""
    kept = [
        (key, value)
        for key, value in facts.items()
        if key not in parts and key.partition(".")[0] not in parts
    ]
    return json.dumps(sorted(kept), default=str)


def _study_key(facts: dict[str, Any], row: dict[str, Any]) -> str:
    return f"{row['device']} {definition_without(facts, *_NOT_THE_STUDY)}"


def _titles(merged: pd.DataFrame) -> list[str]:
    """The title of each trial's study; brackets tell studies apart that would have the same title."""
    first = merged.drop_duplicates("study")
    short_titles = [_title(row) for row in row_dicts(first)]
    differences = tell_apart(short_titles, list(first["facts"]), ignored=_NOT_THE_STUDY)
    titles = {
        study: f"{title} ({difference})" if difference else title
        for study, title, difference in zip(first["study"], short_titles, differences, strict=True)
    }
    return [titles[study] for study in merged["study"]]


def _title(row: dict[str, Any]) -> str:
    method = "" if row["method"] == "measure" else f"{row['method']}d: "
    formula = "" if pd.isna(row["formula"]) else f", {str(row['formula']).replace('_', ' ')}"
    shape = shape_words(
        row["model"], row["workload"], row["micro_batch_size"], row["seq_len"], row["grad_accum_steps"]
    )
    return f"{method}{shape}, {row['device']}{formula}"


def tell_apart(
    names: list[str], facts: list[dict[str, Any]], *, ignored: tuple[str, ...] = ()
) -> list[str]:
    """The overrides that tell each definition from the others of its name; "" where a name is unique.

    Args:
        names: the name of each definition.
        facts: the definitions as flat dicts, in the same order.
        ignored: parts of a definition that are not compared.
    """
    by_name: dict[str, list[dict[str, Any]]] = {}
    for name, definition in zip(names, facts, strict=True):
        by_name.setdefault(name, []).append(definition)
    differing = {name: _differing_keys(alike, ignored) for name, alike in by_name.items()}
    return [
        " ".join(f"{key}={definition[key]}" for key in differing[name] if key in definition)
        for name, definition in zip(names, facts, strict=True)
    ]


def _differing_keys(definitions: list[dict[str, Any]], ignored: tuple[str, ...]) -> list[str]:
    first, *others = definitions
    keys = {key for definition in definitions for key in definition}
    compared = sorted(key for key in keys if key.partition(".")[0] not in ignored)
    return [key for key in compared if any(other.get(key) != first.get(key) for other in others)]


def step_words(axis: str, facts: dict[str, Any]) -> str:
    """A trial's technique on an axis in words: `LoRA r16`, `FSDP full_shard ×2`; "" if it uses none."""
    level = str(facts.get(f"{axis}.name", "off"))
    if axis in ("precision", "optimizer"):
        return level
    if axis == "kv_cache":
        return "" if level in ("off", "dynamic") else f"{level} cache"
    if level in ("off", "full", "bare"):
        return ""
    if axis == "lora":
        return f"LoRA r{facts['lora.rank']}" if "lora.rank" in facts else "LoRA"
    if axis == "checkpointing":
        return "checkpointing" if level == "on" else f"{level} checkpointing"
    if axis == "fsdp":
        name = "DDP" if level == "no_shard" else f"FSDP {level}"
        return f"{name} ×{facts.get('fsdp.world_size', 1)}"
    if axis == "loop":
        return "SFTTrainer" if level == "sft" else "Trainer"
    if axis == "loss":
        chunks = "TRL's" if facts.get("loop.name") == "sft" else facts.get("loss.chunks", "several")
        return f"loss in {chunks} chunks"
    return f"offload {level}"


def _labels(merged: pd.DataFrame) -> list[str]:
    """The techniques of each trial in words; overrides tell trials apart that would have the same label."""
    plain = merged["optimizer"].isin(PLAIN_OPTIMIZERS)
    only_one = merged.groupby("study")["optimizer"].transform("nunique") == 1
    # A plain optimizer is not named if the study has no other, or if it is the default.
    unnamed = plain & (only_one | (merged["optimizer"] == "adamw"))
    labels = []
    for facts, without_optimizer in zip(merged["facts"], unnamed, strict=True):
        axes = (axis for axis in TECHNIQUE_AXES if axis != "optimizer" or not without_optimizer)
        labels.append(" + ".join(filter(None, (step_words(axis, facts) for axis in axes))))
    differences = tell_apart(
        [f"{study} {label}" for study, label in zip(merged["study"], labels, strict=True)],
        list(merged["facts"]),
    )
    return [f"{label} {difference}".strip() for label, difference in zip(labels, differences, strict=True)]


def _baselines(merged: pd.DataFrame) -> list[Any]:
    """The index of each study's trial with the fewest techniques."""
    optimizers = [*PLAIN_OPTIMIZERS, *sorted(set(merged["optimizer"]) - set(PLAIN_OPTIMIZERS))]
    ranked = merged.assign(
        many=sum((merged[axis].fillna(level) != level).astype(int) for axis, level in PLAIN.items())
        + ~merged["optimizer"].isin(PLAIN_OPTIMIZERS),
        nth=merged["optimizer"].map(optimizers.index),
        impossible=merged["status"] == "skipped",
    )
    ranked = ranked.sort_values(["impossible", "many", "nth", "label"], kind="stable")
    return list(ranked.groupby("study", sort=False).head(1).index)


def _steps(merged: pd.DataFrame) -> list[dict[str, str]]:
    """The techniques in which each trial differs from its study's baseline, by axis."""
    baselines = merged[merged["baseline"]]
    baseline_facts = dict(zip(baselines["study"], baselines["facts"], strict=True))
    steps = []
    for study, facts in zip(merged["study"], merged["facts"], strict=True):
        words = {
            axis: (step_words(axis, facts), step_words(axis, baseline_facts[study]))
            for axis in TECHNIQUE_AXES
        }
        steps.append({axis: own or f"no {base}" for axis, (own, base) in words.items() if own != base})
    return steps


def studies(trials: pd.DataFrame) -> list[pd.DataFrame]:
    """The trials of each study: measured studies before predicted ones, then by number of trials."""
    groups = [group for _, group in trials.groupby("study", sort=False)]
    return sorted(groups, key=lambda group: (group["method"].iloc[0] != "measure", -len(group)))


def comparable_studies(every: list[pd.DataFrame]) -> list[pd.DataFrame]:
    """The studies with more than one trial; if there is none, the first study.

    Of studies that differ only in how the numbers were found (measured, simulated, estimated) the first.
    """
    several = [study for study in every if len(study) > 1] or every[:1]
    subjects: dict[str, pd.DataFrame] = {}
    for study in several:
        facts, device = study["facts"].iloc[0], str(study["device"].iloc[0])
        subject = definition_without(facts, *_HOW_IT_WAS_FOUND, *_NOT_THE_STUDY)
        subjects.setdefault(f"{device_type(device)} {subject}", study)
    return list(subjects.values())


def device_type(device: str) -> str:
    """`cpu` or `cuda`: from the name of a measured device, or of the device that a prediction is for."""
    return "cpu" if device.startswith("CPU") or device.endswith(" cpu") else "cuda"


def baseline_trial(study: pd.DataFrame) -> dict[str, Any]:
    """The study's trial with the fewest techniques."""
    return row_dicts(study[study["baseline"]])[0]
