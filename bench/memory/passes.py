"""Where a block's forward begins, and where its backward does."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves


def mark_passes(block: nn.Module, mark: Callable[[], None], stack: ExitStack) -> None:
    """Calls `mark` when the block's forward begins, and when the gradient of its output arrives.

    Args:
        block: as the model calls it.
        mark: what is called.
        stack: ends it when it is closed.
    """

    def forward(_module: nn.Module, _args: Any) -> None:
        mark()

    def backward(_module: nn.Module, _args: Any, output: Any) -> None:
        first = next((t for t in tree_leaves(output) if isinstance(t, torch.Tensor)), None)
        if first is not None and first.requires_grad:
            first.register_hook(lambda _gradient: mark())

    stack.callback(block.register_forward_pre_hook(forward).remove)
    stack.callback(block.register_forward_hook(backward).remove)
