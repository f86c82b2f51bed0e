"""The one place where a trial and its outcome become a row: ranks merged, rates and utilisation computed.

In: a Trial, its Outcome, and what the job knows (`identity`). Out: a value for each column of SCHEMA. Pure.
"""

from __future__ import annotations

import json
import re
import statistics
from typing import Any

from bench.machine.gpu_catalogue import peak_flops_per_sec
from bench.methods import predict_time, step_statistics
from bench.paths import ROOT
from bench.results.schema import RANK_BYTES, SCHEMA
from bench.trial.columns import NOT_IN_A_ROW
from bench.trial.outcome import Outcome
from bench.trial.spec import Trial, axes_of
from bench.trial.vocabulary import CATEGORIES

_LOCAL_DIRS = re.compile(
    rf'File "(?:{re.escape(str(ROOT))}/|[^"]*/(?:site|dist)-packages/|[^"]*/lib/(?=python3))'
)


def without_local_paths(traceback: str) -> str:
    """The traceback with each file named from the root of this project, or of the installed packages: rows
    are published, and must not tell how a machine's folders are named. The log keeps the whole paths."""
    return _LOCAL_DIRS.sub('File "', traceback)


def row_of(trial: Trial, outcome: Outcome, identity: dict[str, Any]) -> dict[str, Any]:
    """One row, with every column of SCHEMA.

    Args:
        trial: what was executed.
        outcome: how it went.
        identity: what the job knows: sweep_id, replicate, started_at, overrides, environment, provenance.

    Raises:
        KeyError: a rank reported a column that SCHEMA does not have.
    """
    row: dict[str, Any] = dict.fromkeys(SCHEMA.names)
    row |= identity
    row |= axes_of(trial)
    row |= {
        "trial_id": trial.trial_id,
        "definition": json.dumps(trial.definition(), sort_keys=True),
        "status": outcome.status,
        "reason": outcome.reason,
        "traceback": outcome.traceback and without_local_paths(outcome.traceback),
        "wall_seconds": outcome.wall_seconds,
        **outcome.hardware,
    }
    if any(outcome.ranks):
        row |= _merged(trial, outcome)
    if unknown := row.keys() - set(SCHEMA.names):
        raise KeyError(f"no such column in results/schema.py: {', '.join(sorted(unknown))}")
    return row


def _merged(trial: Trial, outcome: Outcome) -> dict[str, Any]:
    """What the ranks reported, as one row: of bytes the largest, of losses the mean, of rates the sum."""
    ranks = outcome.ranks
    reported: list[dict[str, Any]] = [dict(rank) for rank in ranks]
    row = {k: v for k, v in next(filter(None, reported)).items() if k not in NOT_IN_A_ROW}
    if "evidence" in row:  # a trial that fails after its bytes were attributed has evidence too
        row["evidence"] = json.dumps(_evidence([r.get("evidence", {}) for r in ranks]), sort_keys=True)
    for name in RANK_BYTES:
        values = [rank[name] for rank in reported if rank.get(name) is not None]
        row[name] = max(values) if values else None
    if row["tracked_peak_bytes"] is not None:
        row |= _largest_rank(reported)
    row["per_rank"] = [
        {
            "rank": rank,
            "step_seconds_median": _median(columns.get("step_seconds")),
            **{name: columns.get(name) for name in RANK_BYTES},
        }
        for rank, columns in enumerate(reported)
    ]
    if outcome.status != "ok":
        return row
    row["overhead_seconds"] = outcome.wall_seconds - max(r["working_seconds"] for r in ranks)
    if trial.method != "measure":
        return row | _utilisation(trial, row, "") if row.get("step_seconds_median") else row
    losses = [r["losses"] for r in ranks]
    row["losses"] = [sum(step) / len(step) for step in zip(*losses, strict=True)]
    row |= step_statistics.rate_columns(
        step_statistics.slowest_rank([r["step_seconds"] for r in ranks]),
        tokens_per_step=row.get("tokens_per_step") or trial.tokens_per_step,
        world_size=trial.world_size,
    )
    return row | _utilisation(trial, row, outcome.hardware.get("device_name") or "")


def _largest_rank(ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """The categories at the peak of the rank whose peak was largest: they sum to its tracked peak."""
    largest = max(ranks, key=lambda r: r.get("tracked_peak_bytes") or 0)
    names = [f"{category}_bytes" for category in CATEGORIES]
    of_it = {name: largest.get(name) for name in (*names, "tracked_peak_bytes", "peak_phase")}
    return of_it | {"timeline": json.dumps(largest["timeline"]) if "timeline" in largest else None}


def _median(seconds: list[float] | None) -> float | None:
    return statistics.median(seconds) if seconds else None


def _evidence(ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """The first rank's evidence; where ranks differ, the list of what each of them says."""
    return {
        name: value if all(r.get(name) == value for r in ranks) else [r.get(name) for r in ranks]
        for name, value in ranks[0].items()
    }


def _utilisation(trial: Trial, row: dict[str, Any], device_name: str) -> dict[str, Any]:
    """Model and hardware FLOPs utilisation; None where the peak is unknown or weights are quantised."""
    dtype = trial.precision.compute_dtype
    peak = predict_time.peak_flops_per_sec(trial.gpu, dtype) or peak_flops_per_sec(device_name, dtype)
    if peak is None or trial.precision.quantization != "none":
        return {"mfu": None, "hfu": None}
    available = peak * row["step_seconds_median"]
    return {
        "mfu": row["model_flops_per_step"] / available,
        "hfu": row["hardware_flops_per_step"] / available,
    }
