"""The row: its schema, how an outcome becomes one, how it is written whole or not at all, and read back.

One parquet file holds one row, under `results_dir/trials/`. It is written under a hidden name and renamed,
so that `pandas.read_parquet(results_dir + "/trials")` never meets half a file. Columns may be added;
readers fill what an older row lacks with null. Bytes and seconds are stored as such.
"""

from __future__ import annotations

import glob
import json
import os
import statistics
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from bench import timing
from bench.categories import CATEGORIES, PHASES
from bench.flops import peak_flops_per_sec
from bench.isolate import Outcome
from bench.machine import PACKAGES
from bench.place import Place
from bench.trial import Trial

SCHEMA_VERSION = 1

_TOGETHER = 200  # files read by one thread at a time

_TEXT, _INT, _REAL, _BOOL = pa.string(), pa.int64(), pa.float64(), pa.bool_()

# What the ranks of one trial may disagree on: the row holds the largest, `per_rank` keeps them all.
RANK_BYTES = (
    "peak_allocated_bytes",
    "peak_reserved_bytes",
    "peak_device_used_bytes",
    "context_bytes",
    "peak_host_rss_bytes",
    "build_peak_allocated_bytes",
    "build_peak_reserved_bytes",
    "cold_peak_allocated_bytes",
    "cold_peak_reserved_bytes",
    "tracked_peak_bytes",
    "gathered_max_bytes",
    "host_max_bytes",
    *(f"{category}_bytes" for category in CATEGORIES),
    *(f"{category}_max_bytes" for category in CATEGORIES),
    *(f"{phase}_tracked_peak_bytes" for phase in PHASES),
    "untracked_bytes",
    "oom_requested_bytes",
)

_PER_RANK = pa.list_(
    pa.struct([("rank", _INT), ("step_seconds_median", _REAL), *((n, _INT) for n in RANK_BYTES)])
)

SCHEMA = pa.schema(
    [
        # identity
        *((name, _TEXT) for name in ("trial_id", "sweep_id")),
        ("replicate", _INT),
        ("started_at", pa.timestamp("us", tz="UTC")),
        *((name, _TEXT) for name in ("method", "formula", "status", "reason", "traceback")),
        # axes
        *((name, _TEXT) for name in ("model", "precision", "lora")),
        ("lora_rank", _INT),
        *((name, _TEXT) for name in ("checkpointing", "fsdp")),
        ("world_size", _INT),
        *((name, _TEXT) for name in ("offload", "optimizer", "workload", "kv_cache")),
        ("decode_tokens", _INT),
        *((n, _INT) for n in ("micro_batch_size", "seq_len", "grad_accum_steps", "seed", "threads")),
        *((n, _TEXT) for n in ("param_dtype", "compute_dtype", "quantization", "attention")),
        ("memory_limit_bytes", _INT),
        ("predicted_peak_bytes", _INT),
        *((name, _TEXT) for name in ("overrides", "definition")),
        # size
        *((name, _INT) for name in ("param_count", "trainable_param_count")),
        # memory
        *((name, _INT) for name in RANK_BYTES),
        ("peak_phase", _TEXT),
        ("per_rank", _PER_RANK),
        # time
        ("step_seconds", pa.list_(_REAL)),
        *((name, _REAL) for name in ("step_seconds_median", "step_seconds_iqr")),
        ("step_seconds_p95", _REAL),
        ("first_token_seconds", _REAL),
        ("step_outliers", _INT),
        ("tokens_per_step", _INT),
        *((f"tokens_per_sec_per_device{end}", _REAL) for end in ("", "_ci_low", "_ci_high")),
        *((n, _REAL) for n in ("tokens_per_sec_global", "mfu", "hfu", "model_flops_per_step")),
        *((n, _REAL) for n in ("hardware_flops_per_step", "block_seconds", "cold_step_seconds")),
        *((n, _REAL) for n in ("build_seconds", "simulation_seconds", "wall_seconds", "overhead_seconds")),
        ("stop_reason", _TEXT),
        # proof
        ("evidence", _TEXT),
        ("losses", pa.list_(_REAL)),
        *((name, _BOOL) for name in ("device_throttled", "device_shared")),
        *((f"clock_mhz_{when}", _INT) for when in ("before", "after")),
        *((f"temperature_celsius_{when}", _INT) for when in ("before", "after")),
        *((f"power_watts_{when}", _REAL) for when in ("before", "after")),
        # provenance
        ("device_name", _TEXT),
        ("device_memory_bytes", _INT),
        ("driver_version", _TEXT),
        *((f"{package}_version", _TEXT) for package in PACKAGES),
        *((name, _TEXT) for name in ("python_version", "hostname", "environment", "git_commit")),
        ("git_dirty", _BOOL),
    ],
    metadata={"schema_version": str(SCHEMA_VERSION)},
)


def row_of(trial: Trial, outcome: Outcome, identity: dict[str, Any]) -> dict[str, Any]:
    """One line of the table.

    Args:
        trial: what was executed.
        outcome: how it went.
        identity: what the door knows: sweep_id, replicate, started_at, overrides, provenance.
    """
    row: dict[str, Any] = dict.fromkeys(SCHEMA.names)
    row |= {name: value for name, value in identity.items() if name in row}
    row |= axes_of(trial)
    row |= {
        "trial_id": trial.trial_id,
        "definition": json.dumps(trial.definition(), sort_keys=True),
        "status": outcome.status,
        "reason": outcome.reason,
        "traceback": outcome.traceback,
        "wall_seconds": outcome.wall_seconds,
        **outcome.hardware,
    }
    if any(outcome.ranks):
        row |= _merged(trial, outcome)
    return row


def axes_of(trial: Trial) -> dict[str, Any]:
    """The row's axes: levels by name, and shapes."""
    return {
        "method": trial.method,
        "formula": trial.formula if trial.method == "estimate" else None,
        "model": trial.model.label,
        "precision": trial.precision.name,
        "lora": trial.lora.name,
        "lora_rank": trial.lora.rank if trial.lora.enabled else None,
        "checkpointing": trial.checkpointing.name,
        "fsdp": trial.fsdp.name,
        "world_size": trial.world_size,
        "offload": trial.offload.name,
        "optimizer": trial.optimizer.name,
        "workload": trial.workload.name,
        "kv_cache": trial.kv_cache.name if trial.workload.inference else None,
        "decode_tokens": trial.workload.decode_tokens if trial.workload.name == "decode" else None,
        "micro_batch_size": trial.micro_batch_size,
        "seq_len": trial.seq_len,
        "grad_accum_steps": trial.grad_accum_steps,
        "seed": trial.seed,
        "param_dtype": trial.precision.param_dtype,
        "compute_dtype": trial.precision.compute_dtype,
        "quantization": trial.precision.quantization,
        "memory_limit_bytes": trial.memory_limit_bytes,
    }


def _merged(trial: Trial, outcome: Outcome) -> dict[str, Any]:
    """Ranks to one row: bytes take the largest, losses the mean, rates add up."""
    ranks = outcome.ranks
    row = {k: v for k, v in next(filter(None, ranks)).items() if k in SCHEMA.names}
    if "evidence" in row:  # a trial that fails after its attribution has evidence too
        row["evidence"] = json.dumps(_evidence([r.get("evidence", {}) for r in ranks]), sort_keys=True)
    for name in RANK_BYTES:
        values = [r[name] for r in ranks if r.get(name) is not None]
        row[name] = max(values) if values else None
    if row["tracked_peak_bytes"] is not None:
        row |= _largest_rank(ranks)
    row["per_rank"] = [
        {
            "rank": rank,
            "step_seconds_median": _median(columns.get("step_seconds")),
            **{name: columns.get(name) for name in RANK_BYTES},
        }
        for rank, columns in enumerate(ranks)
    ]
    if outcome.status != "ok":
        return row
    row["overhead_seconds"] = outcome.wall_seconds - max(r["working_seconds"] for r in ranks)
    if trial.method != "measure":
        return row
    losses = [r["losses"] for r in ranks]
    row["losses"] = [sum(step) / len(step) for step in zip(*losses, strict=True)]
    row |= timing.columns(
        timing.slowest_rank([r["step_seconds"] for r in ranks]),
        tokens_per_step=row.get("tokens_per_step") or trial.tokens_per_step,
        world_size=trial.world_size,
    )
    return row | _utilisation(trial, row, outcome.hardware.get("device_name") or "")


def _largest_rank(ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """The categories at the peak of the rank whose peak was largest: they sum to its tracked peak."""
    largest = max(ranks, key=lambda r: r.get("tracked_peak_bytes") or 0)
    names = [f"{category}_bytes" for category in CATEGORIES]
    return {name: largest.get(name) for name in (*names, "tracked_peak_bytes", "peak_phase")}


def _median(seconds: list[float] | None) -> float | None:
    return statistics.median(seconds) if seconds else None


def _evidence(ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """The first rank's evidence; where ranks differ, the list of what each of them says."""
    return {
        name: value if all(r.get(name) == value for r in ranks) else [r.get(name) for r in ranks]
        for name, value in ranks[0].items()
    }


def _utilisation(trial: Trial, row: dict[str, Any], device_name: str) -> dict[str, Any]:
    peak = peak_flops_per_sec(device_name, trial.precision.compute_dtype)
    if peak is None or trial.precision.quantization != "none":
        return {"mfu": None, "hfu": None}
    available = peak * row["step_seconds_median"]
    return {
        "mfu": row["model_flops_per_step"] / available,
        "hfu": row["hardware_flops_per_step"] / available,
    }


def write(row: dict[str, Any], results_dir: Path, name: str) -> Path:
    """Writes one row as `results_dir/trials/name.parquet`, whole or not at all.

    Raises:
        OSError: the folder cannot be written to.
    """
    with Place(results_dir, name) as place:
        return place.keep(to_parquet(row))


def to_parquet(row: dict[str, Any]) -> bytes:
    """The content of the file that holds this one row."""
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([row], schema=SCHEMA), buffer)
    return bytes(buffer.getvalue().to_pybytes())


def _files(results_dir: Path, sweep_id: str | None) -> list[Path]:
    pattern = "*.parquet" if sweep_id is None else f"{glob.escape(sweep_id)}-*.parquet"
    return list((results_dir / "trials").glob(pattern))


def _table(paths: list[Path], columns: Iterable[str] | None = None) -> pa.Table:
    names = set(SCHEMA.names if columns is None else columns)
    wanted = pa.schema([field for field in SCHEMA if field.name in names])  # in the order that files have
    files = [path for path in paths if path.name[0] not in "._"]
    parts = [files[start : start + _TOGETHER] for start in range(0, len(files), _TOGETHER)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding footers takes a millisecond each
        tables = list(pool.map(partial(_together, wanted=wanted), parts))
    return pa.concat_tables([wanted.empty_table(), *tables]).sort_by("started_at")


def _together(files: list[Path], wanted: pa.Schema) -> pa.Table:
    groups: list[list[pa.Table]] = []  # neighbours of one schema version, conformed at one go
    for table in filter(None, (_rows_of(path, wanted) for path in files)):
        if groups and table.schema.equals(groups[-1][0].schema):
            groups[-1].append(table)
        else:
            groups.append([table])
    tables = [_conformed(pa.concat_tables(group), wanted) for group in groups]
    # thousands of chunks are slow to work with
    return pa.concat_tables([wanted.empty_table(), *tables]).combine_chunks()


def _rows_of(path: Path, wanted: pa.Schema) -> pa.Table | None:
    """The file's rows with those of the columns that it has; None if it is torn, or not ours."""
    try:
        table = pq.ParquetFile(path).read(columns=wanted.names, use_threads=False)
        if not {"trial_id", "started_at"} <= set(table.column_names):
            raise pa.ArrowInvalid("no trial_id and started_at")
        if any(field.type != wanted.field(field.name).type for field in table.schema):
            return _conformed(table, wanted)
        return table
    except (pa.ArrowException, OSError) as error:
        first = str(error).splitlines()[0]
        print(f"{path}: not a row of this project, passed over ({first})", file=sys.stderr)
        return None


def _conformed(table: pa.Table, wanted: pa.Schema) -> pa.Table:
    if table.schema.equals(wanted):
        return table
    held = set(table.column_names)
    columns = [
        table[field.name].cast(field.type) if field.name in held else pa.nulls(len(table), field.type)
        for field in wanted
    ]
    return pa.table(columns, schema=wanted)


def read(
    results_dir: Path, sweep_id: str | None = None, columns: Iterable[str] | None = None
) -> pd.DataFrame:
    """The rows under `results_dir/trials`, oldest first; of one sweep only, if asked.

    Columns that a row's schema version did not have are null; there may be no rows at all. A file that
    cannot be read as rows is named on stderr and passed over.

    Args:
        results_dir: the folder that holds `trials`.
        sweep_id: only this sweep's rows.
        columns: only these columns, `trial_id` and `started_at` among them; default all.
    """
    rows: pd.DataFrame = _table(_files(results_dir, sweep_id), columns).to_pandas()
    return rows


def records(
    results_dir: Path, sweep_id: str | None = None, columns: Iterable[str] | None = None
) -> list[dict[str, Any]]:
    """The same rows as plain dicts, null as None."""
    return records_of(_files(results_dir, sweep_id), columns)


def of_trial(
    results_dir: Path, trial_id: str, columns: Iterable[str] | None = None
) -> list[dict[str, Any]]:
    """The rows of one trial, oldest first, whichever sweep they are of."""
    return records_of(list((results_dir / "trials").glob(f"*-{glob.escape(trial_id)}.parquet")), columns)


def records_of(files: list[Path], columns: Iterable[str] | None = None) -> list[dict[str, Any]]:
    """The rows of these parquet files, oldest first, as plain dicts."""
    rows: list[dict[str, Any]] = _table(files, columns).to_pylist()
    return rows
