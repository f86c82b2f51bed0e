"""What is predicted without a GPU, against rows that one gave: those of results/reference."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator
from typing import Any

import pytest

from bench.analysis.grading import predictions
from bench.results import baselines, store
from bench.processes.simulation_pool import Simulator
from tests.conftest import ROOT, some

Row = dict[str, Any]
SWEEP = baselines.FOLDER / "nvidia-h100-80gb-hbm3"
_LINE = re.compile(
    r"^\| `(\w+)` \| (off|on) \| (off|on) \| ([^|]+) \| ([^|]*) ?\| \d+ \| ([^|]+) \|$", re.MULTILINE
)


def readme_table() -> dict[tuple[str, ...], tuple[str, str, str]]:
    """Peak, tokens a second and simulation's error as the README says them, by levels."""
    section = (ROOT / "README.md").read_text().partition("## On an H100")[2].partition("\n## ")[0]
    found = (line.groups() for line in _LINE.finditer(section))
    return {
        (precision, lora, kept): (peak, rate.strip(), error)
        for precision, lora, kept, peak, rate, error in found
    }


def levels(row: Row) -> tuple[str, ...]:
    return row["precision"], row["lora"], row["checkpointing"]


def graded_rows() -> list[Row]:
    """The measured trials that came to an end, each once."""
    rows = [row for name in baselines.names() for row in store.records_in(baselines.FOLDER / name)]
    fits = (row for row in rows if row["method"] == "measure" and row["status"] == "ok")
    return list({row["trial_id"]: row for row in fits}.values())


def words(row: Row) -> str:
    return str(row["overrides"]).removeprefix("python bench/run.py ")


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    with Simulator() as found:
        yield found


@pytest.mark.parametrize("row", some(graded_rows(), 11), ids=words)
def test_an_h100_s_peak_is_predicted_to_half_a_percent(row: Row, simulator: Simulator) -> None:
    errors = predictions.grade_row(row, simulator)
    assert abs(errors.errors["simulate"]) < 0.005
    assert max(map(abs, errors.category_errors.values())) < 0.005
    if row["seq_len"] == 2048:  # of the sweep that the README shows
        said = readme_table()[levels(row)][2]
        assert float(said.removesuffix(" %")) / 100 == pytest.approx(errors.errors["simulate"], abs=6e-5)
    if row["fsdp"] != "full_shard":  # the closed form counts too much of what FSDP gathers
        assert abs(errors.errors["closed_form"]) < 0.05


def test_the_readme_s_table_is_of_these_rows() -> None:
    trials: dict[tuple[str, ...], list[Row]] = {}
    for row in store.records_in(SWEEP):
        trials.setdefault(levels(row), []).append(row)
    table = readme_table()
    assert len(table) >= 12
    for key, (peak, rate, _) in table.items():
        found = trials[key]
        if "memory" in peak:
            assert {row["status"] for row in found} == {"oom"}
            continue
        rates = [row["tokens_per_sec_per_device"] for row in found]
        assert peak == f"{found[0]['peak_allocated_bytes'] / 2**30:.2f}"
        assert rate == f"{statistics.median(rates):,.0f}"
