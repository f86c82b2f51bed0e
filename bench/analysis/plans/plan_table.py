"""Prints a plan: a table for one card and model, and a sentence with the pick or with advice.

In: answers of planning.py, and a results folder for measured rates. Out: text on the console.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from bench import formatting
from bench.analysis.plans.planning import Advice, Answer, Failure
from bench.formatting import format_bytes, format_gib_fixed, format_rate
from bench.machine.gpu_catalogue import Gpu
from bench.methods.estimate.inference import cache_bytes
from bench.results import store
from bench.timing import devices
from bench.timing.calibration import Calibration
from bench.trial.spec import Trial, axes_of
from bench.trial.vocabulary import PRECISION_COLUMNS, precision_words

_TOLD_APART = 0.10  # a tenth: twice the median error of a prediction on one card
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
    "loop",
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
    plain = {"loss": "full", "loop": "bare"}
    older = {
        name: level for name, level in plain.items() if row[name] is None
    }  # of before there was the axis
    return all(older.get(name, row[name]) == axes[name] for name in _MATCHED)


@dataclass(frozen=True)
class Job:
    """What the user wants to train: how many tokens, and what a card costs an hour; 0 where nobody says."""

    tokens: float = 0.0
    price_per_hour: float = 0.0
    longest_sequence: int = 0


@dataclass(frozen=True)
class Plan:
    """What one plan says.

    Attributes:
        answers: the combinations, the best first.
        failures: the combinations that could not be simulated.
        card: the card.
        fixed: the key=value arguments that all combinations share.
        margin: the share of the card's memory to leave free.
        advice: what would make a combination fit; None if one fits.
        reasons: why combinations cannot exist.
        job: how much is to be trained, and the longest sequence that the best combination takes.
    """

    answers: list[Answer]
    failures: list[Failure]
    card: Gpu
    fixed: tuple[str, ...]
    margin: float
    advice: Advice | None
    reasons: list[str]
    job: Job

    @property
    def title(self) -> str:
        """What is planned, and for what."""
        return f"{' '.join(self.fixed)} on {self.card.name}, {format_gib_fixed(self.card.memory_bytes)} GiB"

    @property
    def lines(self) -> list[str]:
        """The answer in sentences: the pick, or what would fit, or why nothing can exist."""
        if not self.answers:
            return ["None of these combinations can exist:", *(f"  {reason}" for reason in self.reasons)]
        if self.advice is not None:
            return [_advice_text(self.advice, self.failures)]
        return _pick_lines(self.answers, self.job)

    @property
    def room_line(self) -> str:
        """What the numbers of the table are, and what tensors may take."""
        best = self.answers[0]
        hardware = ", ".join(f"{name} {format_gib_fixed(held)}" for name, held in best.hardware.items())
        room = format_gib_fixed(best.room)
        return f"GiB; room for tensors {room}: margin {self.margin:.0%}, then {hardware}"

    @property
    def notes(self) -> list[str]:
        """What stands below the table: failures, what words mean, and what the numbers rest on."""
        notes = [f"{' '.join(failure.words)}: {failure.reason}" for failure in self.failures]
        notes += _precision_lines(self.answers)
        if self.answers[0].trial.workload.inference:
            notes.append(_inference_note(self.answers[0].trial))
        notes.append(
            "Peaks are simulated, and tokens/s are predicted at the fastest micro-batch that was simulated "
            f"(from {_source(self.card)}; README.md: how well, on an H100)."
        )
        return notes


def show_plan(plan: Plan) -> None:
    """Prints one plan: the answer, then the table, then what its words mean."""
    console = formatting.console(_PLAIN_WIDTH)
    console.print(f"\n{escape(plan.title)}", highlight=False)
    for line in plan.lines:
        console.print(line, highlight=False, markup=False)
    if not plan.answers:
        return
    console.print(f"\n{plan.room_line}\n", highlight=False)
    narrow = _table(plan.answers, sizes=False)
    formatting.print_fitting(console, _table(plan.answers, sizes=True), narrow)
    console.print()
    for line in plan.notes:
        console.print(line, highlight=False, markup=False)


def _table(answers: list[Answer], *, sizes: bool) -> Table:
    """A line for each answer; with the sizes by category where the screen is wide enough for them."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    header, rows = cells(answers, sizes=sizes)
    wraps = ("largest micro-batch", "tokens/s", "at least")
    table.add_column(header[0], min_width=_longest_word(answers))
    for name in header[1:]:
        table.add_column(name, justify="right", no_wrap=name not in wraps)
    for answer, row in zip(answers, rows, strict=True):
        table.add_row(*map(escape, row), style="green" if answer.fits else "dim")
    return table


def cells(answers: list[Answer], *, sizes: bool) -> tuple[list[str], list[list[str]]]:
    """The table's header, and a row for each answer, as text."""
    inference = answers[0].trial.workload.inference
    categories = _INFERENCE_CATEGORIES if inference else _TRAINING_CATEGORIES
    shown = categories if sizes else ()
    measured = any(answer.measured for answer in answers)
    rows = []
    for answer in answers:
        held = [format_gib_fixed(answer.columns[f"{name}_bytes"]) for name in shown]
        fits = "yes" if answer.fits else f"{format_gib_fixed(answer.peak - answer.room)} over"
        rate = format_rate(answer.rate) if answer.rate else ""
        peak, largest = format_gib_fixed(answer.peak), str(answer.largest or "")
        least = format_rate(answer.certain_rate) if answer.certain_rate else ""
        row = [" ".join(answer.words), *held, peak, fits, largest, rate, least]
        if measured:
            row.append(f"{answer.measured:,.0f}" if answer.measured else "")
        rows.append(row)
    names = ["combination", *shown, "peak", "fits", "largest micro-batch", "tokens/s", "at least"]
    return names + ["measured"] * measured, rows


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


def _pick_lines(answers: list[Answer], job: Job) -> list[str]:
    """The answer: the fastest combination that fits, what it costs, and what cannot be told from it."""
    best = answers[0]
    measured = "measured" if best.measured else "predicted"
    words = " ".join(best.words)
    lines = [f"Pick ({measured} fastest of those that fit): {words} micro_batch_size={best.fastest}"]
    rate = best.measured or best.rate
    if rate is None or best.interval is None:
        return lines
    low, high = (rate, rate) if best.measured else best.interval
    per = " per card" if best.trial.world_size > 1 else ""
    between = "" if best.measured else f" (between {format_rate(low)} and {format_rate(high)})"
    takes = f"It takes {format_gib_fixed(best.fastest_peak)} GiB"
    lines.append(f"{takes} and makes {format_rate(rate)} tokens/s{per}{between}.")
    if job.tokens:
        lines.append(_costs(job, best, low, rate, high))
    if job.longest_sequence:
        lines.append(f"One sequence at a time may have {job.longest_sequence:,} tokens.")
    rivals = [
        " ".join(answer.words)
        for answer in answers[1:]
        if answer.fits and not answer.measured and (answer.rate or 0.0) > rate / (1 + _TOLD_APART)
    ]
    if rivals and not best.measured:
        lines.append(f"Predicted to be as fast or faster, but not surely: {'; '.join(rivals)}.")
    return lines


def _costs(job: Job, best: Answer, low: float, rate: float, high: float) -> str:
    """Hours, and money if a card's hour has a price."""
    cards = best.trial.world_size
    hours, most, least = (job.tokens / (one * cards) / 3600 for one in (rate, low, high))
    text = f"{job.tokens:,.0f} tokens take {_number(hours)} hours"
    between = "" if best.measured else f" ({_number(least)} to {_number(most)})"
    if not job.price_per_hour:
        return f"{text}{between}."
    price = job.price_per_hour * cards
    text += f"{between} and cost {_number(hours * price)}"
    return text + ("." if best.measured else f" ({_number(least * price)} to {_number(most * price)}).")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _source(card: Gpu) -> str:
    """What predicted times on this card rest on."""
    device = devices.named(card.name)
    return "a calibration" if isinstance(device, Calibration) else f"the data sheet of {card.name}"


def _advice_text(advice: Advice, failures: list[Failure]) -> str:
    closest = advice.closest
    over = format_gib_fixed(closest.peak - closest.room)
    nothing = (
        f"Nothing of what could be simulated fits ({len(failures)} could not)"
        if failures
        else "Nothing fits"
    )
    parts = [f"{nothing}. {' '.join(closest.words)} comes closest: {over} GiB too much."]
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
