"""Claims of the literature: read from the ledger, turned into trials, judged by what simulation finds."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bench.config import CommandError, trial_from
from bench.rules import skip_reason
from bench.trial import Trial


class LedgerError(ValueError):
    """The ledger says something that cannot be tested; the message names the claim."""


@dataclass(frozen=True)
class Claim:
    """One claim: its words, its source, and either trials with the values that confirm it, or why not.

    `note` says what of the trial differs from the paper's setting, or why the outcome is what it is.
    """

    claim: str
    source: str
    before: str | None = None
    after: str | None = None
    of: tuple[str, ...] = ("peak_allocated_bytes",)
    between: tuple[float, float] | None = None
    untestable: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Finding:
    """A claim and what was found: a ratio, or bytes where the claim has no `before`; None if untestable."""

    claim: Claim
    value: float | None

    @property
    def verdict(self) -> str:
        """`confirmed`, `contradicted`, or `not testable`."""
        if self.value is None or self.claim.between is None:
            return "not testable"
        low, high = self.claim.between
        return "confirmed" if low <= self.value <= high else "contradicted"


def read(path: Path) -> list[Claim]:
    """The claims of a ledger.

    Raises:
        LedgerError: a claim lacks something, or its trials cannot exist.
    """
    claims = []
    for number, entry in enumerate(OmegaConf.to_container(OmegaConf.load(path)), 1):  # type: ignore[arg-type]
        try:
            values: dict[str, Any] = {str(key): value for key, value in entry.items()}
            for name in ("of", "between"):
                if name in values:
                    values[name] = tuple(values[name])
            claim = Claim(**values)
        except (TypeError, AttributeError, OmegaConfBaseException) as error:
            raise LedgerError(f"{path.name}, claim {number}: {error}") from None
        if (claim.untestable is None) != bool(claim.after and claim.between):
            raise LedgerError(f"{claim.claim}: needs either `after` and `between`, or `untestable`")
        trials_of(claim)
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
        reason = skip_reason(trial, "cuda", 0)
        if reason:
            raise LedgerError(f"{claim.claim}: {reason}")
        trials[words] = trial
    return trials


def tested(claim: Claim, columns: dict[str, dict[str, Any]]) -> Finding:
    """The claim against what was simulated, by the trials' words."""
    if claim.after is None:
        return Finding(claim, None)

    def total(words: str) -> float:
        return float(sum(columns[words][name] for name in claim.of))

    after = total(claim.after)
    return Finding(claim, after / total(claim.before) if claim.before else after)


def markdown(findings: list[Finding]) -> str:
    """The claims as a table, those that were tested first."""
    lines = ["| claim | expected | found | verdict | source |", "| --- | --- | --- | --- | --- |"]
    for finding in sorted(findings, key=lambda finding: finding.value is None):
        claim = finding.claim
        if finding.value is None or claim.between is None:
            cells = ("", claim.untestable or "", finding.verdict)
        else:
            low, high = (_shown(bound, claim) for bound in claim.between)
            said = f"{finding.verdict}: {claim.note}" if claim.note else finding.verdict
            cells = (f"{low} to {high}", _shown(finding.value, claim), said)
        lines.append("| " + " | ".join((claim.claim, *cells, claim.source)) + " |")
    return "\n".join(lines) + "\n"


def _shown(value: float, claim: Claim) -> str:
    return f"{value:.3g}" if claim.before else f"{value / 1e9:,.1f} GB"


def summary(findings: list[Finding]) -> str:
    """How many of which verdict."""
    verdicts = Counter(finding.verdict for finding in findings)
    counted = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common())
    return f"{len(findings)} claims: {counted}. Simulated for CUDA, which no GPU has graded yet."
