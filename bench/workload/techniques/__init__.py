"""The memory-saving techniques, in the order in which they must be applied.

One technique, one module, with two functions (see `Technique`). `apply` changes the run under
construction; `watch` is called before a step that is not timed, and returns a function that says after
the step whether the technique was in force. Adding a technique: CONTRIBUTING.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, cast

from bench.workload.state import Run
from bench.workload.techniques import (
    checkpointing,
    fsdp,
    kv_cache,
    loop,
    lora,
    loss,
    offload,
    optimizer,
    precision,
)

Evidence = dict[str, Any]


class Technique(Protocol):
    """What a technique's module offers."""

    def apply(self, run: Run) -> None:
        """Puts the technique in force on the run under construction, if its axis asks for it."""

    def watch(self, run: Run) -> Callable[[], Evidence]:
        """Starts watching; the returned function, called after one step, says what was seen.

        The returned function raises `bench.workload.state.NotInForceError` when what the trial asked for
        did not happen.
        """


# First those that change modules, on meta; then those that place bytes or own state.
SHAPING = cast("tuple[Technique, ...]", (precision, lora, checkpointing, loss))
PLACING = cast("tuple[Technique, ...]", (fsdp, offload, optimizer, loop, kv_cache))
TECHNIQUES = (*SHAPING, *PLACING)
