"""A report's findings and warnings, in sentences. In: studies, trials and graded predictions. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from typing import Any

import pandas as pd

from bench.analysis.grading.accuracy import UNDER, Graded
from bench.analysis.neighbours import is_toy, rates_differ
from bench.analysis.studies import PEAK, RATE, baseline_trial, row_dicts
from bench.analysis.tables import by_technique, changed, fastest_within
from bench.formatting import format_bytes, format_change

_MOST_FINDINGS = 3
_MOST_BUDGETS = 4  # of memory, in one finding
_WIDE = 0.05  # of the rate: a wider interval is warned of
_NOISY = 0.10  # of the median step: a wider interquartile range is warned of
_UNTRACKED = 0.05  # of the peak: more untracked bytes are warned of


def findings(studies: list[pd.DataFrame], all_graded: list[Graded]) -> list[str]:
    """At most three findings: about the first study, then about the predictions.

    Those about a study begin with its model, shape and device, for without them they would be read as true
    of all.

    Args:
        studies: what `studies.studies` returns, so the largest measured study first.
        all_graded: what `predicted.errors` returns.
    """
    sentences = []
    if studies:
        subject = subject_of(studies[0])
        sentences = [f"{subject}: {sentence}" for sentence in _about_study(studies[0])]
    if all_graded:
        sentences.append(_about_predictions(all_graded))
    return list(filter(None, sentences))[:_MOST_FINDINGS]


def subject_of(study: pd.DataFrame) -> str:
    """The study's model, shape and device in words; of a toy model that it is one."""
    title, sizes = str(study["title"].iloc[0]), study["param_count"].dropna()
    if sizes.empty or not is_toy({"param_count": sizes.max()}):
        return title
    return f"{title} (a toy of {sizes.max() / 1e6:,.1f} million parameters)"


def _about_study(study: pd.DataFrame) -> Iterator[str]:
    plain, fits = baseline_trial(study), study[(study["status"] == "ok") & study[PEAK].notna()]
    if fits.empty:
        yield _nothing_fits(study)
        return
    if plain["status"] == "oom":
        failed = (study["status"] == "oom").sum()
        least = row_dicts(fits.nsmallest(1, PEAK))[0]
        yield (
            f"{plain['label']} runs out of memory, as {failed} of {len(study)} trials do; "
            f"{least['label']} needs least, {format_bytes(least[PEAK])}."
        )
    ranked = changed(study)
    best = ranked[ranked["peak_change"].notna()].nsmallest(1, "peak_change")
    for row in row_dicts(best[best["peak_change"] < -0.01]):
        yield (
            f"lowest peak: {row['label']} takes {format_bytes(row[PEAK])} instead of "
            f"{format_bytes(plain[PEAK])} ({plain['label']}), "
            f"{format_change(row['peak_change'])}{_at_speed(row['rate_change'], rates_differ(plain, row))}."
        )
    edge = fastest_within(study)
    if len(edge) > 1:
        fastest = "; ".join(
            f"from {format_bytes(row[PEAK])} on {row['label']}, {row[RATE]:,.0f} tokens/s"
            for row in row_dicts(edge.tail(_MOST_BUDGETS))
        )
        yield f"fastest within so much memory for tensors: {fastest}."
    yield from _about_single_techniques(by_technique(study))


def _at_speed(rate_change: float, told_apart: bool) -> str:
    """The change of the speed, to follow a change of the peak; empty if there is no rate."""
    if math.isnan(rate_change):
        return ""
    return f", at {format_change(rate_change)} tokens/s" if told_apart else ", at a speed not told apart"


def _about_single_techniques(single: pd.DataFrame) -> Iterator[str]:
    """The technique that saves most, those that save memory and are faster, and those that only cost."""
    for top in row_dicts(single[single["peak_change"] < -0.01].head(1)):
        yield f"one technique more, on the plainest trials that ran: {_in_words(top)} saves most."
    differ = single[single["rates_differ"]]
    gains = differ[(differ["peak_change"] < -0.01) & (differ["rate_change"] > 0)]
    if not gains.empty:
        yield f"smaller and faster: {_changes(gains)}."
    losses = differ[(differ["peak_change"] > -0.01) & (differ["rate_change"] < 0)]
    if not losses.empty:
        yield f"saves nothing here and is slower: {_changes(losses)}."


def _changes(single: pd.DataFrame) -> str:
    """Each technique with its changes."""
    return ", ".join(map(_in_words, row_dicts(single)))


def _in_words(row: dict[str, Any]) -> str:
    """A technique, what it was added to, and what it changed."""
    speed = _at_speed(row["rate_change"], row["rates_differ"])
    return f"{row['added']} against {row['against']} ({format_change(row['peak_change'])}{speed})"


def _nothing_fits(study: pd.DataFrame) -> str:
    failed = study[study["status"] == "oom"]
    if failed.empty:
        return f"no trial of {len(study)} came to an end: {study['reason'].iloc[0]}"
    memory = failed["device_memory_bytes"].max()
    capacity = f" {format_bytes(memory)} of memory do not suffice." if pd.notna(memory) else ""
    return f"nothing fits: all {len(failed)} trials ran out of memory.{capacity}"


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
    timed = fits[fits[RATE].notna() & (fits["method"] == "measure")]  # a predicted time has no noise
    rate, interval = timed[RATE], timed[f"{RATE}_ci_high"] - timed[f"{RATE}_ci_low"]
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
            timed[interval > _WIDE * rate],
            "timing.budget_seconds=30, a quiet machine",
        ),
        _warning(
            f"steps spread by more than {_NOISY:.0%} (interquartile range over median)",
            timed[timed["step_seconds_iqr"] > _NOISY * timed["step_seconds_median"]],
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
