"""The report's tables against arithmetic done here, on rows whose numbers are known."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bench.analysis import neighbours, predicted, studies, tables
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
    single = grid[(grid["steps"].map(len) == 1) & (grid["status"] == "ok")]
    assert ladder[PEAK].iloc[1] == single[PEAK].min()
    expected = [after / before - 1 for before, after in itertools.pairwise(ladder[PEAK])]
    assert list(ladder["peak_change"])[1:] == pytest.approx(expected)
    for before, after in itertools.pairwise(ladder["steps"]):
        assert before.items() < after.items()
    assert ladder["added"].iloc[0] == ""
    assert set(ladder["added"][1:]) == set(ladder["steps"].iloc[-1].values())


def test_where_the_plain_trial_does_not_run_nothing_is_charged_to_a_technique_but_its_own(
    trials: pd.DataFrame,
) -> None:
    large = studies.studies(trials)[1]
    ladder = tables.ladder(large)
    assert list(ladder["status"])[:2] == ["oom", "ok"]
    assert ladder["peak_change"].head(2).isna().all()
    assert tables.changed(large)["peak_change"].isna().all()
    rows = large.set_index("label")
    before, after = rows.loc["bf16_pure"], rows.loc["bf16_pure + LoRA r16"]
    lora = tables.by_technique(large).set_index("added").loc["LoRA r16"]
    assert lora["against"] == "bf16_pure"
    assert lora["peak_change"] == pytest.approx(after[PEAK] / before[PEAK] - 1)
    assert lora["rate_change"] == pytest.approx(after[RATE] / before[RATE] - 1)
    cells = tables.pairs(large).set_index(["added", "beside"])
    assert cells.loc[("LoRA r16", "bf16_pure"), "peak_change"] == lora["peak_change"]
    assert pd.isna(cells.loc[("bf16_pure", "bf16_pure"), "peak_change"])


def test_pairs_hold_what_a_technique_changes_beside_another_and_alone_on_the_diagonal(
    grid: pd.DataFrame,
) -> None:
    cells = tables.pairs(grid).set_index(["added", "beside"])
    plain = row("precision=fp32 lora=off checkpointing=off")
    recomputed = row("precision=fp32 lora=off checkpointing=on")
    both = row("precision=bf16 lora=off checkpointing=on")
    change = cells.loc[("bf16", "checkpointing"), "peak_change"]
    assert change == pytest.approx(both[PEAK] / recomputed[PEAK] - 1)
    change = cells.loc[("checkpointing", "checkpointing"), "peak_change"]
    assert change == pytest.approx(recomputed[PEAK] / plain[PEAK] - 1)
    assert cells.loc[("nf4", "nf4"), "status"] == "skipped"


def test_ranks_that_share_a_device_say_nothing_about_speed(grid: pd.DataFrame) -> None:
    single = tables.by_technique(grid).set_index("added")
    assert pd.notna(single.loc["DDP ×2", "peak_change"])
    assert pd.isna(single.loc["DDP ×2", "rate_change"])
    assert not single.loc["DDP ×2", "rates_differ"]
    assert not any("×2" in label for label in tables.frontier(grid)["label"])


def test_what_is_fastest_is_faster_beyond_doubt() -> None:
    small, large = row("lora=on"), row("")
    rate = small[RATE]
    for low, kept in ((1.01, 2), (0.97, 1)):
        large |= {RATE: rate * 1.05, f"{RATE}_ci_low": rate * low, f"{RATE}_ci_high": rate * 1.1}
        small |= {f"{RATE}_ci_low": rate * 0.99, f"{RATE}_ci_high": rate}
        study = studies.trials(pd.DataFrame([small, large]))
        assert len(tables.frontier(study)) == 2
        assert len(tables.fastest_within(study)) == kept


def test_what_ran_out_of_memory_needs_more_and_is_no_peak(trials: pd.DataFrame) -> None:
    found = predicted.with_expected_peaks(trials[trials["method"] == "measure"])
    (failed,) = studies.row_dicts(found[(found["status"] == "oom") & (found["precision"] == "fp32")])
    assert failed["expected_by"] == "closed form"
    assert failed["expected_bytes"] > failed["device_memory_bytes"] > failed[PEAK]
    lines = tables.rows_table(found)
    out = lines[lines["status"] == "oom"]
    assert out["peak GiB"].isna().all()
    assert list(out["more than GiB"]) == [size / 2**30 for size in found[found["status"] == "oom"][PEAK]]


def test_the_frontier_is_what_nothing_beats_in_both(grid: pd.DataFrame) -> None:
    fits = grid[(grid["status"] == "ok") & (grid["world_size"] == 1)]
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
    found = [one.value for one in neighbours.ratios(trials, "checkpointing", "off", "on", PEAK)]
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
    errors = {(one.label, one.measured_bytes): one.errors for one in predicted.errors(trials)}
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
    lines = tables.rows_table(predicted.with_expected_peaks(trials))
    assert len(lines) == len(trials)
    fp32 = lines[(lines["techniques"] == "fp32") & (lines["method"] == "measure")]
    assert row(made.GRID[0])[PEAK] / 2**30 in list(fp32["peak GiB"])
