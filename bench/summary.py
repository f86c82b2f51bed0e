"""Rows to a Markdown summary: what was measured on what, then each sweep as a table. Pure."""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from typing import Any

from bench.screen import Rows, cells, labels

_HEADER = ("trial", "status", "peak GiB", "change", "tokens/s/device [95 %]", "change", "reason")


def markdown(rows: Rows) -> str:
    """The summary of `rows`, oldest sweep first; changes are against each sweep's first ok row."""
    parts = ["# Summary", "", *_what_and_where(rows)]
    for _, sweep in groupby(rows, key=lambda row: row["sweep_id"]):
        parts += ["", *_sweep(list(sweep))]
    return "\n".join(parts) + "\n"


def _what_and_where(rows: Rows) -> list[str]:
    statuses = Counter(row["status"] for row in rows)
    counted = ", ".join(f"{count} {status}" for status, count in sorted(statuses.items()))
    lines = [f"{len(rows)} trials: {counted}."]
    for device in sorted({row["device_name"] for row in rows if row["device_name"]}):
        of_device = [row for row in rows if row["device_name"] == device]
        versions = sorted({f"torch {row['torch_version']}" for row in of_device})
        first, last = (of_device[index]["started_at"] for index in (0, -1))
        lines += ["", f"- {device}; {', '.join(versions)}; {first:%Y-%m-%d} to {last:%Y-%m-%d} (UTC)"]
    return lines


def _sweep(rows: Rows) -> list[str]:
    first = next((row for row in rows if row["status"] == "ok"), None)
    lines = [
        f"## {rows[0]['started_at']:%Y-%m-%d %H:%M} UTC",
        "",
        _line(_HEADER),
        _line(["---", "---", "---:", "---:", "---:", "---:", "---"]),
    ]
    for label, row in zip(labels(rows), rows, strict=True):
        lines.append(_line([f"`{label}`", row["status"], *cells(row, first), row["reason"] or ""]))
    return [*lines, "", f"Reproduce the last row: `{rows[-1]['overrides']}`"]


def _line(values: Any) -> str:
    return "| " + " | ".join(str(value).replace("|", "\\|") for value in values) + " |"
