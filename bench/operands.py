"""The tensors among an operation's arguments and results.

Operations take and return tensors, lists of tensors, and values that are neither: a plain walk finds them
several times faster than torch's general one for trees, and it is done for each operation of a step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch


def tensors_in(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    """The tensors of `values` and of the lists and tuples among them, in order."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)
