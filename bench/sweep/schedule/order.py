"""In which order a sweep's trials run (`order=`).

Replicates are rounds under both orders: every trial once, then every trial again. Within a round `given` is
the order of the command line. `informative` begins with what tells most about a technique: the first
trial, then those that differ from it in one axis alone, then those that differ in two, and so on. A sweep
that is cut short then still knows what each technique does by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hydra.core.plugins import Plugins

from bench.config.reproducing import replicate_of

_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


def most_informative_first(jobs: Sequence[list[str]]) -> list[list[str]]:
    """The jobs of a sweep in rounds, fewest changes first; each is a list of the same keys' overrides."""
    if not jobs:
        return []
    first = jobs[0]

    def rank(job: list[str]) -> tuple[int, int]:
        changed = sum(word != unchanged for word, unchanged in zip(job, first, strict=True))
        replicate = replicate_of(job)
        return replicate, changed - (replicate > 0)

    return sorted(jobs, key=rank)


@contextmanager
def arranged(order: str, known: Callable[[list[list[str]]], None]) -> Iterator[None]:
    """While entered, Hydra's own sweeper runs its jobs in this order, and `known` is called with them all.

    Hydra has no place to say an order: `split_arguments` is where its sweeper multiplies the values out.
    Its class is asked of Hydra, which loads the modules of plugins once more than Python does.
    """
    sweeper: Any = Plugins.instance().class_name_to_class[_SWEEPER]
    multiplied = sweeper.split_arguments

    def split(overrides: Any, max_batch_size: int | None) -> list[list[list[str]]]:
        (jobs,) = multiplied(overrides, None)
        if order == "informative":
            jobs = most_informative_first(jobs)
        known(jobs)
        return list(sweeper.split_overrides_to_chunks(jobs, max_batch_size))

    sweeper.split_arguments = staticmethod(split)
    try:
        yield
    finally:
        sweeper.split_arguments = staticmethod(multiplied)
