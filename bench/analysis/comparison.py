"""Compares two sets of measured rows, trial by trial: what got worse, by how much, and how surely. Pure.

Memory is compared exactly: an allocator's peak is the same to the byte in each run. Speed is compared over
replicates, each in a fresh process: the effect is the ratio of the medians, and the probability comes from
an exact rank-sum test (Mann and Whitney 1947) over all divisions of the replicates into two sets. Steps of
one process are not independent, so without replicates speed is not judged. The test must also hold for the
replicates' fastest steps: other load on the machine slows some steps, a change of the code slows all.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from bench.trial.outcome import STATUSES

Row = dict[str, Any]

_MOST_DIVISIONS = 20_000  # that the rank-sum test tries, in a moment


@dataclass(frozen=True)
class Thresholds:
    """What counts as a regression.

    Attributes:
        memory_bytes: a peak that grew by more bytes than this is one.
        slower: a throughput that fell by at least this share is one, if `p` is small enough.
        p: the largest probability of seeing such a loss by chance.
    """

    memory_bytes: int = 0
    slower: float = 0.03
    p: float = 0.01


@dataclass(frozen=True)
class Comparison:
    """One trial that is in both sets. Pairs are (before, after).

    Attributes:
        label: the trial's overrides, its name in a table.
        trial_id: the trial.
        replicates: how many rows each set has.
        statuses: the worst status in each set.
        peaks: the largest peak in each set, in bytes.
        rates: the median tokens per second and device in each set.
        p: the probability of so large a loss of speed if nothing had changed: the larger of those by the
            replicates' rates and by their fastest steps. None without replicates.
        regressions: what got worse, in words.
    """

    label: str
    trial_id: str
    replicates: tuple[int, int]
    statuses: tuple[str, str]
    peaks: tuple[int | None, int | None]
    rates: tuple[float | None, float | None]
    p: float | None
    regressions: tuple[str, ...]

    @property
    def memory_change(self) -> int | None:
        """By how many bytes the peak grew; None if either set has no peak."""
        before, after = self.peaks
        return None if before is None or after is None else after - before

    @property
    def speed_change(self) -> float | None:
        """The share of the throughput that was gained, negative if lost; None if either set has no rate."""
        before, after = self.rates
        return None if not before or after is None else after / before - 1

    @property
    def rank(self) -> tuple[int, float, float]:
        """The sort key, worst first: the number of regressions, then speed lost, then memory gained."""
        return (-len(self.regressions), self.speed_change or 0.0, -(self.memory_change or 0))


class OtherDeviceError(ValueError):
    """The two sets come from different devices; the message names them."""


def compare(
    before: Iterable[Row], after: Iterable[Row], thresholds: Thresholds, *, any_device: bool = False
) -> list[Comparison]:
    """The trials that are in both sets, the worst first.

    Args:
        before: the baseline's rows; predicted ones are ignored.
        after: the candidate's rows; predicted ones are ignored.
        thresholds: what counts as a regression.
        any_device: whether to compare rows of different devices too.

    Raises:
        OtherDeviceError: the sets are of different devices, and `any_device` is False.
    """
    old, new = by_trial(before), by_trial(after)
    shared = [trial_id for trial_id in old if trial_id in new]
    if not any_device:
        devices = [
            {row["device_name"] for trial_id in shared for row in rows[trial_id] if row["device_name"]}
            for rows in (old, new)
        ]
        if devices[0] and devices[1] and devices[0] != devices[1]:
            raise OtherDeviceError(
                f"{', '.join(sorted(devices[0]))} against {', '.join(sorted(devices[1]))}"
            )
    compared = [_compare_trial(old[trial_id], new[trial_id], thresholds) for trial_id in shared]
    return sorted(compared, key=lambda comparison: comparison.rank)


def halves(rows: Iterable[Row]) -> tuple[str, list[Row], str, list[Row]] | None:
    """Divides one set into two parts that measured the same trials.

    The parts are the two devices that share most trials. If no devices share any, they are the latest
    sweep that repeats trials of an earlier one, and the earliest sweep that it repeats.

    Returns:
        The older part's name and rows, then the newer part's; None if there are no such parts.
    """
    measured = [row for row in rows if row["method"] == "measure" and row["device_name"]]
    devices = _grouped(measured, lambda row: str(row["device_name"]))
    pairs = list(itertools.combinations(devices, 2))
    best = max(pairs, key=lambda pair: _shared_count(devices, *pair), default=None)
    if best and _shared_count(devices, *best):
        return best[0], devices[best[0]], best[1], devices[best[1]]
    sweeps = _grouped(measured, lambda row: f"{row['started_at']:%Y-%m-%d}, sweep {row['sweep_id']}")
    for number, newer in reversed(list(enumerate(sweeps))):
        for older in list(sweeps)[:number]:
            if _shared_count(sweeps, older, newer):
                return older, sweeps[older], newer, sweeps[newer]
    return None


def _grouped(rows: list[Row], name_of: Callable[[Row], str]) -> dict[str, list[Row]]:
    """The rows by name, in the order in which the names were first measured."""
    parts: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row["started_at"]):
        parts.setdefault(name_of(row), []).append(row)
    return parts


def _shared_count(parts: dict[str, list[Row]], one: str, other: str) -> int:
    return len({row["trial_id"] for row in parts[one]} & {row["trial_id"] for row in parts[other]})


def unmatched(before: Iterable[Row], after: Iterable[Row]) -> list[str]:
    """The baseline's trials that are not among the candidate's, by their overrides."""
    new = by_trial(after)
    return [_label(rows) for trial_id, rows in by_trial(before).items() if trial_id not in new]


def _label(rows: list[Row]) -> str:
    """A trial's name in a table: its overrides."""
    return str(rows[0]["overrides"]).removeprefix("python bench/run.py").strip() or "(defaults)"


def by_trial(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """The measured rows of each trial, by its id."""
    trials: dict[str, list[Row]] = {}
    for row in rows:
        if row["method"] == "measure":
            trials.setdefault(row["trial_id"], []).append(row)
    return trials


def _compare_trial(old: list[Row], new: list[Row], thresholds: Thresholds) -> Comparison:
    statuses = (_worst_status(old), _worst_status(new))
    peaks = (_largest_peak(old), _largest_peak(new))
    samples = [
        [row["tokens_per_sec_per_device"] for row in rows if row["tokens_per_sec_per_device"]]
        for rows in (old, new)
    ]
    rates = tuple(statistics.median(rate) if rate else None for rate in samples)
    chances = (chance_of_loss(*samples), chance_of_loss(_fastest_rates(old), _fastest_rates(new)))
    chance = max((chance for chance in chances if chance is not None), default=None)
    regressions = []
    if STATUSES.index(statuses[1]) > STATUSES.index(statuses[0]):
        regressions.append(f"{statuses[0]} became {statuses[1]}")
    if peaks[0] is not None and peaks[1] is not None and peaks[1] - peaks[0] > thresholds.memory_bytes:
        regressions.append("more memory")
    slower = rates[0] and rates[1] and rates[1] / rates[0] - 1 <= -thresholds.slower
    if slower and chance is not None and chance <= thresholds.p:
        regressions.append("slower")
    return Comparison(
        label=_label(new),
        trial_id=new[0]["trial_id"],
        replicates=(len(old), len(new)),
        statuses=statuses,
        peaks=peaks,
        rates=(rates[0], rates[1]),
        p=chance,
        regressions=tuple(regressions),
    )


def _fastest_rates(rows: list[Row]) -> list[float]:
    """The rate of each replicate's fastest step, in steps per second."""
    return [1 / min(row["step_seconds"]) for row in rows if row.get("step_seconds")]


def _worst_status(rows: list[Row]) -> str:
    """The worst status of any replicate."""
    return max((str(row["status"]) for row in rows), key=STATUSES.index)


def _largest_peak(rows: list[Row]) -> int | None:
    """The largest peak of any replicate that fits; None if there is none."""
    peaks = [row["peak_allocated_bytes"] for row in rows if row["status"] == "ok"]
    return max((int(peak) for peak in peaks if peak is not None), default=None)


def chance_of_loss(before: list[float], after: list[float]) -> float | None:
    """The probability that the rates of `after` rank so low, or lower, if nothing had changed.

    Args:
        before: rates, one for each replicate.
        after: rates, one for each replicate.

    Returns:
        The share, among divisions of the pooled rates into sets of these sizes, of those whose second set
        has at most the sum of ranks seen. Beyond `_MOST_DIVISIONS`, every n-th division is tried. None if
        either side has fewer than two rates.
    """
    if len(before) < 2 or len(after) < 2:
        return None
    pooled = [*before, *after]
    ranks = [sum(other < rate for other in pooled) + pooled.count(rate) / 2 for rate in pooled]
    seen = sum(ranks[len(before) :])
    stride = max(1, math.comb(len(pooled), len(after)) // _MOST_DIVISIONS)
    divisions = itertools.islice(itertools.combinations(ranks, len(after)), 0, None, stride)
    as_low = [sum(chosen) <= seen for chosen in divisions]
    return sum(as_low) / len(as_low)
