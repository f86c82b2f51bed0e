"""What a person should take away, in words: the findings that matter most, and what to be wary of. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from bench.analysis.accuracy import UNDER, Graded
from bench.analysis.studies import baseline_trial, each_study, reference_trial
from bench.analysis.tables import PEAK, RATE, alone, changed, frontier
from bench.formatting import format_bytes, format_change

_MOST = 3
_WIDE = 0.05  # an interval wider than this share of the rate
_NOISY = 0.10  # an interquartile range wider than this share of the median step
_UNTRACKED = 0.05


def findings(studies: list[pd.DataFrame], all_graded: list[Graded]) -> list[str]:
    """The three findings that matter most, of the study with the most trials; fewer where there is little.

    Args:
        studies: what `studies.studies` returns.
        all_graded: what `tables.errors` returns.
    """
    said = []
    if studies:
        first = reference_trial(studies[0])
        said = [_nothing_fits(studies[0])] if first is None else list(_of_study(studies[0], first))
    if all_graded:
        said.append(_of_predictions(all_graded))
    return list(filter(None, said))[:_MOST]


def _of_study(study: pd.DataFrame, first: dict[str, Any]) -> Iterator[str]:
    if baseline_trial(study)["status"] == "oom":
        fits = study[study["status"] == "ok"]
        full = (study["status"] == "oom").sum()
        least = fits.nsmallest(1, PEAK).iloc[0]
        yield (
            f"{baseline_trial(study)['label']} runs out of memory, as do {full} of {len(study)} trials; "
            f"{least['label']} needs least, {format_bytes(least[PEAK])}."
        )
    ranked = changed(study)
    ranked = ranked[(ranked["status"] == "ok") & ranked["peak_change"].notna()]
    best = ranked.nsmallest(1, "peak_change").iloc[0]
    if best["peak_change"] < -0.01:
        yield (
            f"Lowest peak: {best['label']} takes {format_bytes(best[PEAK])} instead of "
            f"{format_bytes(first[PEAK])} ({first['label']}), "
            f"{format_change(best['peak_change'])}{_at(best)}."
        )
    if first["baseline"]:  # else what is alone differs from what changes are counted from by two techniques
        single = alone(study)
        yield from _of_single(single[(single["status"] == "ok") & single["peak_change"].notna()], first)
    if study[RATE].notna().sum() > 1:
        edge = frontier(study)
        yield f"No other trial beats these in both memory and speed: {'; '.join(edge['label'].head(4))}."


def _at(row: Mapping[str, Any] | pd.Series[Any]) -> str:
    change = row["rate_change"]
    return "" if pd.isna(change) else f", at {format_change(change)} tokens/s"


def _of_single(single: pd.DataFrame, first: dict[str, Any]) -> Iterator[str]:
    if not single.empty and single["peak_change"].min() < -0.01:
        top = single.nsmallest(1, "peak_change").iloc[0]
        saved = format_change(top["peak_change"])
        yield f"One technique alone: {top['added']} saves most, {saved}{_at(top)}."
    yield from _gifts_and_losses(single, first)


def _gifts_and_losses(single: pd.DataFrame, first: dict[str, Any]) -> Iterator[str]:
    """Techniques that cost nothing, and those that only cost: where intervals leave no doubt."""
    low, high = f"{RATE}_ci_low", f"{RATE}_ci_high"
    free = single[(single["peak_change"] < -0.01) & (single[low] > first[high])]
    if not free.empty:
        names = [f"{r['added']} ({format_change(r['peak_change'])}{_at(r)})" for r in each_study(free)]
        yield f"Smaller and faster than {first['label']}: {', '.join(names)}."
    lost = single[(single["peak_change"] > -0.01) & (single[high] < first[low])]
    if not lost.empty:
        names = [f"{r['added']} ({format_change(r['peak_change'])}{_at(r)})" for r in each_study(lost)]
        yield f"Saves nothing here and is slower: {', '.join(names)}."


def _nothing_fits(study: pd.DataFrame) -> str:
    full = study[study["status"] == "oom"]
    if full.empty:
        return f"No trial of {len(study)} came to an end: {study['reason'].iloc[0]}"
    room = full["device_memory_bytes"].max()
    held = f" {format_bytes(room)} of memory do not suffice." if pd.notna(room) else ""
    return f"Nothing fits: all {len(full)} trials ran out of memory.{held}"


def _of_predictions(all_graded: list[Graded]) -> str:
    errors = [one.errors["simulate"] for one in all_graded if "simulate" in one.errors]
    if not errors:
        return ""
    under = sum(error < UNDER for error in errors)
    return (
        f"Simulation predicts {len(errors)} measured peaks with a median error of "
        f"{statistics.median(map(abs, errors)):.2%} (worst {max(errors, key=abs):+.2%}, "
        f"{under} under-estimates beyond 1 %)."
    )


def warnings(trials: pd.DataFrame) -> pd.DataFrame:
    """What to be wary of in these trials: `what`, `trials` (how many), `example`, `remedy`."""
    fits = trials[trials["status"] == "ok"]
    rate, wide = fits[RATE], fits[f"{RATE}_ci_high"] - fits[f"{RATE}_ci_low"]
    timed = fits[rate.notna()]
    said = [
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
            fits[wide > _WIDE * rate],
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
            said.append(
                {
                    "what": f"several values of {column}",
                    "trials": len(trials),
                    "example": shown,
                    "remedy": "compare like with like",
                }
            )
    return pd.DataFrame(
        [one for one in said if one["trials"]], columns=["what", "trials", "example", "remedy"]
    )


def _true(flags: pd.Series[Any]) -> pd.Series[bool]:
    return flags.map(lambda flag: flag is True or flag == 1.0)


def _warning(what: str, of: pd.DataFrame, remedy: str) -> dict[str, Any]:
    example = f"{of['label'].iloc[0]} ({of['model'].iloc[0]})" if len(of) else ""
    return {"what": what, "trials": len(of), "example": example, "remedy": remedy}
