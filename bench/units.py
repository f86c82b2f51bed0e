"""Numbers as people read them: bytes in GiB or MiB, changes in percent."""

from __future__ import annotations

import math


def size(of: float) -> str:
    """Bytes in words: GiB from a tenth of one on, MiB below."""
    gib = of / 2**30
    return f"{gib:,.1f} GiB" if gib >= 10 else f"{gib:.2f} GiB" if gib >= 0.1 else f"{of / 2**20:.1f} MiB"


def percent(change: float, digits: int = 0) -> str:
    """A fraction as a signed change: `−36 %`; empty where it is not a number."""
    if math.isnan(change):
        return ""
    rounded = round(change * 100, digits) + 0.0  # no negative zero
    return f"{rounded:+.{digits}f} %".replace("-", "−") if rounded else f"{rounded:.{digits}f} %"


def count(number: int, thing: str) -> str:
    """`1 trial`, `2 trials`."""
    return f"{number:,} {thing}{'s' * (number != 1)}"
