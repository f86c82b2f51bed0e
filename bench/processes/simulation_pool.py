"""Many simulations at once: a process for each core, forked from the fork server.

In: trials. Out: a `Simulation` of each, or why there is none. For doors that predict many trials and
measure none. What an earlier command simulated is not simulated again (`simulation_cache.py`).
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import warnings
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from bench.machine.host import cores
from bench.processes import fork_server, simulation_cache
from bench.processes.simulation_cache import SimulationCache
from bench.trial.columns import NotSimulated, Simulation
from bench.trial.outcome import CannotExistError, in_one_line
from bench.trial.platform import CUDA, Platform
from bench.trial.spec import Trial

LONGEST_SECONDS = 120.0  # of processor time, of one simulation, which takes seconds

_KILLED = NotSimulated("a process that simulates was killed: the machine may be out of memory")


class Simulator:
    """Simulates trials, each once, for CUDA if no other platform is named; a context manager."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None
        self._known: dict[str, Simulation | NotSimulated] = {}
        self._cache: SimulationCache | None = None
        self._bar = _Bar()

    def __enter__(self) -> Simulator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if error is not None:
            self.stop()
        self._bar.end()
        if self._pool is not None:
            self._pool.shutdown()

    def stop(self) -> None:
        """Ends all simulations at once: nobody wants their results any more."""
        if self._pool is not None:
            for process in list((self._pool._processes or {}).values()):
                process.kill()
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None

    def _processes(self) -> ProcessPoolExecutor:
        """The pool, started for the first trial: the fork server needs seconds to import all libraries."""
        if self._pool is None:
            fork_server.start_fork_server(Path(os.devnull))
            context = multiprocessing.get_context("forkserver")
            self._pool = ProcessPoolExecutor(len(cores()), context, _set_up_process)
        return self._pool

    def __call__(self, trials: list[Trial]) -> list[Simulation | NotSimulated]:
        """Simulates each trial once, in order, and shows how far it is."""
        new = {t.trial_id: t for t in trials if t.trial_id not in self._known}
        self._bar.expect(len(new))
        running = {trial_id: self.begin(trial) for trial_id, trial in new.items()}
        for trial_id, future in running.items():
            found = result_of(future)
            if found == _KILLED:  # another trial's process, perhaps
                found = result_of(self.begin(new[trial_id]))
            self._known[trial_id] = found
            self._bar.advance()
        return [self._known[trial.trial_id] for trial in trials]

    def pause(self) -> None:
        """Takes the bar away until there is more to simulate, so that a table can be printed."""
        self._bar.end()

    def begin(self, trial: Trial, platform: Platform = CUDA) -> Future[Simulation]:
        """Starts to simulate one trial, and returns at once."""
        self._cache = cache = self._cache or simulation_cache.opened()
        earlier = cache.get(trial, platform)
        if earlier is not None:
            done: Future[Simulation] = Future()
            done.set_result(earlier)
            return done
        try:
            future = self._processes().submit(_simulated, trial, platform)
        except BrokenProcessPool:  # one of its processes was killed: the next trials get new ones
            self._pool = None
            future = self._processes().submit(_simulated, trial, platform)
        future.add_done_callback(lambda ended: _keep(cache, trial, platform, ended))
        return future


def _keep(cache: SimulationCache, trial: Trial, platform: Platform, ended: Future[Simulation]) -> None:
    if not ended.cancelled() and ended.exception() is None:
        cache.put(trial, platform, ended.result())


def result_of(future: Future[Simulation]) -> Simulation | NotSimulated:
    """Waits for what `Simulator.begin` began, and returns it, or why there is none."""
    try:
        return future.result()
    except BrokenProcessPool:
        return _KILLED
    except CannotExistError as error:
        return NotSimulated(str(error))
    except Exception as error:  # whatever the libraries raise about this model
        return NotSimulated(in_one_line(error))


class _Bar:
    """One bar on stderr for all that a simulator simulates; nothing where stderr is no terminal."""

    def __init__(self) -> None:
        self._live: Progress | None = None
        self._total = 0
        self._task: Any = None

    def expect(self, more: int) -> None:
        """Shows that `more` simulations are to come."""
        console = Console(stderr=True)
        if not more or not console.is_terminal:
            return
        self._total += more
        if self._live is None:
            columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            self._live = Progress(*columns, TimeElapsedColumn(), console=console, transient=True)
            self._task = self._live.add_task("simulating (starts within seconds)", total=0)
            self._live.start()
        self._live.update(self._task, total=self._total)

    def advance(self) -> None:
        """Shows that one more has ended."""
        if self._live is not None:
            self._live.update(self._task, description="simulating", advance=1)

    def end(self) -> None:
        """Takes the bar away."""
        if self._live is not None:
            self._live.stop()
            self._live, self._total = None, 0


def _set_up_process() -> None:
    """In each process of the pool: one thread, an end with its parent's, and no warnings, which would break
    into a door's table."""
    import torch

    fork_server.end_with_parent()
    signal.signal(signal.SIGPROF, _raise_timeout)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def _raise_timeout(_number: int, _frame: object) -> None:
    raise TimeoutError(f"not simulated within {LONGEST_SECONDS:.0f} s of processor time")


def _simulated(trial: Trial, platform: Platform = CUDA) -> Simulation:
    from bench.methods.simulate import simulate

    signal.setitimer(signal.ITIMER_PROF, LONGEST_SECONDS)
    try:
        return simulate(trial, platform)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
