"""Rows: merged over ranks, written whole or not at all, readable with and without what is new."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench import paths
from bench.results import store
from bench.trial.outcome import Outcome
from bench.sweep.row_assembly import row_of
from bench.results.schema import SCHEMA
from tests.conftest import make_trial


def rank(peak: int, seconds: float) -> dict[str, Any]:
    return {
        "peak_allocated_bytes": peak,
        "tracked_peak_bytes": peak - 1,
        "parameter_bytes": peak - 1,
        "peak_phase": "backward",
        "step_seconds": [seconds, seconds],
        "losses": [seconds, seconds],
        "working_seconds": 1.0,
        "evidence": {"ranks": 2, "parameter_bytes_held": peak},
        "model_flops_per_step": 1e12,
        "hardware_flops_per_step": 2e12,
    }


def row(ranks: list[dict[str, Any]], device: str = "CPU", *overrides: str) -> dict[str, Any]:
    outcome = Outcome("ok", None, None, ranks, {"device_name": device}, 3.0)
    identity = {"sweep_id": "s", "replicate": 0, "started_at": datetime.now(UTC), "overrides": "x"}
    return row_of(make_trial("fsdp=full_shard", *overrides), outcome, identity)


def test_ranks_merge_peaks_to_the_largest_losses_to_the_mean_rates_to_the_sum() -> None:
    """The nearest harness averages rates and sums peaks."""
    merged = row([rank(100, 1.0), rank(300, 2.0)])
    assert merged["peak_allocated_bytes"] == 300
    assert merged["losses"] == [1.5, 1.5]
    assert merged["step_seconds"] == [2.0, 2.0]
    assert merged["tokens_per_sec_per_device"] == 4 * 128 / 2.0
    assert merged["tokens_per_sec_global"] == 4 * 128 / 2.0 * 2
    assert [r["peak_allocated_bytes"] for r in merged["per_rank"]] == [100, 300]
    assert merged["overhead_seconds"] == 2.0
    assert '"parameter_bytes_held": [100, 300]' in merged["evidence"]
    assert '"ranks": 2' in merged["evidence"]


def test_utilisation_by_hand_and_null_where_undefined() -> None:
    h100 = "NVIDIA H100 80GB HBM3"
    known = row([rank(1, 0.5)] * 2, h100, "precision=bf16")
    assert known["mfu"] == pytest.approx(1e12 / (0.5 * 989.4e12))
    assert known["hfu"] == pytest.approx(2e12 / (0.5 * 989.4e12))
    assert row([rank(1, 0.5)] * 2, h100, "precision=nf4")["mfu"] is None
    assert row([rank(1, 0.5)] * 2, "a device nobody knows")["hfu"] is None


def test_a_failed_trial_has_a_row_too(tmp_path: Path) -> None:
    outcome = Outcome("error", "it broke", "Traceback ...", [{}], {}, 3.0)
    failed = row_of(make_trial(), outcome, {"started_at": datetime.now(UTC), "sweep_id": "s"})
    store.write(failed, tmp_path, "a")
    read = store.records(tmp_path)[0]
    assert (read["status"], read["reason"], read["precision"]) == ("error", "it broke", "fp32")
    assert read["peak_allocated_bytes"] is None


def test_a_trial_that_fails_after_its_attribution_keeps_its_row(tmp_path: Path) -> None:
    late = Outcome("oom", "no memory left", "Traceback ...", [rank(1, 1.0)], {}, 3.0)
    failed = row_of(make_trial(), late, {"started_at": datetime.now(UTC), "sweep_id": "s"})
    store.write(failed, tmp_path, "a")
    read = store.records(tmp_path)[0]
    assert (read["status"], read["evidence"]) == ("oom", '{"parameter_bytes_held": 1, "ranks": 2}')


def test_bytes_survive_exactly(tmp_path: Path) -> None:
    large = 2**53 + 1  # the first integer that a double cannot hold
    store.write(row([rank(large, 1.0)] * 2), tmp_path, "a")
    assert store.records(tmp_path)[0]["peak_allocated_bytes"] == large


def test_half_a_row_is_never_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write(row([rank(1, 1.0)] * 2), tmp_path, "whole")

    def full_disk(_file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(paths.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        store.write(row([rank(2, 1.0)] * 2), tmp_path, "torn")
    assert [path.name for path in (tmp_path / "trials").iterdir()] == ["whole.parquet"]
    assert len(pd.read_parquet(tmp_path / "trials")) == 1


def test_readers_pass_over_a_file_that_is_being_written(tmp_path: Path) -> None:
    store.write(row([rank(1, 1.0)] * 2), tmp_path, "whole")
    (tmp_path / "trials" / ".other.123.tmp").write_bytes(b"PAR1")
    assert len(pd.read_parquet(tmp_path / "trials")) == 1
    assert len(store.read(tmp_path)) == 1


def test_rows_of_an_older_schema_stay_readable(tmp_path: Path) -> None:
    store.write(row([rank(1, 1.0)] * 2), tmp_path, "new")
    old = pa.Table.from_pylist([row([rank(2, 1.0)] * 2)], schema=SCHEMA)
    pq.write_table(old.drop_columns(["gathered_max_bytes", "mfu"]), tmp_path / "trials" / "old.parquet")
    rows = store.read(tmp_path)
    assert len(rows) == 2
    assert "mfu" in rows


def test_no_rows_is_an_empty_table_with_all_columns(tmp_path: Path) -> None:
    assert list(store.read(tmp_path).columns) == SCHEMA.names
    assert store.records(tmp_path) == []


def test_files_that_are_not_rows_are_named_and_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store.write(row([rank(1, 1.0)] * 2), tmp_path, "whole")
    (tmp_path / "trials" / "torn.parquet").write_bytes(b"PAR1 and then no more")
    assert len(store.records(tmp_path)) == 1
    assert "torn.parquet: not a row of this project" in capsys.readouterr().err


def test_one_sweep_can_be_asked_for(tmp_path: Path) -> None:
    for sweep in ("a", "b"):
        store.write({**row([rank(1, 1.0)] * 2), "sweep_id": sweep}, tmp_path, f"{sweep}-0000")
    assert [r["sweep_id"] for r in store.records(tmp_path, "b")] == ["b"]
