"""Judged claims as a table and a sentence, for the terminal, the report and claims.md. Pure."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable

from bench.analysis.literature import Claim, Finding
from bench.analysis.neighbours import Ratio
from bench.formatting import count_of, markdown_table


def lines(findings: Iterable[Finding]) -> tuple[list[str], list[list[str]]]:
    """The claims as a header and rows of text; those with a value come first."""
    header = ["claim", "expected", "simulated", "measured here", "verdict", "note", "source"]
    rows = []
    for finding in sorted(findings, key=lambda finding: finding.judged is None and not finding.measured):
        claim = finding.claim
        rows.append(
            [
                claim.claim,
                _expected(claim),
                "" if finding.simulated is None else _format_value(finding.simulated, claim),
                _measured(finding.measured),
                finding.verdict,
                finding.why,
                claim.source,
            ]
        )
    return header, rows


def _measured(pairs: tuple[Ratio, ...]) -> str:
    """The median of the pairs' ratios with its interval, and what they were measured on."""
    if not pairs:
        return ""
    low, value, high = (
        statistics.median(getattr(pair, name) for pair in pairs) for name in ("low", "value", "high")
    )
    interval = f" [{low:.3g}, {high:.3g}]" if low < high else ""
    models, devices = (
        ", ".join(sorted({getattr(pair, name) for pair in pairs})) for name in ("model", "device")
    )
    return f"{value:.3g}{interval} ({count_of(len(pairs), 'pair')}: {models}; {devices})"


def markdown(findings: Iterable[Finding]) -> str:
    """The claims as a Markdown table."""
    return markdown_table(*lines(findings))


def _expected(claim: Claim) -> str:
    if claim.between is None:
        return ""
    low, high = claim.between
    if math.isinf(high):
        return f"at least {_format_value(low, claim)}"
    if not low:
        return f"at most {_format_value(high, claim)}"
    return f"{_format_value(low, claim)} to {_format_value(high, claim)}"


def _format_value(value: float, claim: Claim) -> str:
    return f"{value:.3g}" if claim.before or claim.pairs else f"{value / 1e9:,.3g} GB"


def summary(findings: Iterable[Finding]) -> str:
    """A sentence with the number of claims of each verdict."""
    findings = list(findings)
    verdicts = Counter(finding.verdict for finding in findings)
    counted = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common())
    simulated = sum(finding.simulated is not None for finding in findings)
    by = f" {simulated} simulated for CUDA." if simulated else ""
    return f"{len(findings)} claims: {counted}.{by}"


def tested(findings: Iterable[Finding]) -> list[Finding]:
    """The claims of which these rows or a simulation say something."""
    return [finding for finding in findings if finding.simulated is not None or finding.measured]
