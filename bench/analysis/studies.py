"""Rows to studies: one line for each trial, and beside each other those that differ in techniques alone.

A study is one model, one shape of batch and one device, measured (or predicted) with several combinations
of techniques; its baseline is the trial with the fewest of them. Everything that compares techniques
(tables, figures, findings, notebooks) starts here. Pure: a DataFrame in, a DataFrame out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pandas as pd

from bench.trial.outcome import STATUSES, counting_executions
from bench.trial.spec import from_text
from bench.trial.vocabulary import CATEGORIES

TECHNIQUES = ("precision", "lora", "checkpointing", "fsdp", "offload", "optimizer", "kv_cache")
PLAIN = {"precision": "fp32", "lora": "off", "checkpointing": "off", "fsdp": "off", "offload": "off"}
PLAIN_OPTIMIZERS = ("adamw", "adamw_foreach", "adamw_fused")  # one method, three implementations
BYTES = (*(f"{category}_bytes" for category in CATEGORIES), "untracked_bytes")

# What of a row is looked at; reading these alone is much cheaper than reading every column.
COLUMNS = (
    *("trial_id", "sweep_id", "replicate", "started_at", "method", "formula", "status", "reason"),
    *("model", *TECHNIQUES, "lora_rank", "world_size", "workload", "micro_batch_size", "seq_len"),
    *("grad_accum_steps", "seed", "threads", "overrides", "definition", "param_count"),
    *("trainable_param_count", "peak_allocated_bytes", "peak_reserved_bytes", "tracked_peak_bytes"),
    *(*BYTES, "peak_phase", "peak_host_rss_bytes", "host_max_bytes", "oom_requested_bytes"),
    *("decode_tokens", "first_token_seconds", "step_seconds_p95"),
    *("step_seconds_median", "step_seconds_iqr", "step_outliers", "stop_reason", "mfu", "hfu"),
    *(f"tokens_per_sec_per_device{end}" for end in ("", "_ci_low", "_ci_high")),
    *("tokens_per_sec_global", "evidence", "device_throttled", "device_shared", "device_name"),
    *("device_memory_bytes", "driver_version", "torch_version", "transformers_version", "peft_version"),
    *("bitsandbytes_version", "accelerate_version", "python_version", "git_commit", "git_dirty"),
)

_NOT_THE_STUDY = ("timing", "device", "whole", *TECHNIQUES)


def trials(rows: pd.DataFrame) -> pd.DataFrame:
    """One line for each trial on each device, replicates together, oldest first.

    The peak is the replicates' largest, the rate their median, its interval spans theirs, and the status is
    the worst. Further columns:

    - `study`, `title`: which study the trial belongs to, and that study in words;
    - `label`: the trial's techniques in words, unique within its study;
    - `steps`: the techniques that tell it from its study's baseline, a dict from axis to words;
    - `baseline`: whether it is the baseline;
    - `facts`: its definition as a flat dict, `lora.rank` and the like.

    Args:
        rows: what `results.read` returns; of the columns, those in `COLUMNS` matter.
    """
    if rows.empty:
        more = ("device", "study", "title", "label", "steps", "baseline", "facts", "replicates")
        return pd.DataFrame(columns=[*rows.columns, *more])
    known = rows.assign(device=_devices(rows), order=rows["status"].map(STATUSES.index))
    replicates = zip(known["trial_id"], known["replicate"], strict=True)
    merged = _without_replicates(known[counting_executions(zip(replicates, known["status"], strict=True))])
    merged["facts"] = pd.Series([_facts(row) for row in each_study(merged)], index=merged.index)
    merged["study"] = [
        _study(facts, row) for facts, row in zip(merged["facts"], each_study(merged), strict=True)
    ]
    merged["title"] = _titles(merged)
    merged["label"] = _labels(merged)
    merged["baseline"] = merged.index.isin(_baselines(merged))
    return merged.assign(steps=pd.Series(_steps(merged), index=merged.index))


def each_study(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The lines of a table as plain dicts."""
    return [{str(name): value for name, value in line.items()} for line in frame.to_dict("records")]


def _devices(rows: pd.DataFrame) -> pd.Series[str]:
    """The device of each row; a skipped trial never saw one, and takes its sweep's."""
    of_sweep = rows.groupby(["sweep_id", "method"])["device_name"].transform("first")
    return rows["device_name"].fillna(of_sweep).fillna("no device")


def _without_replicates(known: pd.DataFrame) -> pd.DataFrame:
    rate = "tokens_per_sec_per_device"
    how: dict[str, str] = dict.fromkeys(known.columns, "first")
    how |= {
        "peak_allocated_bytes": "max",
        rate: "median",
        f"{rate}_ci_low": "min",
        f"{rate}_ci_high": "max",
        "order": "max",
        "replicate": "count",
    }
    keys = ["trial_id", "device"]
    merged = known.groupby(keys, sort=False).agg({k: v for k, v in how.items() if k not in keys})
    merged = merged.reset_index().rename(columns={"replicate": "replicates"})
    return merged.assign(status=[STATUSES[int(order)] for order in merged["order"]])


def _facts(row: dict[str, Any]) -> dict[str, Any]:
    """The definition, flat; rows that have none are described by their columns."""
    if isinstance(row["definition"], str) and from_text(row["definition"]) is not None:
        return dict(_flat(json.loads(row["definition"]), ""))
    named = {
        f"{axis}.name": row[axis] for axis in (*TECHNIQUES, "model", "workload") if pd.notna(row[axis])
    }
    rank = {} if pd.isna(row["lora_rank"]) else {"lora.rank": int(row["lora_rank"])}
    sharded = {} if row["fsdp"] == "off" else {"fsdp.world_size": int(row["world_size"])}
    shape = {key: row[key] for key in ("micro_batch_size", "seq_len", "grad_accum_steps", "method")}
    return named | rank | sharded | shape


def _flat(values: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def without_columns(facts: dict[str, Any], *parts: str) -> str:
    """The definition less some of its parts (`lora`, or `lora.rank`), as text that tells two apart."""
    kept = [(k, v) for k, v in facts.items() if k not in parts and k.partition(".")[0] not in parts]
    return json.dumps(sorted(kept), default=str)


def _study(facts: dict[str, Any], row: dict[str, Any]) -> str:
    return f"{row['device']} {without_columns(facts, *_NOT_THE_STUDY)}"


def _titles(merged: pd.DataFrame) -> list[str]:
    """Each trial's study in words; what else tells studies of the same words apart follows in brackets."""
    first = merged.drop_duplicates("study")
    words = [_title(row) for row in each_study(first)]
    said = tell_apart(words, list(first["facts"]), ignored=_NOT_THE_STUDY)
    titles = {
        study: f"{title} ({more})" if more else title
        for study, title, more in zip(first["study"], words, said, strict=True)
    }
    return [titles[study] for study in merged["study"]]


def _title(row: dict[str, Any]) -> str:
    method = "" if row["method"] == "measure" else f"{row['method']}d: "
    formula = "" if pd.isna(row["formula"]) else f", {str(row['formula']).replace('_', ' ')}"
    accumulated = f" × {row['grad_accum_steps']} micro-steps" if row["grad_accum_steps"] > 1 else ""
    shape = f"{row['micro_batch_size']} × {row['seq_len']} tokens{accumulated}"
    return f"{method}{row['model']}, {row['workload']}, {shape}, {row['device']}{formula}"


def tell_apart(
    names: list[str], facts: list[dict[str, Any]], *, ignored: tuple[str, ...] = ()
) -> list[str]:
    """What tells each of these definitions from others of its name, as overrides; "" if nothing has to.

    Args:
        names: what each is called.
        facts: the definitions, flat, in the same order.
        ignored: parts of a definition that are not looked at.
    """
    alike: dict[str, list[dict[str, Any]]] = {}
    for name, of in zip(names, facts, strict=True):
        alike.setdefault(name, []).append(of)
    differ = {name: _differing(all_of, ignored) for name, all_of in alike.items()}
    return [
        " ".join(f"{key}={of[key]}" for key in differ[name] if key in of)
        for name, of in zip(names, facts, strict=True)
    ]


def _differing(facts: list[dict[str, Any]], ignored: tuple[str, ...]) -> list[str]:
    if len(facts) < 2:
        return []
    keys = sorted({key for one in facts for key in one if key.partition(".")[0] not in ignored})
    return [key for key in keys if any(one.get(key) != facts[0].get(key) for one in facts)]


def step_words(axis: str, facts: dict[str, Any]) -> str:
    """A trial's level on an axis in the field's words: `LoRA r16`, `FSDP full_shard ×2`; "" for none."""
    level = str(facts.get(f"{axis}.name", "off"))
    if axis in ("precision", "optimizer"):
        return level
    if axis == "kv_cache":
        return "" if level in ("off", "dynamic") else f"{level} cache"
    if level == "off":
        return ""
    if axis == "lora":
        return f"LoRA r{facts['lora.rank']}" if "lora.rank" in facts else "LoRA"
    if axis == "checkpointing":
        return "checkpointing" if level == "on" else f"{level} checkpointing"
    if axis == "fsdp":
        name = "DDP" if level == "no_shard" else f"FSDP {level}"
        return f"{name} ×{facts.get('fsdp.world_size', 1)}"
    return f"offload {level}"


def _labels(merged: pd.DataFrame) -> list[str]:
    plain = merged["optimizer"].isin(PLAIN_OPTIMIZERS)
    alike = merged.groupby("study")["optimizer"].transform("nunique") == 1
    unsaid = plain & (alike | (merged["optimizer"] == "adamw"))  # what nobody varied, or the default
    labels = [
        " + ".join(
            filter(
                None, (step_words(axis, facts) for axis in TECHNIQUES if axis != "optimizer" or not quiet)
            )
        )
        for facts, quiet in zip(merged["facts"], unsaid, strict=True)
    ]
    said = tell_apart(
        [f"{study} {label}" for study, label in zip(merged["study"], labels, strict=True)],
        list(merged["facts"]),
    )
    return [f"{label} {more}".strip() for label, more in zip(labels, said, strict=True)]


def _baselines(merged: pd.DataFrame) -> list[Any]:
    """The index of each study's trial with the fewest techniques."""
    optimizers = [*PLAIN_OPTIMIZERS, *sorted(set(merged["optimizer"]) - set(PLAIN_OPTIMIZERS))]
    ranked = merged.assign(
        many=sum((merged[axis] != level).astype(int) for axis, level in PLAIN.items())
        + ~merged["optimizer"].isin(PLAIN_OPTIMIZERS)
        + (merged["kv_cache"] == "static"),
        nth=merged["optimizer"].map(optimizers.index),
        impossible=merged["status"] == "skipped",
    )
    ranked = ranked.sort_values(["impossible", "many", "nth", "label"], kind="stable")
    return list(ranked.groupby("study", sort=False).head(1).index)


def _steps(merged: pd.DataFrame) -> list[dict[str, str]]:
    chosen = merged[merged["baseline"]]
    plain = dict(zip(chosen["study"], chosen["facts"], strict=True))
    steps = []
    for study, facts in zip(merged["study"], merged["facts"], strict=True):
        pieces = {axis: (step_words(axis, facts), step_words(axis, plain[study])) for axis in TECHNIQUES}
        steps.append({axis: now or f"no {was}" for axis, (now, was) in pieces.items() if now != was})
    return steps


def studies(of: pd.DataFrame) -> list[pd.DataFrame]:
    """The trials of each study: measured before predicted, those with most trials first."""
    groups = [group for _, group in of.groupby("study", sort=False)]
    return sorted(groups, key=lambda group: (group["method"].iloc[0] != "measure", -len(group)))


def of_several(found: list[pd.DataFrame]) -> list[pd.DataFrame]:
    """The studies of more than one trial, which alone compare anything; if there is none, the first."""
    return [study for study in found if len(study) > 1] or found[:1]


def baseline_trial(study: pd.DataFrame) -> dict[str, Any]:
    """The study's trial with the fewest techniques."""
    return each_study(study[study["baseline"]])[0]


def reference_trial(study: pd.DataFrame) -> dict[str, Any] | None:
    """What changes are counted from: the baseline, or if it does not fit the ok trial nearest to it."""
    fits = study[study["status"] == "ok"]
    if fits.empty:
        return None
    many = fits["steps"].map(len)
    return each_study(fits[many == many.min()].sort_values("peak_allocated_bytes", ascending=False))[0]
