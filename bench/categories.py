"""What a byte can be, and when, and how a trial can end: words that many share. Needs nothing."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

CATEGORIES = ("parameter", "gradient", "optimizer", "activation", "kv_cache", "temporary", "input")
PHASES = ("forward", "backward", "optimizer", "prefill", "decode")
FINISHED = ("ok", "oom", "skipped")  # what will not change when it runs again
STATUSES = ("ok", "oom", "skipped", "timeout", "error")  # better first


def counting(executions: Iterable[tuple[Hashable, str]]) -> list[bool]:
    """Which executions count: not the failures that a later execution of the same replicate made good.

    Args:
        executions: oldest first; of each, what tells its trial and replicate from others, and its status.
    """
    kept: list[bool] = []
    good: set[Hashable] = set()
    for key, status in reversed(list(executions)):
        if status in FINISHED:
            good.add(key)
        kept.append(status in FINISHED or key not in good)
    return kept[::-1]
