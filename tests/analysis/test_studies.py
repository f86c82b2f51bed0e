"""Rows to trials and studies: replicates together, baselines, and names that tell trials apart."""

from __future__ import annotations

import pandas as pd
import pytest

from bench.analysis import predicted, studies
from tests import rows as made


@pytest.fixture(scope="module")
def trials() -> pd.DataFrame:
    return studies.trials(pd.DataFrame(made.all_rows()))


def test_replicates_are_one_trial_with_their_median_and_the_span_of_their_intervals() -> None:
    several = [made.measured("precision=bf16", replicate=n, noise=0.05) for n in range(5)]
    (one,) = studies.row_dicts(studies.trials(pd.DataFrame(several)))
    assert one["replicates"] == 5
    rates = sorted(row["tokens_per_sec_per_device"] for row in several)
    assert one["tokens_per_sec_per_device"] == rates[2]
    low, high = "tokens_per_sec_per_device_ci_low", "tokens_per_sec_per_device_ci_high"
    assert one[low] == min(row[low] for row in several)
    assert one[high] == max(row[high] for row in several)


def test_the_worst_replicate_decides_the_status() -> None:
    fine = made.measured("precision=bf16")
    failed = made.measured("precision=bf16", replicate=1) | {"status": "error", "reason": "a bug"}
    (one,) = studies.row_dicts(studies.trials(pd.DataFrame([fine, failed])))
    assert one["status"] == "error"


def test_a_study_is_what_differs_in_techniques_alone(trials: pd.DataFrame) -> None:
    assert trials.groupby("study")["seq_len"].nunique().max() == 1
    assert trials.groupby("study")["device"].nunique().max() == 1
    assert trials.groupby("study")["method"].nunique().max() == 1
    large = trials[trials["device"] == made.H100.name]
    assert large["study"].nunique() == 1
    assert len(large) == len(made.LARGE)
    assert not trials.duplicated(["study", "label"]).any()


def test_the_baseline_is_the_plain_trial_whether_it_runs_or_not(trials: pd.DataFrame) -> None:
    small, large = studies.studies(trials)[:2]
    assert studies.baseline_trial(small)["overrides"].endswith("precision=fp32 lora=off checkpointing=off")
    assert studies.baseline_trial(large)["status"] == "oom"  # 7B in fp32


def test_steps_name_what_a_trial_adds(trials: pd.DataFrame) -> None:
    small = studies.studies(trials)[0]
    (both,) = small[small["label"] == "nf4 + LoRA r16 + checkpointing"]["steps"]
    assert both == {"precision": "nf4", "lora": "LoRA r16", "checkpointing": "checkpointing"}
    (sharded,) = small[small["label"] == "fp32 + FSDP full_shard ×2"]["steps"]
    assert sharded == {"fsdp": "FSDP full_shard ×2"}


def test_what_names_do_not_tell_is_added_to_them() -> None:
    alike = [
        made.measured(f"lora=on lora.targets={targets}") for targets in ("all-linear", "q_proj+v_proj")
    ]
    found = studies.trials(pd.DataFrame(alike))
    assert list(found["label"]) == [
        "fp32 + LoRA r16 lora.targets=all-linear",
        "fp32 + LoRA r16 lora.targets=q_proj+v_proj",
    ]


def test_a_skipped_trial_takes_its_sweeps_device(trials: pd.DataFrame) -> None:
    skipped = trials[(trials["status"] == "skipped") & (trials["method"] == "measure")]
    assert set(skipped["device"]) == {made.CPU.name}
    assert skipped["device_name"].isna().all()


def test_rows_without_a_definition_are_told_apart_by_their_columns() -> None:
    old = [made.measured(words) | {"definition": None} for words in made.GRID[:4]]
    found = studies.trials(pd.DataFrame(old))
    assert found["study"].nunique() == 1
    assert list(found["label"]) == [
        "fp32",
        "fp32 + checkpointing",
        "fp32 + LoRA r16",
        "fp32 + LoRA r16 + checkpointing",
    ]


def test_no_rows_are_no_trials() -> None:
    assert studies.studies(studies.trials(pd.DataFrame(columns=list(studies.COLUMNS)))) == []


NO_DEFINITIONS = ("", "{", "[1]", "null", '{"model": 1}', '{"model": {"layers": "x"}}', "[" * 9000)


@pytest.mark.parametrize("text", NO_DEFINITIONS)
def test_a_definition_that_is_none_is_not_believed(text: str) -> None:
    rows = pd.DataFrame([made.all_rows()[0] | {"definition": text}, made.all_rows()[1]])
    found = studies.trials(rows)
    assert len(found) == 2
    assert set(found["model"]) == {"llama-tiny"}
    assert predicted.errors(found) == []
