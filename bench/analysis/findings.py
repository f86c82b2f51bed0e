"""A report's findings and warnings, in sentences. In: studies, trials and graded predictions. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from bench.analysis.accuracy import UNDER, Graded
from bench.analysis.studies import baseline_trial, reference_trial, row_dicts
from bench.analysis.tables import PEAK, RATE, alone, changed, frontier
from bench.formatting import format_bytes, format_change

_MOST_FINDINGS = 3
_WIDE = 0.05  # of the rate: a wider interval is warned of
_NOISY = 0.10  # of the median step: a wider interquartile range is warned of
_UNTRACKED = 0.05  # of the peak: more untracked bytes are warned of


def findings(studies: list[pd.DataFrame], all_graded: list[Graded]) -> list[str]:
    """At most three findings: about the first study, then about the predictions.

    Args:
        studies: what `studies.studies` returns, so the largest measured study first.
        all_graded: what `tables.errors` returns.
    """
    sentences = []
    if studies:
        study, reference = studies[0], reference_trial(studies[0])
        sentences = [_nothing_fits(study)] if reference is None else list(_about_study(study, reference))
    if all_graded:
        sentences.append(_about_predictions(all_graded))
    return list(filter(None, sentences))[:_MOST_FINDINGS]


def _about_study(study: pd.DataFrame, reference: dict[str, Any]) -> Iterator[str]:
    if baseline_trial(study)["status"] == "oom":
        fits = study[study["status"] == "ok"]
        failed = (study["status"] == "oom").sum()
        least = fits.nsmallest(1, PEAK).iloc[0]
        yield (
            f"{baseline_trial(study)['label']} runs out of memory, as do {failed} of {len(study)} trials; "
            f"{least['label']} needs least, {format_bytes(least[PEAK])}."
        )
    ranked = changed(study)
    ranked = ranked[(ranked["status"] == "ok") & ranked["peak_change"].notna()]
    best = ranked.nsmallest(1, "peak_change").iloc[0]
    if best["peak_change"] < -0.01:
        yield (
            f"Lowest peak: {best['label']} takes {format_bytes(best[PEAK])} instead of "
            f"{format_bytes(reference[PEAK])} ({reference['label']}), "
            f"{format_change(best['peak_change'])}{_at_speed(best)}."
        )
    # Trials of one technique differ from the baseline by it; from another reference they differ by more.
    if reference["baseline"]:
        single = alone(study)
        single = single[(single["status"] == "ok") & single["peak_change"].notna()]
        yield from _about_single_techniques(single, reference)
    if study[RATE].notna().sum() > 1:
        edge = frontier(study)
        yield f"No other trial beats these in both memory and speed: {'; '.join(edge['label'].head(4))}."


def _at_speed(row: Mapping[str, Any] | pd.Series[Any]) -> str:
    """The change of the speed, to follow a change of the peak; empty if there is no rate."""
    change = row["rate_change"]
    return "" if pd.isna(change) else f", at {format_change(change)} tokens/s"


def _about_single_techniques(single: pd.DataFrame, reference: dict[str, Any]) -> Iterator[str]:
    if not single.empty and single["peak_change"].min() < -0.01:
        top = single.nsmallest(1, "peak_change").iloc[0]
        saved = format_change(top["peak_change"])
        yield f"One technique alone: {top['added']} saves most, {saved}{_at_speed(top)}."
    yield from _clear_gains_and_losses(single, reference)


def _clear_gains_and_losses(single: pd.DataFrame, reference: dict[str, Any]) -> Iterator[str]:
    """Techniques that save memory and are faster, and those that save none and are slower.

    Only those whose interval of the rate does not overlap the reference's.
    """
    low, high = f"{RATE}_ci_low", f"{RATE}_ci_high"
    gains = single[(single["peak_change"] < -0.01) & (single[low] > reference[high])]
    if not gains.empty:
        yield f"Smaller and faster than {reference['label']}: {_changes(gains)}."
    losses = single[(single["peak_change"] > -0.01) & (single[high] < reference[low])]
    if not losses.empty:
        yield f"Saves nothing here and is slower: {_changes(losses)}."


def _changes(single: pd.DataFrame) -> str:
    """Each technique with its changes."""
    return ", ".join(
        f"{row['added']} ({format_change(row['peak_change'])}{_at_speed(row)})" for row in row_dicts(single)
    )


def _nothing_fits(study: pd.DataFrame) -> str:
    failed = study[study["status"] == "oom"]
    if failed.empty:
        return f"No trial of {len(study)} came to an end: {study['reason'].iloc[0]}"
    memory = failed["device_memory_bytes"].max()
    capacity = f" {format_bytes(memory)} of memory do not suffice." if pd.notna(memory) else ""
    return f"Nothing fits: all {len(failed)} trials ran out of memory.{capacity}"


def _about_predictions(all_graded: list[Graded]) -> str:
    errors = [graded.errors["simulate"] for graded in all_graded if "simulate" in graded.errors]
    if not errors:
        return ""
    under = sum(error < UNDER for error in errors)
    return (
        f"Simulation predicts {len(errors)} measured peaks with a median error of "
        f"{statistics.median(map(abs, errors)):.2%} (worst {max(errors, key=abs):+.2%}, "
        f"{under} under-estimates beyond 1 %)."
    )


def warnings(trials: pd.DataFrame) -> pd.DataFrame:
    """The warnings about these trials, one a line: `what`, `trials` (how many), `example`, `remedy`."""
    fits = trials[trials["status"] == "ok"]
    rate, interval = fits[RATE], fits[f"{RATE}_ci_high"] - fits[f"{RATE}_ci_low"]
    timed = fits[rate.notna()]
    found = [
        _warning(
            "the device was throttled",
            fits[_true(fits["device_throttled"])],
            "cool it, or lower its clocks",
        ),
        _warning(
            "others used the device", fits[_true(fits["device_shared"])], "measure on a device of your own"
        ),
        _warning(
            f"the interval of tokens/s is wider than {_WIDE:.0%}",
            fits[interval > _WIDE * rate],
            "timing.budget_seconds=30, a quiet machine",
        ),
        _warning(
            f"steps spread by more than {_NOISY:.0%} (interquartile range over median)",
            fits[fits["step_seconds_iqr"] > _NOISY * fits["step_seconds_median"]],
            "timing.warmup_steps=10, a quiet machine",
        ),
        _warning(
            "timed in one process only: drift between processes is unknown",
            timed[timed["replicates"] < 2],
            "replicates=5",
        ),
        _warning(
            f"more than {_UNTRACKED:.0%} of the peak belongs to no category",
            fits[fits["untracked_bytes"] > _UNTRACKED * fits[PEAK]],
            "read untracked_bytes; operations allocate inside themselves",
        ),
        _warning("ended in an error", trials[trials["status"] == "error"], "read the row's traceback"),
        _warning("ended by timeout", trials[trials["status"] == "timeout"], "timeout_seconds=3600"),
        _warning(
            "made from files that are in no commit",
            trials[_true(trials["git_dirty"])],
            "commit, and measure again",
        ),
    ]
    for column in ("torch_version", "git_commit", "driver_version"):
        values = trials[column].dropna().unique()
        if len(values) > 1:
            shown = ", ".join(sorted(map(str, values)))[:80]
            found.append(
                {
                    "what": f"several values of {column}",
                    "trials": len(trials),
                    "example": shown,
                    "remedy": "compare like with like",
                }
            )
    return pd.DataFrame(
        [warning for warning in found if warning["trials"]], columns=["what", "trials", "example", "remedy"]
    )


def _true(flags: pd.Series[Any]) -> pd.Series[bool]:
    """Where the flag is true; null counts as false."""
    return flags.map(lambda flag: flag is True or flag == 1.0)


def _warning(what: str, concerned: pd.DataFrame, remedy: str) -> dict[str, Any]:
    first = concerned.head(1)
    example = "" if first.empty else f"{first['label'].iloc[0]} ({first['model'].iloc[0]})"
    return {"what": what, "trials": len(concerned), "example": example, "remedy": remedy}
