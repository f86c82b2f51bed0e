"""Prints a plan: a table for one card and model, and a sentence with the pick or with advice.

In: answers of planning.py, and a results folder for measured rates. Out: text on the console.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from bench import formatting
from bench.analysis.plans.planning import Advice, Answer, Failure
from bench.formatting import format_bytes, format_gib_fixed
from bench.machine.gpu_catalogue import Gpu
from bench.methods.estimate.inference import cache_bytes
from bench.results import store
from bench.trial.spec import Trial, axes_of
from bench.trial.vocabulary import PRECISION_COLUMNS, precision_words

_PLAIN_WIDTH = 200  # columns, where the output is no terminal
_INFERENCE_CATEGORIES = ("parameter", "kv_cache", "temporary")
_TRAINING_CATEGORIES = ("parameter", "gradient", "optimizer", "activation", "temporary")
# Axes on which a measured row must agree with a planned trial; the micro-batch may differ.
_MATCHED = (
    "model",
    "precision",
    "lora",
    "lora_rank",
    "checkpointing",
    "fsdp",
    "world_size",
    "offload",
    "optimizer",
    "loss",
    "workload",
    "kv_cache",
    "seq_len",
    "grad_accum_steps",
)


def with_measured(answers: list[Answer], card: Gpu, results_dir: Path) -> list[Answer]:
    """The answers, sorted again by the rates that were measured on that card where there are any."""
    rows = [
        row
        for row in store.records(results_dir)
        if row["status"] == "ok" and row["method"] == "measure" and row["device_name"] in card.device_names
    ]
    with_rates = []
    for answer in answers:
        axes = axes_of(answer.trial)
        rates = [
            row["tokens_per_sec_per_device"]
            for row in rows
            if _matches(row, axes) and row["tokens_per_sec_per_device"]
        ]
        with_rates.append(replace(answer, measured=max(rates)) if rates else answer)
    return sorted(with_rates, key=lambda answer: answer.rank)


def _matches(row: Mapping[str, Any], axes: Mapping[str, Any]) -> bool:
    """Whether a measured row agrees with the axes of a planned trial."""
    older = {"loss": "full"} if row["loss"] is None else {}  # a row of before there was the axis
    return all(older.get(name, row[name]) == axes[name] for name in _MATCHED)


def show_plan(
    answers: list[Answer],
    failures: list[Failure],
    card: Gpu,
    fixed: tuple[str, ...],
    margin: float,
    advice: Advice | None,
    reasons: list[str],
) -> None:
    """Prints one plan.

    Args:
        answers: the combinations, the best first.
        failures: the combinations that could not be simulated.
        card: the card.
        fixed: the key=value arguments that all combinations share.
        margin: the share of the card's memory to leave free.
        advice: what would make a combination fit; None if one fits.
        reasons: why combinations cannot exist.
    """
    console = formatting.console(_PLAIN_WIDTH)
    console.print(
        f"\n{escape(' '.join(fixed))} on {card.name}, {format_gib_fixed(card.memory_bytes)} GiB",
        highlight=False,
    )
    if not answers:
        console.print("None of these combinations can exist:")
        for reason in reasons:
            console.print(f"  {reason}", highlight=False, markup=False)
        return
    best = answers[0]
    hardware = ", ".join(f"{name} {format_gib_fixed(held)}" for name, held in best.hardware.items())
    console.print(
        f"GiB; room for tensors {format_gib_fixed(best.room)}: margin {margin:.0%}, then {hardware}\n",
        highlight=False,
    )
    narrow = _table(answers, sizes=False)
    formatting.print_fitting(console, _table(answers, sizes=True), narrow)
    for failure in failures:
        console.print(f"{' '.join(failure.words)}: {failure.reason}", highlight=False, markup=False)
    console.print(f"\n{_pick(best) if advice is None else _advice_text(advice)}", highlight=False)
    for line in _precision_lines(answers):
        console.print(line, highlight=False, markup=False)
    if best.trial.workload.inference:
        console.print(_inference_note(best.trial), highlight=False)
    console.print(
        "Peaks are simulated (README.md: how well, on an H100). tokens/s are the most that "
        "the roofline allows at the largest micro-batch, for ranking only: it counts no launches and no "
        "traffic, neither between ranks nor with the host (so offload ranks last).",
        highlight=False,
    )


def _table(answers: list[Answer], *, sizes: bool) -> Table:
    """A line for each answer; with the sizes by category where the screen is wide enough for them."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("combination", min_width=_longest_word(answers))
    inference = answers[0].trial.workload.inference
    categories = _INFERENCE_CATEGORIES if inference else _TRAINING_CATEGORIES
    shown = categories if sizes else ()
    for name in (*shown, "peak", "fits", "largest micro-batch", "tokens/s at most"):
        table.add_column(name, justify="right", no_wrap=name in (*shown, "peak", "fits"))
    measured = any(answer.measured for answer in answers)
    if measured:
        table.add_column("measured", justify="right", no_wrap=True)
    for answer in answers:
        held = [format_gib_fixed(answer.columns[f"{name}_bytes"]) for name in shown]
        fits = "yes" if answer.fits else f"{format_gib_fixed(answer.peak - answer.room)} over"
        rate = f"{answer.bound:,.0f}" if answer.bound and answer.largest else ""
        peak, largest = format_gib_fixed(answer.peak), str(answer.largest or "")
        row = [" ".join(answer.words), *held, peak, fits, largest, rate]
        if measured:
            row.append(f"{answer.measured:,.0f}" if answer.measured else "")
        table.add_row(*map(escape, row), style="green" if answer.fits else "dim")
    return table


def _precision_lines(answers: list[Answer]) -> list[str]:
    """What the precisions of the plan mean, in words."""
    axes = (axes_of(answer.trial) for answer in answers)
    kinds = dict.fromkeys(tuple(one[name] for name in ("precision", *PRECISION_COLUMNS)) for one in axes)
    return [f"precision={name}: {precision_words(*what)}." for name, *what in kinds]


def _longest_word(answers: list[Answer]) -> int:
    return max(len(word) for answer in answers for word in answer.words)


def _inference_note(trial: Trial) -> str:
    """What a sequence's cache costs, and what the plan leaves out."""
    sequence = format_bytes(cache_bytes(replace(trial, micro_batch_size=1), trial.cached_tokens))
    tokens, dtype = trial.cached_tokens, trial.precision.compute_dtype
    return (
        f"A sequence keeps {sequence} of keys and values ({dtype}) at {tokens:,} tokens. "
        "A micro-batch is the sequences at once. offload=params and disk are left out: simulation does "
        "not know what accelerate's hooks move and when; bench/run.py measures them."
    )


def _pick(best: Answer) -> str:
    rate = "measured" if best.measured else "expected"
    words = " ".join(best.words)
    return f"Pick ({rate} fastest of those that fit): {words} micro_batch_size={best.largest}"


def _advice_text(advice: Advice) -> str:
    closest = advice.closest
    over = format_gib_fixed(closest.peak - closest.room)
    parts = [f"Nothing fits. {' '.join(closest.words)} comes closest: {over} GiB too much."]
    if advice.micro_batch_size:
        parts.append(f"With micro_batch_size={advice.micro_batch_size} it fits.")
    if advice.ranks:
        parts.append(f"With gpus={advice.ranks} (fsdp=full_shard) it fits.")
    if advice.seq_len:
        parts.append(f"With seq_len={advice.seq_len} it fits.")
    if advice.card:
        parts.append(f"With gpu={advice.card} it fits.")
    if len(parts) == 1:
        parts.append(
            "No smaller micro-batch, more ranks or shorter sequences make it fit: choose another model."
        )
    return " ".join(parts)
