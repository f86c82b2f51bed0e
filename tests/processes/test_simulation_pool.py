"""The pool of simulations: what one process' end means for the trials of the others."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool

import pytest

from bench.processes.simulation_pool import Simulator
from bench.trial.columns import NotSimulated, Simulation
from bench.trial.spec import Trial
from tests.conftest import make_trial


def test_a_process_that_ends_takes_no_other_trials_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that was begun breaks with it; begun again, only its own trial breaks again."""
    trials = [make_trial("method=simulate", f"seed={seed}") for seed in range(3)]
    begun: Counter[str] = Counter()

    def begin(_simulator: Simulator, trial: Trial) -> Future[Simulation]:
        begun[trial.trial_id] += 1
        future: Future[Simulation] = Future()
        if begun[trial.trial_id] == 1 or trial is trials[0]:
            future.set_exception(BrokenProcessPool())
        else:
            future.set_result(Simulation({"peak_allocated_bytes": trial.seed}, Counter()))
        return future

    monkeypatch.setattr(Simulator, "begin", begin)
    with Simulator() as simulate:
        first, *others = simulate(trials)
    assert isinstance(first, NotSimulated)
    found = [o.columns["peak_allocated_bytes"] for o in others if isinstance(o, Simulation)]
    assert found == [1, 2]
    assert set(begun.values()) == {2}
