"""Claims of the literature, read from a ledger (analysis/claims.yaml) and judged.

A claim about bytes is judged by simulation, at the paper's own scale. A claim about time is judged by pairs
of measured trials that differ in one technique alone; for a claim about bytes such pairs are shown too.
Time is uncertain: a claim about it is confirmed only if the whole interval of the ratio confirms it, and
only by pairs whose ranks had a device each and whose model is no toy.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bench.analysis.neighbours import Ratio, ratios
from bench.analysis.studies import PEAK, RATE
from bench.config.compose import CommandError, trial_from
from bench.paths import SHIPPED
from bench.trial.platform import CUDA
from bench.trial.skip_rules import skip_reason
from bench.trial.spec import Trial


class LedgerError(ValueError):
    """The ledger is malformed, or a trial in it cannot exist; the message names the claim."""


LEDGER = SHIPPED / "analysis" / "claims.yaml"

_COLUMNS = {"peak": PEAK, "weights": "parameter_bytes", "tokens/s": RATE}


@dataclass(frozen=True)
class Pairs:
    """Which measured trials are paired for a claim: those that differ in one axis alone.

    Attributes:
        axis: the axis.
        before, after: its two levels.
        of: the quantity that is compared, `after` over `before`: a key of `_COLUMNS`.
        device: `gpu` if the claim is about GPUs only, else `any`.
        workload: `inference` if the claim is about inference only, else `any`.
    """

    axis: str
    before: str
    after: str
    of: str = "peak"
    device: str = "any"
    workload: str = "any"

    def __post_init__(self) -> None:
        if self.of not in _COLUMNS or self.device not in ("any", "gpu"):
            raise TypeError(f"pairs: of is one of {', '.join(_COLUMNS)}, and device is any or gpu")
        if self.workload not in ("any", "inference"):
            raise TypeError("pairs: workload is any or inference")

    def ratios(self, trials: pd.DataFrame) -> list[Ratio]:
        """The ratio, after over before, of each pair among the trials."""
        if self.device == "gpu":
            trials = trials[~trials["device"].str.startswith("CPU")]
        if self.workload == "inference":
            trials = trials[trials["workload"] != "train"]
        return ratios(trials, self.axis, self.before, self.after, _COLUMNS[self.of])


@dataclass(frozen=True)
class Claim:
    """One claim of the ledger.

    Attributes:
        claim: its words.
        source: the paper or page.
        before, after: key=value arguments of the trials to simulate; without `before`, `after` is
            compared in bytes.
        of: the columns whose sum is compared.
        pairs: the measured trials that are paired; without `after` they are what is judged.
        between: the least and the largest value that confirm the claim.
        untestable: why nothing can confirm it.
        note: what differs from the paper's setting, or why the result is what it is.
    """

    claim: str
    source: str
    before: str | None = None
    after: str | None = None
    of: tuple[str, ...] = ("peak_allocated_bytes",)
    pairs: Pairs | None = None
    between: tuple[float, float] | None = None
    untestable: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Finding:
    """A claim with its simulated and measured values.

    Attributes:
        claim: the claim.
        simulated: a ratio, or bytes if the claim has no `before`; None if it was not simulated.
        measured: the ratios of measured pairs.
    """

    claim: Claim
    simulated: float | None = None
    measured: tuple[Ratio, ...] = ()

    @property
    def judged(self) -> tuple[float, float] | None:
        """The interval that is judged: the simulated value, or the middle of the measured pairs' intervals.

        None if there is neither. Pairs of toys, and those whose ranks shared a device, do not count.
        """
        if self.claim.after:
            return None if self.simulated is None else (self.simulated, self.simulated)
        pairs = [pair for pair in self.measured if pair.comparable and not pair.toy]
        if not pairs:
            return None
        return statistics.median(pair.low for pair in pairs), statistics.median(pair.high for pair in pairs)

    @property
    def verdict(self) -> str:
        """`confirmed`, `contradicted`, `undecided` (measured, but not well enough), or `not testable`."""
        if self.claim.between is None:
            return "not testable"
        if self.judged is None:
            return "undecided" if self.measured and not self.claim.after else "not testable"
        (least, most), (low, high) = self.claim.between, self.judged
        if least <= low and high <= most:
            return "confirmed"
        return "contradicted" if high < least or low > most else "undecided"

    @property
    def why(self) -> str:
        """The claim's note, or the reason why there is no verdict."""
        if self.verdict in ("confirmed", "contradicted"):
            return self.claim.note
        if self.claim.untestable:
            return self.claim.untestable
        if self.claim.after:
            return "not simulated: run bench/claims.py"
        assert self.claim.pairs is not None
        pairs = self.claim.pairs
        if self.judged is not None:
            return "the interval reaches beyond what the claim allows: replicates=5 narrows it"
        if not self.measured:
            where = " on a GPU" if pairs.device == "gpu" else ""
            return (
                f"no two measured trials{where} differ in {pairs.axis}={pairs.before},{pairs.after} alone"
            )
        if all(not pair.comparable for pair in self.measured):
            return "the ranks shared one device: their speed says nothing about as many devices"
        return "only toy models were measured: their ratios say little about large ones"


def read_claims(path: Path) -> list[Claim]:
    """The claims of a ledger.

    Raises:
        LedgerError: a claim is malformed, or lacks a key.
    """
    claims = []
    for number, entry in enumerate(OmegaConf.to_container(OmegaConf.load(path)), 1):  # type: ignore[arg-type]
        try:
            values: dict[str, Any] = {str(key): value for key, value in entry.items()}
            for name in ("of", "between"):
                if name in values:
                    values[name] = tuple(values[name])
            if "pairs" in values:
                values["pairs"] = Pairs(**{key: _level(value) for key, value in values["pairs"].items()})
            claim = Claim(**values)
        except (TypeError, AttributeError, OmegaConfBaseException) as error:
            raise LedgerError(f"{path.name}, claim {number}: {error}") from None
        if (claim.untestable is None) != bool((claim.after or claim.pairs) and claim.between):
            raise LedgerError(f"{claim.claim}: needs `after` or `pairs` with `between`, or `untestable`")
        claims.append(claim)
    return claims


def trials_of(claim: Claim) -> dict[str, Trial]:
    """The trials that test the claim, simulated for CUDA, by their key=value arguments.

    Raises:
        LedgerError: a trial cannot be read, or cannot exist.
    """
    trials = {}
    for arguments in filter(None, (claim.before, claim.after)):
        try:
            trial = trial_from([*arguments.split(), "method=simulate", "device=cuda"])
        except CommandError as error:
            raise LedgerError(f"{claim.claim}: {error}") from None
        reason = skip_reason(trial, CUDA, 0)
        if reason:
            raise LedgerError(f"{claim.claim}: {reason}")
        trials[arguments] = trial
    return trials


def _level(value: Any) -> str:
    """The name of a level: YAML reads on and off as booleans."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def simulated(claim: Claim, columns: Mapping[str, Mapping[str, Any]]) -> float | None:
    """The claim's simulated value: a ratio, or bytes if it has no `before`; None if it names no trial, or
    one that could not be simulated.

    Args:
        claim: one claim.
        columns: the simulated columns, by the trials' key=value arguments.
    """
    if claim.after is None or not {claim.after, claim.before or claim.after} <= columns.keys():
        return None

    def total(arguments: str) -> float:
        return float(sum(columns[arguments][name] for name in claim.of))

    after = total(claim.after)
    return after / total(claim.before) if claim.before else after


def judge_claims(
    claims: Iterable[Claim], values: dict[str, float | None], trials: pd.DataFrame | None = None
) -> list[Finding]:
    """Every claim with its simulated and measured values.

    Args:
        claims: the ledger.
        values: the simulated values, by the claim's words.
        trials: what `studies.trials` returns; None if there are none.
    """
    return [
        Finding(
            claim,
            values.get(claim.claim),
            tuple(claim.pairs.ratios(trials)) if claim.pairs and trials is not None and len(trials) else (),
        )
        for claim in claims
    ]


def write_values(values: dict[str, float | None], path: Path) -> None:
    """Writes the simulated values to a file, for reports."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=1))


def read_values(path: Path) -> dict[str, float | None]:
    """The values that `write_values` wrote; empty if the file is missing or malformed."""
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(values, dict):
        return {}
    return {str(claim): float(value) for claim, value in values.items() if isinstance(value, int | float)}
