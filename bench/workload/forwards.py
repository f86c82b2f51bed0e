"""When a block's own forward runs: also where a checkpoint, whoever made it, runs it a second time.

Hooks on a block that our wrapper checkpoints (`techniques/checkpointing.py`) lie inside the wrapper, so
they see both runs. transformers' own checkpointing lies inside of `forward`, and hooks see the first run
alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


def watch_forwards(
    block: nn.Module, before: Callable[[], None], after: Callable[[], None]
) -> Callable[[], None]:
    """Calls `before` and `after` around each run of the block's forward; returns what ends it.

    Of several watchers of one block the last must be ended first.
    """
    if getattr(block, "gradient_checkpointing", False):
        return _watch_checkpoint(block, before, after)
    hooks = (
        block.register_forward_pre_hook(lambda _module, _args: before()),
        block.register_forward_hook(lambda _module, _args, _output: after(), always_call=True),
    )

    def end() -> None:
        for hook in hooks:
            hook.remove()

    return end


def _watch_checkpoint(
    block: Any, before: Callable[[], None], after: Callable[[], None]
) -> Callable[[], None]:
    checkpoint = block._gradient_checkpointing_func

    def watched(forward: Callable[..., Any], *inputs: Any) -> Any:
        def run(*given: Any) -> Any:
            before()
            try:
                return forward(*given)
            finally:  # torch ends a recomputation by an exception as soon as it has all it needs
                after()

        return checkpoint(run, *inputs)

    block._gradient_checkpointing_func = watched

    def end() -> None:
        block._gradient_checkpointing_func = checkpoint

    return end
