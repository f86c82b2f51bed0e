"""Loop against loop: what transformers' Trainer, or TRL's, adds to the same step, and by which mechanism.

In: the trials of a study. Out: one line for each pair of trials that differ in their loop alone. Pure.
"""

from __future__ import annotations

import json
from typing import Any

import pandas as pd

from bench.analysis import neighbours
from bench.analysis.neighbours import Neighbours, Row
from bench.analysis.studies import BYTES, PEAK

COLUMNS = (
    *("label", "loop", "bare_bytes", "trainer_bytes"),
    *(*BYTES, "rate_change", "rates_differ", "mechanisms"),
)


def by_loop(study: pd.DataFrame) -> pd.DataFrame:
    """What a Trainer changes in each trial that it and the bare loop have run.

    Returns:
        `label` of the trial with the bare loop, `loop` (the Trainer in words), `bare_bytes` and
        `trainer_bytes` (peaks), for each category what the Trainer holds more of it at its peak,
        `rate_change` (a fraction), `rates_differ`, and `mechanisms` (what is known to differ, in words).
    """
    pairs = [
        pair
        for pair in neighbours.neighbours(study)
        if pair.axis == "loop" and pair.before["status"] == pair.after["status"] == "ok"
    ]
    return pd.DataFrame([_line(pair) for pair in pairs], columns=list(COLUMNS))


def _line(pair: Neighbours) -> dict[str, Any]:
    bare, trainer = pair.before, pair.after
    return {
        "label": bare["label"],
        "loop": pair.technique,
        "bare_bytes": bare[PEAK],
        "trainer_bytes": trainer[PEAK],
        **{name: (trainer[name] or 0) - (bare[name] or 0) for name in BYTES},
        "rate_change": pair.rate_change,
        "rates_differ": pair.rates_differ,
        "mechanisms": mechanisms(bare, trainer),
    }


def mechanisms(bare: Row, trainer: Row) -> list[str]:
    """What the rows' evidence and definitions say that the Trainer does otherwise."""
    plain, found = _evidence(bare), _evidence(trainer)
    said = ["holds the batches of two accumulations while it fetches one"]
    if trainer["loop"] == "sft":
        said.append("gives the model a mask of ones")
        said.append("has buffers for 32,768 logits of up to 4,096 tokens, and takes their entropy")
    elif found.get("outputs_copied_to_float32"):  # TRL's have no logits, and are in 32 bits
        said.append("copies 16-bit outputs, logits included, to float32")
    if not trainer["facts"].get("max_grad_norm"):
        said.append("takes the norm of all gradients, though nothing is clipped")
    if plain.get("parameter_dtypes") != found.get("parameter_dtypes"):
        by_peft = trainer["facts"].get("precision.quantization") != "none"
        said.append(
            "peft widened what is not quantised to float32"
            if by_peft
            else "accelerate widened what trains to float32, as under FSDP alone"
        )
    if str(trainer["optimizer"]).startswith("adamw_8bit"):
        said.append("keeps the optimizer's state of embeddings in 32 bits")
    elif plain.get("optimizer_class") == found.get("optimizer_class") == "Adafactor":
        said.append("has an Adafactor of its own")
    if trainer["fsdp"] in ("full_shard", "shard_grad_op"):
        said.append(
            "shards embedding and head by themselves, and casts by FSDP's policy in place of autocast"
        )
    if trainer["fsdp"] == "no_shard":
        said.append("holds every gradient twice, in DDP's buckets too")
    return said


def _evidence(row: Row) -> dict[str, Any]:
    return dict(json.loads(row["evidence"])) if isinstance(row["evidence"], str) else {}
