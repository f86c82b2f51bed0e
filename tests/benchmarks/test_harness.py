"""What the harness itself costs. Ratios of things measured side by side, interleaved, in one process.

    pytest -m '' tests/benchmarks --benchmark-enable --benchmark-only

The ratios are in the results' `extra_info`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.methods.timed_steps import timed
from bench.processes import isolate
from bench.workload.build import build
from bench.workload.loops.train_step import carry_out
from bench.workload.state import Run
from tests.conftest import make_trial

pytestmark = pytest.mark.slow

STEPS, ROUNDS = 25, 15
GLIMPSE = 2  # steps where benchmarks are disabled: that the code runs is all that can be seen


def bare_loop(run: Run, steps: int) -> Callable[[], float]:
    """The step as anyone would write it, around the same model and batch; seconds for `steps`."""
    model, optimizer, batch = run.model, run.optimizer, run.batches[0]

    def loop() -> float:
        started = time.perf_counter()
        for _ in range(steps):
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return time.perf_counter() - started

    return loop


def harness(run: Run, steps: int) -> Callable[[], float]:
    """The harness' own timed pass over as many steps; the seconds that its rates are computed from."""
    timing = replace(run.trial.timing, min_steps=steps, max_steps=steps)
    return lambda: sum(carry_out(run, timed(run, timing))[0]["step_seconds"])


@pytest.mark.parametrize("model", ["llama-tiny", "llama-20m"])
def test_fidelity_of_the_timed_step(benchmark: Any, model: str) -> None:
    """Tokens per second in the harness over those in a bare loop: at least 0.98."""
    torch.set_num_threads(2)
    shape = ("micro_batch_size=1", "seq_len=64") if model == "llama-20m" else ()
    run = build(make_trial(f"model={model}", "optimizer.lr=1e-6", *shape), torch.device("cpu"))
    steps = STEPS if benchmark.enabled else GLIMPSE
    ours, bare = harness(run, steps), bare_loop(run, steps)
    ours(), bare()
    times: dict[str, list[float]] = {"ours": [], "bare": []}

    def one_round() -> None:
        times["ours"].append(ours())
        times["bare"].append(bare())

    benchmark.pedantic(one_round, rounds=ROUNDS)
    torch.set_num_threads(1)
    ratios = [b / o for o, b in zip(times["ours"], times["bare"], strict=True)]
    benchmark.extra_info["harness_over_bare_loop"] = statistics.median(ratios)
    benchmark.extra_info["ratios"] = ratios
    if benchmark.enabled:
        assert statistics.median(ratios) >= 0.98


@pytest.mark.parametrize("start_method", ["forkserver", "spawn"])
def test_overhead_of_a_trial(benchmark: Any, tmp_path: Path, start_method: str) -> None:
    """Wall time of a trial less build and steps: starting a process, and hearing from it."""
    overheads: list[float] = []

    def one_trial() -> None:
        outcome = isolate.run_isolated(
            make_trial(),
            log=tmp_path / "logs" / "trial.log",
            timeout_seconds=120,
            start_method=start_method,
        )
        assert outcome.status == "ok", outcome.reason
        overheads.append(outcome.wall_seconds - outcome.ranks[0]["working_seconds"])

    if benchmark.enabled:
        one_trial()  # the first pays for the server
        overheads.clear()
    benchmark.pedantic(one_trial, rounds=3 if start_method == "spawn" else ROUNDS)
    benchmark.extra_info["overhead_seconds_median"] = statistics.median(overheads)
    benchmark.extra_info["overhead_seconds"] = overheads
