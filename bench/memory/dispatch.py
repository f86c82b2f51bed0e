"""Ways to see what torch does: every operation, every storage that changes its size, and every copy of the
random generator's state.

Owns the dispatch mode and the patches of `resize_` and `get_rng_state`. Each calls a function with what it
sees; what is done with it is up to `tracker.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

Execute = Callable[
    [Any, Any, dict[str, Any], TorchDispatchMode], Any
]  # operation, arguments, keywords, mode


OnOperation = Callable[[Any, Any, dict[str, Any], Any], None]  # operation, arguments, keywords, result


def ignored_operation(_func: Any, _args: Any, _kwargs: dict[str, Any], _result: Any) -> None:
    """An `OnOperation` that does nothing."""


class OperationWatch(TorchDispatchMode):
    """Hands every operation on local tensors to `execute`, which runs it and returns its result."""

    def __init__(self, execute: Execute) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._execute = execute

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: nothing is compiled here, and keeping the compiler away takes as long as some operations."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called by torch for each operation."""
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # let it become operations on local tensors, and see those
        return self._execute(func, args, kwargs or {}, self)


@contextmanager
def watch_resizes(seen: Callable[[torch.UntypedStorage, int], None]) -> Iterator[None]:
    """Calls `seen` with each storage that is resized, which no dispatch mode can see, and its new size."""
    original = torch.UntypedStorage.resize_

    def resize(storage: torch.UntypedStorage, size: int) -> Any:
        result = original(storage, size)
        seen(storage, size)
        return result

    torch.UntypedStorage.resize_ = resize  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        torch.UntypedStorage.resize_ = original  # type: ignore[method-assign]


@contextmanager
def watch_generator_states(seen: Callable[[torch.Tensor], object]) -> Iterator[None]:
    """Calls `seen` with each copy of the CPU generator's state, 5 KB that no dispatch mode can see.

    Checkpointing keeps one for each block from its forward to its recomputation.
    """
    original = torch.get_rng_state

    def copy_state() -> torch.Tensor:
        state = original()
        seen(state)
        return state

    torch.get_rng_state = copy_state
    try:
        yield
    finally:
        torch.get_rng_state = original
