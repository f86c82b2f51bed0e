"""Which trials need not run again, because an earlier row stands for them.

A row stands for a trial if it is of the same trial and replicate, and its status will not change: `ok`,
`oom` or `skipped`. `error` and `timeout` are tried again. Under `resume=auto` the row must also be of the
same environment (`machine/provenance.py`); under `resume=force` it may be of any.

A trial that is passed over leaves a note beside the logs, so that the sweep's table can show the row that
stands for it, under any launcher.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

from bench.results import store
from bench.trial.outcome import FINISHED, counting_executions

_IDENTITY = ("trial_id", "sweep_id", "replicate")
_COLUMNS = (*_IDENTITY, "started_at", "status", "environment", "predicted_peak_bytes")
_NOTE = ".reused.json"


def finished(
    trial_id: str, replicate: int, results_dir: Path, *, environment: str | None, predicted: bool
) -> dict[str, Any] | None:
    """The latest row that stands for the trial (a few of its columns), or None: the trial has to run.

    Args:
        trial_id: of the trial.
        replicate: which of its executions.
        results_dir: holds `trials`.
        environment: the fingerprint that the row must have; None: any.
        predicted: whether a trial that was skipped because it was predicted not to fit stays skipped.
    """
    rows = [
        row
        for row in store.of_trial(results_dir, trial_id, _COLUMNS)
        if row["replicate"] == replicate and row["status"] in FINISHED
        if environment is None or row["environment"] == environment
        if predicted or not (row["status"] == "skipped" and row["predicted_peak_bytes"] is not None)
    ]
    return rows[-1] if rows else None


def without_resolved_failures(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows (oldest first) without each failure whose replicate was executed again and finished."""
    counts = counting_executions(((row["trial_id"], row["replicate"]), row["status"]) for row in rows)
    return list(itertools.compress(rows, counts))


def note_reuse(row: dict[str, Any], overrides: str, logs: Path, name: str) -> None:
    """Writes a note: `row` stands for the trial that would have written `name`, given as `overrides`."""
    logs.mkdir(parents=True, exist_ok=True)
    note = {key: row[key] for key in _IDENTITY} | {"overrides": overrides}
    (logs / f"{name}{_NOTE}").write_text(json.dumps(note) + "\n")


def reused_rows(logs: Path, results_dir: Path) -> list[dict[str, Any]]:
    """The whole rows that stand for the trials that a sweep passed over, in the sweep's order, each with
    the sweep's overrides.

    Args:
        logs: the sweep's folder of logs.
        results_dir: holds `trials`.
    """
    notes = [json.loads(path.read_text()) for path in sorted(logs.glob(f"*{_NOTE}"))]
    rows = []
    for note in notes:
        matching = [
            row | {"overrides": note["overrides"]}
            for row in store.of_trial(results_dir, note["trial_id"])
            if all(row[key] == note[key] for key in _IDENTITY)
        ]
        rows += matching[-1:]
    return rows
