"""Claims of the literature: read from the ledger, and judged by what is simulated and by what was measured.

A claim about bytes is simulated, at the paper's own scale. A claim about time takes pairs of measured
trials that differ in the one technique alone; claims about bytes show such pairs too, where the rows hold
them.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bench.analysis.tables import PEAK, RATE, ratios
from bench.config.compose import CommandError, trial_from
from bench.formatting import markdown_table as markdown_table
from bench.paths import ROOT
from bench.trial.platform import CUDA
from bench.trial.skip_rules import skip_reason
from bench.trial.spec import Trial


class LedgerError(ValueError):
    """The ledger says something that cannot be tested; the message names the claim."""


LEDGER = ROOT / "analysis" / "claims.yaml"

_COLUMNS = {"peak": PEAK, "weights": "parameter_bytes", "tokens/s": RATE}


@dataclass(frozen=True)
class Pairs:
    """Measured trials that differ in one axis alone: `of` at its level `after` over `of` at `before`.

    `device` is `gpu` where other devices say nothing about the claim, `workload` is `inference` where
    training says nothing.
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

    def ratios(self, trials: pd.DataFrame) -> list[float]:
        """After over before, one number for each pair."""
        if self.device == "gpu":
            trials = trials[~trials["device"].str.startswith("CPU")]
        if self.workload == "inference":
            trials = trials[trials["workload"] != "train"]
        return ratios(trials, self.axis, self.before, self.after, _COLUMNS[self.of])


@dataclass(frozen=True)
class Claim:
    """One claim: its words, its source, and what confirms it, or why nothing can.

    `before` and `after` are trials to simulate and `between` the values that confirm the claim; with
    `pairs` alone, measured trials are judged by `between`. `note` says what differs from the paper's
    setting, or why the outcome is what it is.
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
    """A claim and what was found.

    `simulated` is a ratio, or bytes where the claim has no `before`; `measured` are ratios of measured
    pairs.
    """

    claim: Claim
    simulated: float | None = None
    measured: tuple[float, ...] = ()

    @property
    def value(self) -> float | None:
        """What is judged: the simulation at the paper's scale, else the median of the measured pairs."""
        if self.claim.after:
            return self.simulated
        return statistics.median(self.measured) if self.measured else None

    @property
    def verdict(self) -> str:
        """`confirmed`, `contradicted`, or `not testable`."""
        if self.value is None or self.claim.between is None:
            return "not testable"
        low, high = self.claim.between
        return "confirmed" if low <= self.value <= high else "contradicted"

    @property
    def why(self) -> str:
        """The claim's note; for one that is not testable, the reason."""
        if self.verdict != "not testable":
            return self.claim.note
        if self.claim.untestable:
            return self.claim.untestable
        if self.claim.after:
            return "not simulated: run bench/claims.py"
        assert self.claim.pairs is not None
        on = " on a GPU" * (self.claim.pairs.device == "gpu")
        axis, before, after = self.claim.pairs.axis, self.claim.pairs.before, self.claim.pairs.after
        return f"no two measured trials{on} differ in {axis}={before},{after} alone"


def read_claims(path: Path) -> list[Claim]:
    """The claims of a ledger.

    Raises:
        LedgerError: a claim lacks something.
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
    """The trials that test the claim, by their words; simulated, for CUDA.

    Raises:
        LedgerError: a trial cannot be read, or cannot exist.
    """
    trials = {}
    for words in filter(None, (claim.before, claim.after)):
        try:
            trial = trial_from([*words.split(), "method=simulate", "device=cuda"])
        except CommandError as error:
            raise LedgerError(f"{claim.claim}: {error}") from None
        reason = skip_reason(trial, CUDA, 0)
        if reason:
            raise LedgerError(f"{claim.claim}: {reason}")
        trials[words] = trial
    return trials


def _level(value: Any) -> str:
    """A level as its name: YAML reads on and off as booleans."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def simulated(claim: Claim, columns: Mapping[str, Mapping[str, Any]]) -> float | None:
    """What the claim's trials come to: a ratio, or bytes; None where it names none.

    Args:
        claim: one claim.
        columns: what was simulated, by the trials' words.
    """
    if claim.after is None:
        return None

    def total(words: str) -> float:
        return float(sum(columns[words][name] for name in claim.of))

    after = total(claim.after)
    return after / total(claim.before) if claim.before else after


def judge_claims(
    claims: Iterable[Claim], values: dict[str, float | None], trials: pd.DataFrame | None = None
) -> list[Finding]:
    """Every claim with what was found.

    Args:
        claims: the ledger.
        values: what was simulated, by the claim's words.
        trials: measured trials (`studies.trials`), if there are any.
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
    """Keeps what was simulated, for reports."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=1))


def read_values(path: Path) -> dict[str, float | None]:
    """What `write_values` kept; nothing if there is nothing, or nothing to be made of it."""
    try:
        kept = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(kept, dict):
        return {}
    return {str(claim): float(value) for claim, value in kept.items() if isinstance(value, int | float)}


def lines(found: Iterable[Finding]) -> tuple[list[str], list[list[str]]]:
    """The claims as a header and rows of text, those that were tested first."""
    header = ["claim", "expected", "simulated", "measured here", "verdict", "note", "source"]
    rows = []
    for finding in sorted(found, key=lambda finding: finding.value is None):
        claim = finding.claim
        pairs = len(finding.measured)
        rows.append(
            [
                claim.claim,
                _expected(claim),
                "" if finding.simulated is None else _shown(finding.simulated, claim),
                f"{statistics.median(finding.measured):.3g} ({pairs} pair{'s' * (pairs != 1)})"
                if pairs
                else "",
                finding.verdict,
                finding.why,
                claim.source,
            ]
        )
    return header, rows


def markdown(found: Iterable[Finding]) -> str:
    """The same as a Markdown table."""
    return markdown_table(*lines(found))


def _expected(claim: Claim) -> str:
    if claim.between is None:
        return ""
    low, high = claim.between
    if math.isinf(high):
        return f"at least {_shown(low, claim)}"
    return f"{_shown(low, claim)} to {_shown(high, claim)}" if low else f"at most {_shown(high, claim)}"


def _shown(value: float, claim: Claim) -> str:
    return f"{value:.3g}" if claim.before or claim.pairs else f"{value / 1e9:,.3g} GB"


def summary(found: Iterable[Finding]) -> str:
    """How many of which verdict."""
    verdicts = Counter(finding.verdict for finding in found)
    counted = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common())
    return f"{sum(verdicts.values())} claims: {counted}. Simulated for CUDA."
