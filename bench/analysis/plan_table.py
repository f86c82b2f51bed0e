"""A plan as a person reads it: one table a card and model, and a sentence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.analysis.planning import Advice, Answer
from bench.formatting import format_bytes
from bench.machine.gpu_catalogue import Gpu
from bench.methods.estimate.inference import cache_bytes
from bench.results import store
from bench.trial.spec import axes_of

_GIB = 2**30
_OF_INFERENCE = ("parameter", "kv_cache", "temporary")
_SHOWN = ("parameter", "gradient", "optimizer", "activation", "temporary")
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
    "workload",
    "kv_cache",
    "seq_len",
    "grad_accum_steps",
)


def with_measured(found: list[Answer], card: Gpu, results_dir: Path) -> list[Answer]:
    """The answers, ranked anew with the rates that rows of that card have measured."""
    rows = [
        row
        for row in store.records(results_dir)
        if row["status"] == "ok" and row["method"] == "measure" and row["device_name"] in card.device_names
    ]
    answers = []
    for answer in found:
        axes = axes_of(answer.trial)
        rates = [
            row["tokens_per_sec_per_device"]
            for row in rows
            if all(row[name] == axes[name] for name in _MATCHED) and row["tokens_per_sec_per_device"]
        ]
        answers.append(replace(answer, measured=max(rates)) if rates else answer)
    return sorted(answers, key=lambda answer: answer.rank)


def show_plan(
    found: list[Answer],
    card: Gpu,
    words: tuple[str, ...],
    margin: float,
    said: Advice | None,
    reasons: list[str],
) -> None:
    """Prints one plan: for `words` on the card; `reasons` say why combinations are missing."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(
        f"\n{escape(' '.join(words))} on {card.name}, {_gib(card.memory_bytes)} GiB", highlight=False
    )
    if not found:
        console.print("None of these combinations can exist:")
        for reason in reasons:
            console.print(f"  {reason}", highlight=False, markup=False)
        return
    hardware = ", ".join(f"{name} {_gib(held)}" for name, held in found[0].hardware.items())
    console.print(
        f"GiB; room for tensors {_gib(found[0].room)}: margin {margin:.0%}, then {hardware}\n",
        highlight=False,
    )
    console.print(_table(found), highlight=False)
    console.print(f"\n{_sentence(found, said)}", highlight=False)
    if found[0].trial.workload.inference:
        console.print(_of_inference(found), highlight=False)
    console.print(
        "Peaks are simulated (README.md: how well, on an H100). tokens/s are the most that\n"
        "the roofline allows at the largest micro-batch, for ranking only: it counts no launches and no\n"
        "traffic, neither between ranks nor with the host (so offload ranks last).",
        highlight=False,
    )


def _table(found: list[Answer]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("combination", overflow="fold")
    shown = _OF_INFERENCE if found[0].trial.workload.inference else _SHOWN
    for name in (*shown, "peak", "fits", "largest micro-batch", "tokens/s at most"):
        table.add_column(name, justify="right")
    measured = any(answer.measured for answer in found)
    if measured:
        table.add_column("measured", justify="right")
    for answer in found:
        cells = [_gib(answer.columns[f"{name}_bytes"]) for name in shown]
        over = answer.peak - answer.room
        fits = "yes" if answer.fits else f"{_gib(over)} over"
        rate = f"{answer.bound:,.0f}" if answer.bound and answer.largest else ""
        row = [" ".join(answer.words), *cells, _gib(answer.peak), fits, str(answer.largest or ""), rate]
        if measured:
            row.append(f"{answer.measured:,.0f}" if answer.measured else "")
        table.add_row(*row, style="green" if answer.fits else "dim")
    return table


def _of_inference(found: list[Answer]) -> str:
    """What a sequence costs, and what was not asked."""
    trial = found[0].trial
    each = cache_bytes(replace(trial, micro_batch_size=1), trial.cached_tokens)
    tokens, dtype = trial.cached_tokens, trial.precision.compute_dtype
    return (
        f"A sequence keeps {format_bytes(each)} of keys and values ({dtype}) at {tokens:,} tokens.\n"
        "A micro-batch is the sequences at once. offload=params and disk are left out: simulation does\n"
        "not know what accelerate's hooks move and when; bench/run.py measures them."
    )


def _sentence(found: list[Answer], said: Advice | None) -> str:
    best = found[0]
    if said is None:
        rate = "measured" if best.measured else "expected"
        words = " ".join(best.words)
        return f"Pick ({rate} fastest of those that fit): {words} micro_batch_size={best.largest}"
    closest = said.closest
    over = _gib(closest.peak - closest.room)
    parts = [f"Nothing fits. {' '.join(closest.words)} comes closest: {over} GiB too much."]
    if said.micro_batch_size:
        parts.append(f"With micro_batch_size={said.micro_batch_size} it fits.")
    if said.ranks:
        parts.append(f"With gpus={said.ranks} (fsdp=full_shard) it fits.")
    if said.seq_len:
        parts.append(f"With seq_len={said.seq_len} it fits.")
    if said.card:
        parts.append(f"With gpu={said.card} it fits.")
    if len(parts) == 1:
        parts.append(
            "No smaller micro-batch, more ranks or shorter sequences make it fit: choose another model."
        )
    return " ".join(parts)


def _gib(of: int) -> str:
    return f"{of / _GIB:.2f}"
