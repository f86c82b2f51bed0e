"""What the report says in words follows from the rows."""

from __future__ import annotations

import pandas as pd

from bench.analysis import predicted, studies
from bench.analysis.findings import findings, warnings
from bench.formatting import count_of, format_bytes, format_change
from tests import rows as made


def said(rows: list[made.Row]) -> list[str]:
    trials = studies.trials(pd.DataFrame(rows))
    return findings(studies.studies(trials), predicted.errors(trials))


def test_the_lowest_peak_and_the_best_technique_of_a_toy_that_is_named() -> None:
    rows = [made.measured(words) for words in made.GRID]
    peaks = {row["overrides"]: row["peak_allocated_bytes"] for row in rows if row["status"] == "ok"}
    first, *others = said(rows)
    plain = peaks["python bench/run.py " + made.GRID[0]]
    assert "nf4 + LoRA r16 + checkpointing" in first
    assert format_bytes(min(peaks.values())) in first
    assert format_change(min(peaks.values()) / plain - 1) in first
    assert any("one technique more, on the plainest trials that ran: " in line for line in others)
    subject = "llama-tiny, train, 4 × 128 tokens, CPU (made up, 2 cores) (a toy of "
    assert all(line.startswith(subject) for line in (first, *others))


def test_at_most_three() -> None:
    assert len(said(made.all_rows())) == 3


def test_running_out_of_memory_comes_first() -> None:
    rows = [made.measured(words, made.H100) for words in made.LARGE]
    lines = said(rows)
    subject = "llama-7b, train, 1 × 1024 tokens, NVIDIA H100 80GB HBM3: "
    assert lines[0].startswith(f"{subject}fp32 runs out of memory, as 2 of 8 trials do; nf4 + LoRA r16")
    # the plain trial has no peak to count from: each change names the trial that it is against
    assert any(
        "on the plainest trials that ran: " in line and " against bf16_pure" in line for line in lines
    )


def test_nothing_fits() -> None:
    rows = [made.measured(words, made.H100) for words in made.LARGE[:2]]
    (only,) = said(rows)
    assert only.endswith(
        "HBM3: nothing fits: all 2 trials ran out of memory. 79.1 GiB of memory do not suffice."
    )


def test_what_only_costs_is_said() -> None:
    slow = made.measured("optimizer=adafactor", slower=0.4, heavier=2**20)
    rows = [made.measured(""), slow]
    assert any("saves nothing here and is slower: adafactor" in line for line in said(rows))


def test_warnings_count_what_they_warn_of() -> None:
    noisy = made.measured("precision=bf16", made.H100) | {"device_throttled": True, "git_dirty": True}
    wide = made.measured("precision=bf16_pure", made.H100)
    wide |= {"tokens_per_sec_per_device_ci_high": wide["tokens_per_sec_per_device"] * 1.2}
    found = warnings(studies.trials(pd.DataFrame([made.measured("lora=on", made.H100), noisy, wide])))
    counts = dict(zip(found["what"], found["trials"], strict=True))
    assert counts["the device was throttled"] == 1
    assert counts["made from files that are in no commit"] == 1
    assert counts["the interval of tokens/s is wider than 5%"] == 1
    assert counts["timed in one process only: drift between processes is unknown"] == 3
    assert "others used the device" not in counts


def test_a_predicted_time_is_not_called_noisy() -> None:
    """Its interval is the prediction's: neither a quieter machine nor replicates narrow it."""
    wide = made.measured("", made.H100)
    rate = wide["tokens_per_sec_per_device"]
    ends = {"tokens_per_sec_per_device_ci_low": rate / 2, "tokens_per_sec_per_device_ci_high": rate * 2}
    row = made.predicted("", made.H100, "simulate", 1.0) | {"tokens_per_sec_per_device": rate} | ends
    found = warnings(studies.trials(pd.DataFrame([row])))
    assert not any("tokens/s" in what or "process" in what for what in found["what"])


def test_numbers_in_words() -> None:
    assert format_bytes(24.26 * 2**30) == "24.3 GiB"
    assert format_bytes(0.5 * 2**30) == "0.50 GiB"
    assert format_bytes(9610124) == "9.2 MiB"
    assert format_change(-0.359) == "−36 %"
    assert format_change(-0.001) == "0 %"
    assert format_change(0.1234, 1) == "+12.3 %"
    assert format_change(float("nan")) == ""
    assert (count_of(1, "trial"), count_of(2000, "trial")) == ("1 trial", "2,000 trials")
