"""How far predictions are from measurements: what is graded, and the grades by technique.

The measured side is the allocator's own count, never the tracker's, so the grade is independent of what
predicts. An error is (predicted - measured) / measured. Under-estimates are counted apart: an over-estimate
wastes memory, an under-estimate kills a run.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from bench.categories import CATEGORIES
from bench.config import trial_from
from bench.gpus import workspaces_bytes
from bench.markdown import table as markdown_table
from bench.rules import skip_reason
from bench.trial import Trial

PREDICTORS = ("simulate", "closed_form", "rule_of_thumb")
UNDER = -0.01  # an under-estimate beyond this counts
AXES = ("model", "workload", "precision", "lora", "checkpointing", "fsdp", "offload", "optimizer")
BRIEF = ("timing.warmup_steps=2", "timing.min_steps=2", "timing.max_steps=2", "device=cpu", "threads=1")

Overrides = tuple[str, ...]

_OPTIMIZERS = ("adamw", "adamw_fused", "adamw_foreach", "adamw_8bit", "sgd", "adafactor")
_SMALL = ("model.hidden_size=128", "model.heads=4", "model.head_dim=32", "model.vocab_size=2000")
ARCHITECTURES: dict[str, Overrides] = {
    "llama": ("model=llama-tiny",),
    "llama, grouped-query": (
        "model=llama3-8b",
        "model.layers=2",
        *_SMALL,
        "model.kv_heads=1",
        "model.intermediate_size=320",
    ),
    "opt": ("model=opt-125m", "model.layers=2", *_SMALL, "model.kv_heads=4", "model.intermediate_size=512"),
    "gpt2": ("model=gpt2", "model.layers=2", *_SMALL, "model.kv_heads=4", "model.intermediate_size=512"),
    "mt5": (
        "model=mt0-small",
        "model.layers=2",
        *_SMALL,
        "model.kv_heads=4",
        "model.intermediate_size=256",
    ),
}
_EVERYWHERE = (
    "",
    "precision=bf16",
    "precision=fp16_pure lora=on",
    "precision=int8 lora=on",
    "precision=nf4 lora=on checkpointing=on",
    "checkpointing=selective",
    "optimizer=adamw_8bit seq_len=16",
    "fsdp=full_shard fsdp.world_size=2 precision=bf16 seq_len=32",
)
_LLAMA_ALONE = (
    "precision=fp16",
    "precision=bf16_pure",
    "precision=fp16_pure",
    "precision=int8",
    "lora=on",
    "lora=on lora.rank=64 lora.targets=q_proj+v_proj",
    "precision=bf16 lora=on",
    "precision=bf16_pure lora=on checkpointing=on",
    "precision=nf4 lora=on optimizer=adamw_8bit",
    "precision=nf4 lora=on precision.double_quant=false",
    "checkpointing=on",
    "checkpointing=on precision=bf16 seq_len=512 micro_batch_size=1",
    "precision=int8 lora=on checkpointing=on",
    "checkpointing=selective precision=bf16",
    "optimizer=adamw_fused",
    "optimizer=adamw_foreach seq_len=8",
    "optimizer=sgd optimizer.momentum=0.9",
    "optimizer=adafactor seq_len=8",
    "grad_accum_steps=3",
    "offload=activations",
    "offload=activations checkpointing=on precision=bf16",
    "fsdp=full_shard fsdp.world_size=2",
    "fsdp=full_shard fsdp.world_size=2 lora=on",
    "fsdp=full_shard fsdp.world_size=2 precision=nf4 lora=on checkpointing=on",
    "fsdp=full_shard fsdp.world_size=2 offload=params",
    "fsdp=shard_grad_op fsdp.world_size=2 grad_accum_steps=2 checkpointing=on",
    "fsdp=shard_grad_op fsdp.world_size=2 offload=params precision=bf16",
    "fsdp=no_shard fsdp.world_size=2 precision=fp16",
    "fsdp=no_shard fsdp.world_size=2 grad_accum_steps=2 lora=on",
)

_INFERENCE = (
    "workload=prefill",
    "workload=decode precision=bf16_pure",
    "workload=decode precision=int8 seq_len=40",
)
_INFERENCE_OF_LLAMA = (
    "workload=decode",
    "workload=decode kv_cache=static",
    "workload=prefill precision=fp16_pure",
    "workload=decode precision=bf16_pure kv_cache=static",
    "workload=prefill precision=int8",
    "workload=decode precision=int8",
    "workload=prefill precision=nf4",
    "workload=decode precision=nf4",
    "workload=decode precision=nf4 seq_len=16 workload.decode_tokens=20",
    "workload=decode seq_len=8 workload.decode_tokens=40",
    "workload=decode seq_len=8 workload.decode_tokens=40 kv_cache=static precision=fp16_pure",
    "workload=prefill micro_batch_size=1 seq_len=500",
    "workload=decode micro_batch_size=8 seq_len=64 precision=bf16_pure",
    "workload=decode model.layers=4 precision=int8 micro_batch_size=1 seq_len=200",
    "workload=decode model.layers=3 precision=fp16_pure micro_batch_size=2 seq_len=33 kv_cache=static",
)


def grid() -> list[Overrides]:
    """The configurations that were picked: every level of every axis, on every architecture."""
    picked = [(*base, *also.split()) for base in ARCHITECTURES.values() for also in _EVERYWHERE]
    decoders = [base for name, base in ARCHITECTURES.items() if name != "mt5"]
    picked += [(*base, *also.split()) for base in decoders for also in _INFERENCE]
    alone = (*_LLAMA_ALONE, *_INFERENCE_OF_LLAMA)
    return picked + [(*ARCHITECTURES["llama"], *also.split()) for also in alone]


def sample(count: int, seed: int) -> list[Overrides]:
    """`count` configurations that nobody picked, the same for the same `seed`."""
    draw = random.Random(seed)
    return [_drawn(draw) for _ in range(count)]


def _drawn(draw: random.Random) -> Overrides:
    while True:
        base = ARCHITECTURES[draw.choice(list(ARCHITECTURES))]
        heads = draw.choice((1, 2, 4))
        grouped = draw.choice([n for n in (1, 2, 4) if heads % n == 0]) if "llama" in base[0] else heads
        overrides = (
            base[0],
            f"model.layers={draw.randint(1, 4)}",
            f"model.hidden_size={64 * heads}",
            f"model.heads={heads}",
            "model.head_dim=64",
            f"model.kv_heads={grouped}",
            f"model.intermediate_size={64 * draw.randint(1, 8)}",
            f"model.vocab_size={draw.randint(100, 5000)}",
            f"micro_batch_size={draw.randint(1, 5)}",
            f"seq_len={draw.randint(2, 200)}",
            f"grad_accum_steps={draw.choice((1, 1, 2))}",
            f"precision={draw.choice(('fp32', 'fp16', 'bf16', 'bf16_pure', 'int8', 'nf4'))}",
            f"lora={draw.choice(('off', 'on'))}",
            f"lora.rank={draw.choice((2, 8, 64))}",
            f"checkpointing={draw.choice(('off', 'on', 'selective'))}",
            f"fsdp={draw.choice(('off', 'off', 'off', 'full_shard', 'shard_grad_op', 'no_shard'))}",
            f"fsdp.world_size={draw.choice((1, 2))}",
            f"offload={draw.choice(('off', 'off', 'activations', 'params'))}",
            f"optimizer={draw.choice(_OPTIMIZERS)}",
        )
        if skip_reason(trial_from([*BRIEF, *overrides]), "cpu", 0) is None:
            return overrides


@dataclass(frozen=True)
class Graded:
    """One measured configuration, with each prediction's error; errors are fractions of the measurement.

    `bound_share` is the roofline's least time over the measured median step; above 1 it is no bound. None
    on a device that the catalogue does not have.
    """

    label: str
    levels: tuple[str, ...]
    measured_bytes: int
    errors: dict[str, float]
    category_errors: dict[str, float]
    bound_share: float | None = None


def graded(
    label: str,
    trial: Trial,
    measured: dict[str, Any],
    predicted: dict[str, dict[str, Any]],
    device_name: str = "",
) -> Graded:
    """Compares predictions with a measurement of the same trial.

    Args:
        label: how the trial is called in a table.
        trial: what was measured.
        measured: its columns; `peak_allocated_bytes` is the allocator's.
        predicted: columns by predictor, for any card: this one's workspaces come on top.
        device_name: what it was measured on.
    """
    peak = int(measured["peak_allocated_bytes"])
    also = workspaces_bytes(device_name, trial)
    simulated = predicted.get("simulate", {})
    return Graded(
        label=label,
        levels=tuple(_levels(trial)),
        measured_bytes=peak,
        errors={
            name: (found["peak_allocated_bytes"] + also) / peak - 1 for name, found in predicted.items()
        },
        category_errors={
            category: (simulated[f"{category}_bytes"] - measured[f"{category}_bytes"]) / peak
            for category in CATEGORIES
            if simulated and measured.get(f"{category}_bytes") is not None
        },
    )


def _levels(trial: Trial) -> Iterator[str]:
    yield f"family={trial.model.family}"
    for axis in AXES[1:]:
        yield f"{axis}={getattr(trial, axis).name}"


@dataclass(frozen=True)
class Grade:
    """A predictor's errors over several configurations: fractions, signed but for the median."""

    count: int
    median: float
    worst: float
    under: int

    @classmethod
    def of(cls, errors: list[float]) -> Grade:
        """From at least one error."""
        return cls(
            count=len(errors),
            median=statistics.median(map(abs, errors)),
            worst=max(errors, key=abs),
            under=sum(error < UNDER for error in errors),
        )


Grades = dict[str, dict[str, Grade]]


def grades(all_graded: list[Graded]) -> Grades:
    """Grades by technique, then by predictor; `all` first, then each level in the order of the axes."""
    groups: dict[str, list[Graded]] = {"all": all_graded}
    for one in sorted(all_graded, key=lambda g: g.levels):
        for level in one.levels:
            groups.setdefault(level, []).append(one)
    order = ["all", *sorted(groups.keys() - {"all"}, key=lambda level: _axis_order(level))]
    return {
        level: {
            name: Grade.of([one.errors[name] for one in groups[level] if name in one.errors])
            for name in PREDICTORS
            if any(name in one.errors for one in groups[level])
        }
        for level in order
    }


def _axis_order(level: str) -> tuple[int, str]:
    axis = level.partition("=")[0]
    return (AXES.index(axis) if axis in AXES else 0, level)


def markdown(table: Grades) -> str:
    """The grades as a Markdown table, and what its columns are."""
    header, rows = lines(table)
    said = "Per predictor: median error, worst error, and how many under-estimates are beyond 1 %.\n\n"
    return said + markdown_table(header, rows, header[1:])


def table(grades_by_level: Grades) -> Table:
    """The same for a terminal."""
    header, rows = lines(grades_by_level)
    shown = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for name in header:
        shown.add_column(name, justify="left" if name == header[0] else "right", no_wrap=True)
    for row in rows:
        shown.add_row(*row)
    return shown


def lines(table: Grades) -> tuple[list[str], list[list[str]]]:
    """The grades as a header and rows of text."""
    header = ["technique", "trials"]
    for name in PREDICTORS:
        header += [name.replace("_", " "), "worst", "under"]
    rows = []
    for level, by_predictor in table.items():
        row = [level, str(max(grade.count for grade in by_predictor.values()))]
        for name in PREDICTORS:
            grade = by_predictor.get(name)
            row += (
                ["", "", ""]
                if grade is None
                else [f"{grade.median:.2%}", f"{grade.worst:+.2%}", str(grade.under)]
            )
        rows.append(row)
    return header, rows
