"""Rows that nobody measured, for tests of what reads rows: plausible, the same each time, really written.

Trials are real (`trial_from`), rows come from `row_of`, and so do rates, intervals and MFU. Bytes
and seconds are arithmetic of this file alone: what a test expects it takes from the rows. Needs no torch.
"""

from __future__ import annotations

import random
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from bench.config.compose import trial_from
from bench.machine import gpu_catalogue
from bench.results import store
from bench.sweep.row_assembly import row_of
from bench.trial.outcome import Outcome
from bench.trial.platform import platform_of
from bench.trial.skip_rules import skip_reason
from bench.trial.spec import Trial
from bench.trial.vocabulary import CATEGORIES
from bench.workload import flops

Row = dict[str, Any]


@dataclass(frozen=True)
class Device:
    """What a row says it was measured on; `flops_per_sec` is what its steps reach."""

    name: str
    kind: str
    memory_bytes: int
    flops_per_sec: float


CPU = Device("CPU (made up, 2 cores)", "cpu", 16 * 2**30, 80e9)
OTHER_CPU = Device("CPU (made up too, 8 cores)", "cpu", 64 * 2**30, 240e9)
H100 = Device("NVIDIA H100 80GB HBM3", "cuda", 84_932_978_278, 380e12)

PRECISIONS, ONOFF = ("fp32", "bf16", "int8", "nf4"), ("off", "on")
GRID = tuple(
    f"precision={p} lora={lora} checkpointing={c}" for p in PRECISIONS for lora in ONOFF for c in ONOFF
)
SHARDED = (
    "fsdp=full_shard fsdp.world_size=2",
    "fsdp=no_shard fsdp.world_size=2",
    "fsdp=full_shard fsdp.world_size=2 lora=on",
)
CURVES = (
    *(f"precision=bf16 lora=on lora.rank={rank}" for rank in (4, 64)),  # 16 is in the grid
    *(f"seq_len={length}" for length in (32, 64, 256)),  # and so is 128
)
LARGE = tuple(
    f"model=llama-7b seq_len=1024 micro_batch_size=1 optimizer=adamw_fused {also}"
    for also in (
        "precision=fp32",
        "precision=bf16",
        "precision=bf16_pure",
        "precision=bf16_pure checkpointing=on",
        "precision=bf16_pure lora=on",
        "precision=int8 lora=on",
        "precision=nf4 lora=on",
        "precision=nf4 lora=on checkpointing=on",
    )
)
# What each predictor says over what was "measured", one after the other.
FACTORS = {
    "simulate": (1.0, 0.997, 1.0, 1.004),
    "closed_form": (0.94, 1.08, 1.21, 0.99),
    "rule_of_thumb": (0.44, 0.31, 0.72, 1.35),
}

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_START = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
_STEPS = 20


@cache
def trial(overrides: str) -> Trial:
    """The trial of `python bench/run.py OVERRIDES`, words apart by blanks."""
    return trial_from(overrides.split())


def measured(
    overrides: str,
    device: Device = CPU,
    *,
    sweep: str = "20260302T090000-aaaaaa",
    number: int = 0,
    replicate: int = 0,
    slower: float = 0.0,
    heavier: int = 0,
    noise: float = 0.004,
) -> Row:
    """One measured row: ok, `skipped` where a rule says so, `oom` where the device is too small.

    Args:
        overrides: words of bench/run.py.
        device: where.
        sweep: the sweep's id; its first part is when it began.
        number: the trial's number in the sweep, a minute each.
        replicate: which execution of the trial this is.
        slower: share of the throughput lost.
        heavier: temporary bytes more.
        noise: the standard deviation of steps, and of whole executions, as a share.
    """
    what = trial(overrides)
    hardware = {
        "device_name": device.name,
        "device_memory_bytes": device.memory_bytes,
        "driver_version": "580.1" if device.kind == "cuda" else None,
    }
    reason = skip_reason(what, platform_of(device.kind), 8)
    if reason:
        outcome = Outcome("skipped", reason, None, [{}] * what.world_size, {}, 0.4)
    else:
        held = held_bytes(what)
        held["temporary"] += heavier
        ranks = [_rank(what, device, held, rank) for rank in range(what.world_size)]
        if ranks[0]["peak_allocated_bytes"] > device.memory_bytes:
            outcome = _out_of_memory(ranks[0], device, hardware)
        else:
            draw = random.Random(f"{what.trial_id} {sweep} {replicate}")
            seconds = ranks[0]["hardware_flops_per_step"] / device.flops_per_sec * _slowdown(what)
            seconds *= draw.gauss(1, noise) / (1 - slower)
            for rank in ranks:
                rank["step_seconds"] = [seconds * (1 + abs(draw.gauss(0, noise))) for _ in range(_STEPS)]
            outcome = Outcome("ok", None, None, ranks, hardware, 4.0)
    return row_of(what, outcome, _identity(overrides, sweep, number, replicate))


def predicted(overrides: str, device: Device, predictor: str, factor: float, number: int = 0) -> Row:
    """What a predictor says of a trial: every category and the peak `factor` times what is measured."""
    method = "simulate" if predictor == "simulate" else "estimate"
    also = {} if method == "simulate" else {"formula": predictor}
    what = replace(trial(overrides), method=method, device=device.kind, **also)
    words = f"{overrides} method={method} device={device.kind}" + "".join(
        f" {k}={v}" for k, v in also.items()
    )
    identity = _identity(words, "20260303T090000-bbbbbb", number, 0)
    reason = skip_reason(what, platform_of(device.kind), 0)
    if reason:
        return row_of(what, Outcome("skipped", reason, None, [{}], {}, 0.1), identity)
    held = {category: int(size * factor) for category, size in held_bytes(what).items()}
    columns = _sizes(what, held) | {"peak_allocated_bytes": sum(held.values()), "working_seconds": 0.5}
    named = {"device_name": f"{method}d {device.kind}"}
    return row_of(what, Outcome("ok", None, None, [columns], named, 0.6), identity)


def held_bytes(what: Trial) -> dict[str, int]:
    """Bytes of one rank by category at the peak: states by the book, the rest of a plausible size."""
    model, tokens = what.model, what.micro_batch_size * what.seq_len
    whole, adapters = _parameters(what)
    stored = {"int8": 1.0, "nf4": 0.5}.get(what.precision.quantization, _BYTES[what.precision.param_dtype])
    if not what.lora.enabled and what.precision.quantization == "int8":
        stored = 4.0  # int8 arithmetic over 32-bit weights
    trains, each = (adapters, 4) if what.lora.enabled else (whole, stored)
    shared = what.world_size if what.fsdp.shards else 1
    width = _BYTES[what.precision.compute_dtype]
    block = tokens * (10 * model.hidden_size + 3 * model.intermediate_size) * width
    border = tokens * model.hidden_size * width
    blocks = block + model.layers * border if what.checkpointing.name == "on" else model.layers * block
    gathered = int(whole * stored) // model.layers if what.fsdp.shards else 0
    return {
        "parameter": int(whole * stored + (adapters * 4 if what.lora.enabled else 0)) // shared,
        "gradient": int(trains * each) // shared // 2,  # half of them wait at the peak
        "optimizer": int(2 * trains * each) // shared,
        "activation": blocks + tokens * model.vocab_size * 4,
        "kv_cache": 0,
        "temporary": tokens * model.vocab_size * 4 + gathered,
        "input": tokens * 8,
    }


def _parameters(what: Trial) -> tuple[int, int]:
    model = what.model
    hidden, inner = model.hidden_size, model.intermediate_size
    layer = 4 * hidden * hidden + 3 * hidden * inner + 2 * hidden
    whole = 2 * model.vocab_size * hidden + model.layers * layer + hidden
    rank = what.lora.rank if what.lora.enabled else 0
    return whole, model.layers * rank * (8 * hidden + 3 * (hidden + inner))


def _sizes(what: Trial, held: dict[str, int]) -> Row:
    whole, adapters = _parameters(what)
    matmul = whole - what.model.vocab_size * what.model.hidden_size
    inside = matmul - what.model.vocab_size * what.model.hidden_size
    model_flops, hardware_flops = flops.step_flops(
        what,
        matmul_params=matmul + adapters,
        trainable_matmul_params=adapters or matmul,
        block_matmul_params=inside + adapters,
    )
    return {
        "param_count": whole + adapters,
        "trainable_param_count": adapters or whole,
        "active_param_count": whole + adapters,
        "tokens_per_step": what.tokens_per_step,
        "model_flops_per_step": model_flops,
        "hardware_flops_per_step": hardware_flops,
        "attention": "sdpa",
        "tracked_peak_bytes": sum(held.values()),
        **{f"{category}_bytes": held[category] for category in CATEGORIES},
        **{f"{category}_max_bytes": held[category] for category in CATEGORIES},
        "peak_phase": "backward",
        "host_max_bytes": 0,
        "evidence": {"blocks": what.model.layers, "recomputed": what.checkpointing.name == "on"},
    }


def _rank(what: Trial, device: Device, held: dict[str, int], rank: int) -> Row:
    tracked = sum(held.values())
    workspaces = gpu_catalogue.workspaces_bytes(device.name, what)
    peak = tracked + workspaces + 112 - 8 * rank  # the first rank's is the largest
    columns = _sizes(what, held) | {
        "peak_allocated_bytes": peak,
        "untracked_bytes": peak - tracked,
        "cold_peak_allocated_bytes": peak + 4096,
        "peak_host_rss_bytes": peak + 40 * 2**20,
        "threads": 2,
        "losses": [7.0 - 0.01 * step for step in range(_STEPS + 3)],
        "working_seconds": 3.8,
        "stop_reason": "relative_ci",
    }
    if device.kind == "cuda":
        reserved = -(-peak // 2**21) * 2**21 + 2**26
        columns |= {"peak_reserved_bytes": reserved}
        columns |= {"context_bytes": 520 * 2**20, "peak_device_used_bytes": reserved + 520 * 2**20}
        columns |= {"device_throttled": False, "device_shared": False}
    return columns


def _out_of_memory(rank: Row, device: Device, hardware: Row) -> Outcome:
    asked = rank["peak_allocated_bytes"] - device.memory_bytes + 2**30
    reason = f"OutOfMemoryError: CUDA out of memory. Tried to allocate {asked / 2**30:.2f} GiB."
    reached = {
        "peak_allocated_bytes": device.memory_bytes - 2**30,
        "peak_reserved_bytes": device.memory_bytes - 2**29,
        "oom_requested_bytes": asked,
        **{name: rank[name] for name in ("param_count", "trainable_param_count", "attention")},
    }
    return Outcome("oom", reason, "Traceback (made up)", [reached], hardware, 2.0)


def _slowdown(what: Trial) -> float:
    """What a technique costs beyond its arithmetic."""
    precise = {"fp32": 1.0, "bf16": 0.85, "bf16_pure": 0.8, "bf16_autocast": 0.8, "int8": 1.3, "nf4": 1.5}[
        what.precision.name
    ]
    return precise * (2.2 if what.fsdp.shards else 1.5 if what.fsdp.name == "no_shard" else 1.0)


def _identity(overrides: str, sweep: str, number: int, replicate: int) -> Row:
    began = datetime.strptime(sweep.partition("-")[0], "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
    versions = {"torch": "2.13.0", "transformers": "5.24.0", "peft": "0.21.2", "numpy": "2.4.6"}
    versions |= {"bitsandbytes": "0.50.2", "accelerate": "1.15.0"}
    return {
        "sweep_id": sweep,
        "replicate": replicate,
        "started_at": began + timedelta(minutes=number, seconds=replicate),
        "overrides": shlex.join(["python", "bench/run.py", *overrides.split()]),
        **{f"{package}_version": version for package, version in versions.items()},
        "python_version": "3.11.7",
        "hostname": "0123456789ab",
        "git_commit": "0" * 40,
        "git_dirty": False,
    }


def all_rows() -> list[Row]:
    """A CPU's grid with replicates, FSDP and curves; a GPU with trials that do not fit; predictions."""
    small = (*GRID, *SHARDED, *CURVES)
    rows = [measured(words, number=number) for number, words in enumerate(small)]
    rows += [measured(words, number=n, replicate=r) for n, words in enumerate(GRID[:2]) for r in (1, 2)]
    on_gpu = "20260304T120000-cccccc"
    rows += [measured(words, H100, sweep=on_gpu, number=number) for number, words in enumerate(LARGE)]
    for predictor, factors in FACTORS.items():
        rows += [
            predicted(words, CPU, predictor, factors[number % len(factors)], number)
            for number, words in enumerate((*GRID[:10], *SHARDED[:1]))
        ]
    return rows + [predicted(words, H100, "simulate", 1.001, number) for number, words in enumerate(LARGE)]


def again(**changes: Any) -> list[Row]:
    """Four trials of the grid measured five times each, weeks later: `changes` are those of `measured`."""
    words = {"sweep": "20260420T080000-dddddd"} | changes
    return [
        measured(overrides, number=number, replicate=replicate, **words)
        for number, overrides in enumerate(GRID[:4])
        for replicate in range(5)
    ]


def write(rows: Iterable[Row], results_dir: Path) -> Path:
    """Writes rows as a sweep would, one file each; the folder."""
    for number, row in enumerate(rows):
        store.write(row, results_dir, f"{row['sweep_id']}-{number:04d}-{row['trial_id']}")
    return results_dir


def write_all(results_dir: Path) -> list[Row]:
    """Writes `all_rows` and returns them."""
    rows = all_rows()
    write(rows, results_dir)
    return rows
