"""Two sets of measured rows, matched by trial: what got worse, by how much, and how sure that is. Pure.

Memory is compared exactly: an allocator repeats itself to the byte. Speed is compared over replicates, each
one fresh process: the effect is the ratio of the medians, the confidence an exact rank-sum test (Mann and
Whitney 1947) over all divisions of the replicates into two sets. Steps of one process are not independent,
so without replicates nothing is called a regression of speed. The replicates' fastest steps must say so
too: what else runs on a machine comes and goes and slows some steps, a change of the code slows them all.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from bench.formatting import markdown_table as markdown_table
from bench.trial.outcome import STATUSES

Row = dict[str, Any]

_MOST_DIVISIONS = 20_000


@dataclass(frozen=True)
class Thresholds:
    """What counts as a regression.

    `memory_bytes`: more than this much more at the peak; `slower`: a larger share of the throughput lost;
    `p`: with at most this probability of seeing it by chance.
    """

    memory_bytes: int = 0
    slower: float = 0.03
    p: float = 0.01


@dataclass(frozen=True)
class Comparison:
    """One trial in both sets. Changes are new over old: bytes, and a share of the throughput.

    `p` is the chance of so large a loss of speed if nothing had changed, by the replicates' medians or by
    their fastest steps, whichever is the likelier; None without replicates.
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
        """Bytes more at the peak."""
        before, after = self.peaks
        return None if before is None or after is None else after - before

    @property
    def speed_change(self) -> float | None:
        """Share of the throughput gained; negative is slower."""
        before, after = self.rates
        return None if not before or after is None else after / before - 1

    @property
    def rank(self) -> tuple[int, float, float]:
        """The worst first: regressions, then speed lost, then memory gained."""
        return (-len(self.regressions), self.speed_change or 0.0, -(self.memory_change or 0))


class OtherDevice(ValueError):  # noqa: N818  # reads as what is the matter
    """The two sets come from different devices; the message names them."""


def compare(
    before: Iterable[Row], after: Iterable[Row], thresholds: Thresholds, *, any_device: bool = False
) -> list[Comparison]:
    """Trials that both sets hold, the worst first.

    Args:
        before: the baseline's rows; only measured ones count.
        after: the candidate's.
        thresholds: what counts as a regression.
        any_device: compare rows of different devices too.

    Raises:
        OtherDevice: unless asked to, rows of different devices are not compared.
    """
    old, new = _by_trial(before), _by_trial(after)
    shared = [trial_id for trial_id in old if trial_id in new]
    if not any_device:
        devices = [
            {row["device_name"] for trial_id in shared for row in rows[trial_id] if row["device_name"]}
            for rows in (old, new)
        ]
        if devices[0] and devices[1] and devices[0] != devices[1]:
            raise OtherDevice(f"{', '.join(sorted(devices[0]))} against {', '.join(sorted(devices[1]))}")
    found = [_compared(old[trial_id], new[trial_id], thresholds) for trial_id in shared]
    return sorted(found, key=lambda comparison: comparison.rank)


def halves(rows: Iterable[Row]) -> tuple[str, list[Row], str, list[Row]] | None:
    """Two parts of one set that measured the same trials.

    The two devices that share most trials, or else the latest sweep that repeats trials of an earlier one,
    with the earliest that it repeats.

    Returns:
        The older part's name and rows, then the newer's; None if no trial was measured twice so.
    """
    measured = [row for row in rows if row["method"] == "measure" and row["device_name"]]
    devices = _parts(measured, lambda row: str(row["device_name"]))
    pairs = list(itertools.combinations(devices, 2))
    best = max(pairs, key=lambda pair: _shared(devices, *pair), default=None)
    if best and _shared(devices, *best):
        return best[0], devices[best[0]], best[1], devices[best[1]]
    sweeps = _parts(measured, lambda row: f"{row['started_at']:%Y-%m-%d}, sweep {row['sweep_id']}")
    for number, newer in reversed(list(enumerate(sweeps))):
        for older in list(sweeps)[:number]:
            if _shared(sweeps, older, newer):
                return older, sweeps[older], newer, sweeps[newer]
    return None


def _parts(rows: list[Row], name_of: Callable[[Row], str]) -> dict[str, list[Row]]:
    """The rows by name, the name that was first measured first."""
    parts: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row["started_at"]):
        parts.setdefault(name_of(row), []).append(row)
    return parts


def _shared(parts: dict[str, list[Row]], one: str, other: str) -> int:
    return len({row["trial_id"] for row in parts[one]} & {row["trial_id"] for row in parts[other]})


def _by_trial(rows: Iterable[Row]) -> dict[str, list[Row]]:
    trials: dict[str, list[Row]] = {}
    for row in rows:
        if row["method"] == "measure":
            trials.setdefault(row["trial_id"], []).append(row)
    return trials


def _compared(old: list[Row], new: list[Row], thresholds: Thresholds) -> Comparison:
    statuses = (_status(old), _status(new))
    peaks = (_peak(old), _peak(new))
    samples = [
        [row["tokens_per_sec_per_device"] for row in rows if row["tokens_per_sec_per_device"]]
        for rows in (old, new)
    ]
    rates = tuple(statistics.median(rate) if rate else None for rate in samples)
    chances = (chance_of_loss(*samples), chance_of_loss(_fastest(old), _fastest(new)))
    chance = max((chance for chance in chances if chance is not None), default=None)
    regressions = []
    if STATUSES.index(statuses[1]) > STATUSES.index(statuses[0]):
        regressions.append(f"{statuses[0]} became {statuses[1]}")
    if peaks[0] is not None and peaks[1] is not None and peaks[1] - peaks[0] > thresholds.memory_bytes:
        regressions.append("more memory")
    slower = rates[0] and rates[1] and rates[1] / rates[0] - 1 <= -thresholds.slower
    if slower and chance is not None and chance <= thresholds.p:
        regressions.append("slower")
    label = str(new[0]["overrides"]).removeprefix("python bench/run.py").strip() or "(defaults)"
    return Comparison(
        label=label,
        trial_id=new[0]["trial_id"],
        replicates=(len(old), len(new)),
        statuses=statuses,
        peaks=peaks,
        rates=(rates[0], rates[1]),
        p=chance,
        regressions=tuple(regressions),
    )


def _fastest(rows: list[Row]) -> list[float]:
    """Each replicate's fastest step, as a rate: steps a second."""
    return [1 / min(row["step_seconds"]) for row in rows if row.get("step_seconds")]


def _status(rows: list[Row]) -> str:
    """The worst that any replicate came to."""
    return max((str(row["status"]) for row in rows), key=STATUSES.index)


def _peak(rows: list[Row]) -> int | None:
    """The largest of the replicates' peaks."""
    peaks = [row["peak_allocated_bytes"] for row in rows if row["status"] == "ok"]
    return max((int(peak) for peak in peaks if peak is not None), default=None)


def chance_of_loss(before: list[float], after: list[float]) -> float | None:
    """The probability that rates rank as low as `after` does, or lower, if nothing had changed.

    Args:
        before: rates, one for each replicate.
        after: rates.

    Returns:
        The share of all divisions of the pooled rates into two such sets whose second has at most this sum
        of ranks (of as many as can be tried in a moment); None with fewer than two on either side.
    """
    if len(before) < 2 or len(after) < 2:
        return None
    pooled = [*before, *after]
    ranks = [sum(other < rate for other in pooled) + pooled.count(rate) / 2 for rate in pooled]
    seen = sum(ranks[len(before) :])
    every = max(1, math.comb(len(pooled), len(after)) // _MOST_DIVISIONS)
    divisions = itertools.islice(itertools.combinations(ranks, len(after)), 0, None, every)
    as_low = [sum(chosen) <= seen for chosen in divisions]
    return sum(as_low) / len(as_low)


def comparison_lines(found: list[Comparison]) -> tuple[list[str], list[list[str]]]:
    """The comparison as a header and rows of text, the worst first."""
    header = ["trial", "verdict", "peak MiB", "change", "tokens/s/device", "change", "p", "replicates"]
    rows = []
    for one in found:
        before, after = one.peaks
        old, new = one.rates
        rows.append(
            [
                one.label,
                ", ".join(one.regressions) or "no worse",
                "" if before is None or after is None else f"{before / 2**20:.2f} -> {after / 2**20:.2f}",
                "" if one.memory_change is None else f"{one.memory_change:+,} B",
                "" if old is None or new is None else f"{old:,.0f} -> {new:,.0f}",
                "" if one.speed_change is None else f"{one.speed_change:+.1%}",
                "" if one.p is None else f"{one.p:.3f}",
                f"{one.replicates[0]} -> {one.replicates[1]}",
            ]
        )
    return header, rows


def comparison_markdown(found: list[Comparison]) -> str:
    """The same as a Markdown table, for a pull request; nothing if nothing was compared."""
    if not found:
        return ""
    header, rows = comparison_lines(found)
    return markdown_table(header, [[f"`{row[0]}`", *row[1:]] for row in rows])


def verdict(found: list[Comparison], before: list[Row], after: list[Row]) -> list[str]:
    """What the comparison comes to, in sentences; the last one says whether anything got worse."""
    if not found:
        return [f"Nothing to compare: no trial is in both sets ({len(before)} rows, {len(after)} rows)."]
    said = []
    gone = len(_by_trial(before).keys() - _by_trial(after).keys())
    if gone:
        said.append(f"{gone} more of the baseline's trials are not among the candidate's.")
    alone = sum(one.p is None for one in found)
    if alone:
        said.append(f"Speed is not judged for {alone} trials without replicates (replicates=5).")
    worse = [one for one in found if one.regressions]
    if worse:
        reasons = ", ".join(worse[0].regressions)
        worst = f"the worst: {worse[0].label} ({reasons})"
        return [*said, f"{len(worse)} of {len(found)} trials got worse; {worst}"]
    return [*said, f"None of {len(found)} trials got worse."]
