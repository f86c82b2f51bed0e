"""Regressions: what is one, what is noise, and what cannot be compared."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest

from bench.analysis.comparison import (
    OtherDeviceError,
    Thresholds,
    chance_of_loss,
    compare,
)
from bench.analysis.comparison_table import comparison_markdown, verdict
from bench.results import baselines, store
from bench.results.schema import SCHEMA
from tests import rows as made
from tests.conftest import ROOT, SHORT, door_here
from tests.sweeps import Here

ROW = dict.fromkeys(SCHEMA.names) | {
    "method": "measure",
    "status": "ok",
    "device_name": "a card",
    "overrides": "python bench/run.py precision=bf16",
    "trial_id": "0123456789abcdef",
    "peak_allocated_bytes": 10 * 2**30,
    "tokens_per_sec_per_device": 1000.0,
}


def replicates(count: int, seed: int, noise: float = 0.01, **changes: Any) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    row = ROW | changes
    rate = row["tokens_per_sec_per_device"]
    return [row | {"tokens_per_sec_per_device": rate * draw.gauss(1, noise)} for _ in range(count)]


def test_identical_sets_are_no_worse() -> None:
    (found,) = compare(replicates(5, 0), replicates(5, 0), Thresholds())
    assert found.regressions == ()
    assert found.speed_change == 0.0
    assert found.memory_change == 0


def test_five_percent_slower_in_five_replicates_is_a_regression() -> None:
    slow = replicates(5, 1, tokens_per_sec_per_device=950.0)
    (found,) = compare(replicates(5, 0), slow, Thresholds())
    assert found.regressions == ("slower",)
    assert found.p is not None and found.p <= 0.01
    assert "precision=bf16" in comparison_markdown([found])


def test_what_slows_some_steps_alone_is_not_the_codes_doing() -> None:
    """Something else ran while the second set was measured: medians suffer, the fastest steps do not."""
    calm = made.again(noise=0.001)
    disturbed = [
        row
        | {
            "step_seconds": [
                *row["step_seconds"][:2],
                *(1.3 * second for second in row["step_seconds"][2:]),
            ],
            "tokens_per_sec_per_device": row["tokens_per_sec_per_device"] / 1.3,
        }
        for row in made.again(sweep="20260421T080000-eeeeee", noise=0.001)
    ]
    assert [found.regressions for found in compare(calm, disturbed, Thresholds())] == [()] * 4
    slower = made.again(sweep="20260421T080000-eeeeee", noise=0.001, slower=0.05)
    assert [found.regressions for found in compare(calm, slower, Thresholds())] == [("slower",)] * 4


def test_noise_alone_is_seldom_a_regression() -> None:
    pairs = ((replicates(5, 2 * n, 0.03), replicates(5, 2 * n + 1, 0.03)) for n in range(1000))
    alarms = sum(bool(compare(*pair, Thresholds())[0].regressions) for pair in pairs)
    assert alarms <= 20, "p is at most 1 %, and the effect must be 3 % besides"


def test_one_mebibyte_more_is_a_regression_and_one_less_is_not() -> None:
    more = [ROW | {"peak_allocated_bytes": ROW["peak_allocated_bytes"] + 2**20}]
    assert compare([ROW], more, Thresholds())[0].regressions == ("more memory",)
    assert compare(more, [ROW], Thresholds())[0].regressions == ()
    assert compare([ROW], more, Thresholds(memory_bytes=2**20))[0].regressions == ()


def test_a_trial_that_no_longer_runs_is_a_regression() -> None:
    gone = [ROW | {"status": "oom", "peak_allocated_bytes": None, "tokens_per_sec_per_device": None}]
    (found,) = compare([ROW], gone, Thresholds())
    assert found.regressions == ("ok became oom",)


def test_the_worst_comes_first() -> None:
    def pair(trial_id: str, rate: float) -> list[dict[str, Any]]:
        return replicates(5, 3, 0.001, trial_id=trial_id, tokens_per_sec_per_device=rate)

    before = [row for name in "abc" for row in pair(name, 1000.0)]
    after = [*pair("a", 990.0), *pair("b", 900.0), *pair("c", 800.0)]
    assert [found.trial_id for found in compare(before, after, Thresholds())] == ["c", "b", "a"]


def test_different_devices_are_refused_unless_asked_for() -> None:
    other = [ROW | {"device_name": "another card"}]
    with pytest.raises(OtherDeviceError, match="a card against another card"):
        compare([ROW], other, Thresholds())
    assert compare([ROW], other, Thresholds(), any_device=True)[0].regressions == ()


def test_trials_that_were_not_run_again_are_counted() -> None:
    before = [ROW, ROW | {"trial_id": "another"}, ROW | {"trial_id": "a third"}]
    said = verdict(compare(before, [ROW], Thresholds()), before, [ROW])
    assert said[0].startswith("2 trials of the baseline found no counterpart among the candidate's: ")
    assert said[0].endswith("(require_all=true makes that a failure).")
    assert said[-1] == "None of 1 trials got worse."


def test_a_device_has_one_folder() -> None:
    assert baselines.name_of("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
    assert baselines.name_of("CPU (Some(R) CPU @ 2.70GHz, 2 cores)") == "cpu-some-r-cpu-2-70ghz-2-cores"
    with pytest.raises(ValueError, match="measured on a card, another card, not on one"):
        baselines.device_of([ROW, ROW | {"device_name": "another card"}])


def test_the_rank_sum_test_by_hand() -> None:
    assert chance_of_loss([4.0, 5.0, 6.0], [1.0, 2.0, 3.0]) == 1 / 20
    assert chance_of_loss([1.0, 2.0], [1.5]) is None


def test_the_door_on_real_rows(here: Here, tmp_path: Path) -> None:
    assert here.run("precision=fp32,bf16", SHORT) == 0
    same = f"candidate={here.folder}"
    done = door_here(
        f"baseline={here.folder}", same, f"markdown={tmp_path / 'table.md'}", script="compare.py"
    )
    assert done.returncode == 0, done.stderr
    assert "None of 2 trials got worse." in done.stdout
    assert (tmp_path / "table.md").read_text().count("no worse") == 2
    heavier = store.records(here.folder)[1]
    heavier["peak_allocated_bytes"] += 2**20
    store.write(heavier, tmp_path / "heavier", "row")
    done = door_here(f"baseline={here.folder}", f"candidate={tmp_path / 'heavier'}", script="compare.py")
    assert done.returncode == 1
    assert "1 of 1 trials got worse; the worst: precision=bf16" in done.stdout
    store.write(heavier | {"device_name": "another"}, tmp_path / "other", "row")
    done = door_here(f"baseline={here.folder}", f"candidate={tmp_path / 'other'}", script="compare.py")
    assert done.returncode == 2
    assert "any_device=true" in done.stderr
    store.write(heavier | {"trial_id": "unknown"}, tmp_path / "unknown", "row")
    done = door_here(f"baseline={here.folder}", f"candidate={tmp_path / 'unknown'}", script="compare.py")
    assert done.returncode == 3
    assert "Nothing to compare" in done.stdout
    here_too = f"candidate={tmp_path / 'lighter'}"
    store.write(store.records(here.folder)[1], tmp_path / "lighter", "row")
    done = door_here(f"baseline={here.folder}", here_too, "require_all=true", script="compare.py")
    assert done.returncode == 1
    assert "1 trial of the baseline found no counterpart" in done.stdout


def ten() -> list[dict[str, Any]]:
    """One trial in ten processes on an H100: bf16_pure of LLaMA-7B, 2048 tokens."""
    return store.records_in(baselines.FOLDER / "nvidia-h100-80gb-hbm3-ten-replicates")


def slowed(row: dict[str, Any], by: float) -> dict[str, Any]:
    return row | {
        "tokens_per_sec_per_device": row["tokens_per_sec_per_device"] * (1 - by),
        "step_seconds": [second / (1 - by) for second in row["step_seconds"]],
    }


def test_a_gpu_s_noise_is_no_regression_and_five_percent_is_however_its_replicates_are_divided() -> None:
    rows = ten()
    said = {0.0: 0, 0.05: 0}
    divisions = list(itertools.combinations(range(10), 5))
    for chosen in divisions:
        before = [rows[n] for n in range(10) if n not in chosen]
        for by in said:
            (found,) = compare(before, [slowed(rows[n], by) for n in chosen], Thresholds())
            said[by] += found.regressions == ("slower",)
    assert said == {0.0: 0, 0.05: len(divisions)}


@pytest.mark.parametrize(
    ("by", "code", "verdict"),
    [(0.0, 0, "None of 1 trials got worse"), (0.05, 1, "1 of 1 trials got worse")],
)
def test_the_door_on_a_gpu_s_replicates(tmp_path: Path, by: float, code: int, verdict: str) -> None:
    for row in ten():
        half = "before" if row["replicate"] % 2 else "after"
        store.write(slowed(row, by if half == "after" else 0.0), tmp_path / half, str(row["replicate"]))
    done = door_here(
        f"baseline={tmp_path / 'before'}", f"candidate={tmp_path / 'after'}", script="compare.py"
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert verdict in done.stdout
    assert "precision=bf16_pure" in done.stdout


def test_the_accepted_baselines_can_be_read_and_say_where_they_are_from() -> None:
    for name in baselines.names():
        rows = store.records_in(baselines.FOLDER / name)
        assert name.startswith(baselines.name_of(baselines.device_of(rows)))
        assert not any("/site-packages/" in (row["traceback"] or "") for row in rows)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "say either baseline=PATH or baseline_ref=NAME"),
        (("baseline=nowhere/at/all",), "neither a folder nor files"),
        (("baseline_ref=h100",), "baseline_ref=h100: no such set"),
        (("--baseline-ref", "h100"), "baseline_ref=h100: no such set"),
        (("--baseline-ref=h100",), "baseline_ref=h100: no such set"),
        (("--baseline-ref", "--any-device=true"), "baseline_ref has no value: say baseline_ref=VALUE"),
        (("baseline_ref=auto", f"candidate={ROOT / 'conf'}"), "measured on no device, not on one"),
        (("baselne=x",), "did you mean baseline?"),
    ],
)
def test_the_door_says_what_is_wrong(words: tuple[str, ...], said: str) -> None:
    done = door_here(*words, script="compare.py")
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
