"""A plan of steps: what shall be done before, between and after steps, whoever's loop runs them.

A plan is a generator. Where a step shall run it yields what is to be told of each phase that begins, and
gets back the step's loss, or the tokens of a generation. In the end it returns what it found. So the same
plan is carried out by our own loop (`train_step.py`), and by one that calls us (`trainer.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from types import TracebackType
from typing import Generic, TypeVar

import torch

T = TypeVar("T")
Enter = Callable[[str], None]
Plan = Generator[Enter, torch.Tensor, T]


def unwatched(_phase: str) -> None:
    """What a plan yields for a step that nobody watches."""


class Conductor(Generic[T]):
    """Carries out a plan step by step; leave it to end a plan that was broken off."""

    result: T

    def __init__(self, plan: Plan[T]) -> None:
        self._plan = plan

    def __enter__(self) -> Conductor[T]:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._plan.close()

    def first(self) -> Enter | None:
        """Goes on to the first step: what is to be told of its phases, or None if the plan has ended."""
        return self._until_step(lambda: next(self._plan))

    def next(self, ended: torch.Tensor) -> Enter | None:
        """Goes on to the next step.

        Args:
            ended: the loss of the step that has ended, or what it generated.
        """
        return self._until_step(lambda: self._plan.send(ended))

    def _until_step(self, advance: Callable[[], Enter]) -> Enter | None:
        try:
            return advance()
        except StopIteration as end:
            self.result = end.value
            return None
