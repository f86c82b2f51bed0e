"""The row's columns and their types, and the conversion of tables that another version wrote.

Columns may be added. Every change of `SCHEMA` raises `SCHEMA_VERSION`, which each file holds in its
metadata (CONTRIBUTING.md lists what else a change needs). Sizes are bytes, times are seconds.
"""

from __future__ import annotations

import pyarrow as pa

from bench.trial.columns import Columns
from bench.trial.columns import RankBytes
from bench.machine.provenance import PACKAGES

SCHEMA_VERSION = 4

_TEXT, _INT, _REAL, _BOOL = pa.string(), pa.int64(), pa.float64(), pa.bool_()

# Columns that can differ between the ranks of one trial: the row holds the largest, `per_rank` holds all.
RANK_BYTES = tuple(RankBytes.__annotations__)
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
        *((name, _TEXT) for name in ("offload", "optimizer", "workload", "kv_cache", "loss", "loop")),
        ("decode_tokens", _INT),
        *((n, _INT) for n in ("micro_batch_size", "seq_len", "grad_accum_steps", "seed", "threads")),
        *((n, _TEXT) for n in ("param_dtype", "compute_dtype", "quantization", "attention")),
        ("autocast", _BOOL),
        ("memory_limit_bytes", _INT),
        ("predicted_peak_bytes", _INT),
        *((name, _TEXT) for name in ("loop_arguments", "overrides", "definition")),
        # size
        *((name, _INT) for name in ("param_count", "trainable_param_count", "active_param_count")),
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
        # where a predicted step's time goes
        *((f"{kind}_seconds", _REAL) for kind in ("products", "attention", "elementwise")),
        *((f"{kind}_seconds", _REAL) for kind in ("optimizer", "transfer", "collective", "host")),
        *((name, _REAL) for name in ("host_bound_share", "uncalibrated_share")),
        # evidence and health
        *((name, _TEXT) for name in ("evidence", "timeline")),  # JSON
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


def cast_to_schema(table: pa.Table, wanted: pa.Schema) -> pa.Table:
    """The table with only the wanted columns, in their types and order; null where the table lacks one.

    Raises:
        pa.ArrowException: a value cannot be converted to the wanted type without loss.
    """
    if table.schema.equals(wanted):  # metadata is not compared, so a foreign file's is replaced
        return table.replace_schema_metadata(wanted.metadata)
    held = set(table.column_names)
    columns = [
        table[field.name].cast(field.type) if field.name in held else pa.nulls(len(table), field.type)
        for field in wanted
    ]
    return pa.table(columns, schema=wanted)
