"""Many simulations at once: a process for each core, forked from the fork server.

In: trials. Out: a `Simulation` of each. For doors that predict many trials and measure none.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import warnings
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import track

from bench.machine.host import cores
from bench.processes import fork_server
from bench.trial.columns import Simulation
from bench.trial.platform import CUDA, Platform
from bench.trial.spec import Trial


class Simulator:
    """Simulates trials, each once, for CUDA if no other platform is named; a context manager."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None
        self._known: dict[str, Simulation] = {}

    def __enter__(self) -> Simulator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=error is None, cancel_futures=True)

    def _processes(self) -> ProcessPoolExecutor:
        """The pool, started for the first trial: the fork server needs seconds to import all libraries."""
        if self._pool is None:
            fork_server.start_fork_server(Path(os.devnull))
            context = multiprocessing.get_context("forkserver")
            self._pool = ProcessPoolExecutor(len(cores()), context, _set_up_process)
        return self._pool

    def __call__(self, trials: list[Trial]) -> list[Simulation]:
        """Simulates each trial once, in order, and shows how far it is.

        Raises:
            OSError: a model cannot be read.
            ValueError: a technique cannot be applied to it.
        """
        new = {t.trial_id: t for t in trials if t.trial_id not in self._known}
        results = self._processes().map(_simulated, new.values()) if new else iter(())
        console = Console(stderr=True)
        hidden = not new or not console.is_terminal
        tracked = track(results, "simulating", len(new), console=console, transient=True, disable=hidden)
        self._known |= dict(zip(new, tracked, strict=True))
        return [self._known[trial.trial_id] for trial in trials]

    def begin(self, trial: Trial, platform: Platform) -> Future[Simulation]:
        """Starts to simulate one trial, and returns at once."""
        return self._processes().submit(_simulated, trial, platform)


def _set_up_process() -> None:
    """In each process of the pool: one thread, and no warnings, which would break into a door's table."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def _simulated(trial: Trial, platform: Platform = CUDA) -> Simulation:
    from bench.methods.simulate import simulate

    return simulate(trial, platform)
