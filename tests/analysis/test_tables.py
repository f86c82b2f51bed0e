"""The report's tables against arithmetic done here, on rows whose numbers are known."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bench.analysis import studies, tables
from bench.analysis.tables import PEAK, RATE
from tests import rows as made


@pytest.fixture(scope="module")
def trials() -> pd.DataFrame:
    return studies.trials(pd.DataFrame(made.all_rows()))


@pytest.fixture(scope="module")
def grid(trials: pd.DataFrame) -> pd.DataFrame:
    return studies.studies(trials)[0]


def row(words: str) -> dict[str, Any]:
    return made.measured(words)


def test_each_rung_adds_the_technique_that_leaves_least(grid: pd.DataFrame) -> None:
    ladder = tables.ladder(grid)
    assert list(ladder["steps"].map(len)) == [0, 1, 2, 3]
    plain = row(made.GRID[0])[PEAK]
    single = grid[(grid["steps"].map(len) == 1) & (grid["status"] == "ok")]
    assert ladder[PEAK].iloc[1] == single[PEAK].min()
    assert list(ladder["peak_change"]) == pytest.approx([peak / plain - 1 for peak in ladder[PEAK]])
    for before, after in itertools.pairwise(ladder["steps"]):
        assert before.items() < after.items()
    assert ladder["added"].iloc[0] == ""
    assert set(ladder["added"][1:]) == set(ladder["steps"].iloc[-1].values())


def test_a_ladder_whose_foot_does_not_fit_counts_from_the_first_rung_that_does(
    trials: pd.DataFrame,
) -> None:
    large = studies.studies(trials)[1]
    ladder = tables.ladder(large)
    assert list(ladder["status"])[:2] == ["oom", "ok"]
    assert pd.isna(ladder["peak_change"].iloc[0])
    assert ladder["peak_change"].iloc[1] == 0.0


def test_pairs_hold_each_combination_both_ways_round_and_one_alone_on_the_diagonal(
    grid: pd.DataFrame,
) -> None:
    cells = tables.pairs(grid).set_index(["first", "second"])
    plain = row("precision=fp32 lora=off checkpointing=off")
    both = row("precision=bf16 lora=off checkpointing=on")
    for cell in (("bf16", "checkpointing"), ("checkpointing", "bf16")):
        assert cells.loc[cell, "peak_change"] == pytest.approx(both[PEAK] / plain[PEAK] - 1)
    alone = row("precision=fp32 lora=off checkpointing=on")
    change = cells.loc[("checkpointing", "checkpointing"), "peak_change"]
    assert change == pytest.approx(alone[PEAK] / plain[PEAK] - 1)
    assert cells.loc[("nf4", "nf4"), "status"] == "skipped"


def test_the_frontier_is_what_nothing_beats_in_both(grid: pd.DataFrame) -> None:
    fits = grid[grid["status"] == "ok"]
    points = list(zip(fits["label"], fits[PEAK], fits[RATE], strict=True))
    unbeaten = {
        label
        for label, peak, rate in points
        if not any(p <= peak and r >= rate and (p, r) != (peak, rate) for _, p, r in points)
    }
    assert set(tables.frontier(grid)["label"]) == unbeaten


def test_curves_join_trials_that_differ_in_nothing_else(trials: pd.DataFrame) -> None:
    ranks = tables.curves(trials, "lora_rank")
    assert list(ranks["value"]) == [4, 16, 64]
    assert set(ranks["curve"]) == {"bf16 + LoRA"}
    lengths = tables.curves(trials, "seq_len")
    assert list(lengths["value"]) == [32, 64, 128, 256]
    assert list(lengths[PEAK]) == [row(f"seq_len={n}")[PEAK] for n in (32, 64, 128, 256)]
    assert tables.curves(trials, "world_size").empty


def test_ratios_are_of_pairs_that_differ_in_one_axis(trials: pd.DataFrame) -> None:
    found = tables.ratios(trials, "checkpointing", "off", "on", PEAK)
    expected = []
    for words in (*made.GRID, *made.LARGE):
        device = made.H100 if words in made.LARGE else made.CPU
        other = words.replace("checkpointing=off", "checkpointing=on")
        if words in made.LARGE:
            other = f"{words} checkpointing=on"
        if other == words or other not in (*made.GRID, *made.LARGE):
            continue
        before, after = made.measured(words, device), made.measured(other, device)
        if before["status"] == after["status"] == "ok":
            expected.append(after[PEAK] / before[PEAK])
    assert sorted(found) == pytest.approx(sorted(expected))
    assert len(found) == 9


def test_errors_pair_a_measurement_with_predictions_for_its_kind_of_device(trials: pd.DataFrame) -> None:
    errors = {(one.label, one.measured_bytes): one.errors for one in tables.errors(trials)}
    peak = int(row(made.GRID[0])[PEAK])
    said = errors[("fp32", peak)]
    factor = {name: factors[0] for name, factors in made.FACTORS.items()}
    for name, error in said.items():
        assert error == pytest.approx(factor[name] - 1, abs=1e-4)
    assert set(said) == set(made.FACTORS)
    on_gpu = [found for (_, size), found in errors.items() if size > 2**30]
    assert len(on_gpu) == 6  # the two that ran out of memory have no peak to be graded by
    assert all(found["simulate"] == pytest.approx(0.001, abs=1e-4) for found in on_gpu)


def test_every_trial_is_one_line_of_the_last_table(trials: pd.DataFrame, tmp_path: Path) -> None:
    lines = tables.rows_table(trials)
    assert len(lines) == len(trials)
    fp32 = lines[(lines["techniques"] == "fp32") & (lines["method"] == "measure")]
    assert row(made.GRID[0])[PEAK] / 2**30 in list(fp32["peak GiB"])
