"""Ranks over several machines: who sits where, and one outcome from the words of all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench.processes import nodes
from bench.processes.nodes import Nodes, gather_outcomes
from bench.trial.outcome import Outcome

FIRST = Nodes(2, 0, "head:29500")
SECOND = replace(FIRST, index=1)


def outcome(status: str, *values: int, reason: str | None = None, traceback: str | None = None) -> Outcome:
    ranks = [{"peak_allocated_bytes": value} for value in values]
    return Outcome(status, reason, traceback, ranks, {"device_name": f"{status} device"}, 1.5)


def test_seats_of_an_even_and_an_uneven_trial(tmp_path: Path) -> None:
    assert [(s.rank, s.local_rank, s.local_ranks) for s in FIRST.seats(4, tmp_path)] == [
        (0, 0, 2),
        (1, 1, 2),
    ]
    assert [(s.rank, s.local_rank, s.local_ranks) for s in SECOND.seats(4, tmp_path)] == [
        (2, 0, 2),
        (3, 1, 2),
    ]
    assert {s.rendezvous for s in SECOND.seats(4, tmp_path)} == {"tcp://head:29500"}
    assert not FIRST.spread(3)
    assert not FIRST.spread(1)
    assert [(s.rank, s.local_ranks) for s in FIRST.seats(3, tmp_path)] == [(0, 3), (1, 3), (2, 3)]
    assert FIRST.seats(1, tmp_path)[0].rendezvous == f"file://{tmp_path}/rendezvous"


def test_ranks_of_all_nodes_are_in_one_outcome_by_rank(tmp_path: Path) -> None:
    log = tmp_path / "trial.log"
    assert gather_outcomes(outcome("ok", 3, 4), SECOND, log).ranks == outcome("ok", 3, 4).ranks
    whole = gather_outcomes(outcome("ok", 1, 2), FIRST, log)
    assert [rank["peak_allocated_bytes"] for rank in whole.ranks] == [1, 2, 3, 4]
    assert whole.status == "ok"
    assert not [*tmp_path.iterdir()], "nothing is left for a later attempt to find"


@pytest.mark.parametrize(
    ("first", "second", "telling"),
    [
        (outcome("error", traceback="connection closed"), outcome("oom", reason="9 bytes"), "oom"),
        (
            outcome("error", reason="peer", traceback="..."),
            outcome("error", reason="was killed"),
            "was killed",
        ),
        (outcome("timeout", reason="still"), outcome("error", reason="peer", traceback="..."), "timeout"),
        (
            replace(outcome("timeout"), wall_seconds=600.0),
            outcome("error", reason="mine", traceback="..."),
            "mine",
        ),
        (outcome("skipped", reason="cannot"), outcome("skipped", reason="cannot"), "cannot"),
    ],
)
def test_the_most_telling_story_counts(
    tmp_path: Path, first: Outcome, second: Outcome, telling: str
) -> None:
    log = tmp_path / "trial.log"
    gather_outcomes(second, SECOND, log)
    whole = gather_outcomes(first, FIRST, log)
    assert telling in (whole.status, whole.reason)
    assert whole.hardware == first.hardware


def test_a_node_that_says_nothing_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "_LATE_SECONDS", 0.0)
    earlier = replace(SECOND, attempt="0")
    gather_outcomes(outcome("ok", 2), earlier, tmp_path / "trial.log")
    whole = gather_outcomes(outcome("ok", 1), replace(FIRST, attempt="1"), tmp_path / "trial.log")
    assert (whole.status, whole.reason) == ("error", "node 1 of 2 has not told how its ranks ended")
