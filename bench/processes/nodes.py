"""The machines that the ranks of a trial are spread over: one, unless a launcher started a task on several.

With one task on each node of an allocation, each executes the same job. It starts its share of the ranks,
which meet where torchrun's would (a store at MASTER_ADDR:MASTER_PORT, served by rank 0). The first node's
task writes the row; the others hand it what their ranks found out, as a file beside the sweep's logs.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.trial.outcome import Outcome

_LATE_SECONDS = 60.0  # nodes do not end at the same instant, and file systems take their time
_TOGETHER_SECONDS = 5.0  # what happens within these, on several nodes, has one cause


@dataclass(frozen=True)
class Seat:
    """Where one rank of a trial sits, and where it meets the others (a URL for torch.distributed)."""

    rank: int
    local_rank: int
    local_ranks: int
    rendezvous: str


@dataclass(frozen=True)
class Nodes:
    """How many machines, which of them this is, and where ranks meet. `attempt` tells restarts apart."""

    count: int = 1
    index: int = 0
    address: str = ""
    attempt: str = "0"

    def seats(self, ranks: int, meeting_place: Path) -> list[Seat]:
        """Of the ranks that are on this machine.

        Args:
            ranks: of the trial.
            meeting_place: a folder of this trial's own, used where its ranks are on one machine.
        """
        if not self.spread(ranks):
            where = f"file://{meeting_place / 'rendezvous'}"
            return [Seat(rank, rank, ranks, where) for rank in range(ranks)]
        where, here = f"tcp://{self.address}", ranks // self.count
        return [Seat(self.index * here + local, local, here, where) for local in range(here)]

    def spread(self, ranks: int) -> bool:
        """Whether a trial of so many ranks is on all these machines, evenly; else it is on the first."""
        return self.count > 1 and ranks % self.count == 0


ALONE = Nodes()


def gather_outcomes(own: Outcome, nodes: Nodes, log: Path) -> Outcome:
    """On the first node the outcome over all ranks; the others hand it theirs, and have their own."""
    if nodes.index:
        target = _file(nodes.index, nodes, log)
        hidden = target.with_name(f".{target.name}")
        hidden.write_text(json.dumps(asdict(own)))
        hidden.rename(target)
        return own
    return _merged([own, *(_outcome_of(index, own, nodes, log) for index in range(1, nodes.count))])


def _outcome_of(index: int, own: Outcome, nodes: Nodes, log: Path) -> Outcome:
    """What another node wrote down for the first one; an error if it has not within a minute."""
    path = _file(index, nodes, log)
    until = time.monotonic() + _LATE_SECONDS
    while path not in path.parent.iterdir():  # which looks the folder up anew, over NFS too
        if time.monotonic() > until:
            reason = f"node {index} of {nodes.count} has not told how its ranks ended"
            return replace(own, status="error", reason=reason, traceback=None, ranks=[])
        time.sleep(0.2)
    written = json.loads(path.read_text())
    path.unlink()
    return replace(own, **written)


def _merged(outcomes: list[Outcome]) -> Outcome:
    most_informative = min(outcomes, key=lambda outcome: _informativeness(outcome, outcomes))
    return replace(
        most_informative,
        ranks=[rank for outcome in outcomes for rank in outcome.ranks],
        hardware=outcomes[0].hardware,
        wall_seconds=outcomes[0].wall_seconds,
    )


# From the outcome that explains most to the one that explains least. A rank that loses its peer raises too.
_MOST_INFORMATIVE_FIRST = ("skipped", "oom", "killed", "raised", "timeout", "raised after a timeout", "ok")


def _informativeness(outcome: Outcome, outcomes: list[Outcome]) -> int:
    """Sort key, most informative first. A traceback that is raised within 5 s of another node's timeout, or
    later, is a consequence of that timeout and sorts after it; an error without one is a killed process."""
    kind = outcome.status
    if kind == "error":
        limits = [other.wall_seconds for other in outcomes if other.status == "timeout"]
        late = limits and outcome.wall_seconds >= min(limits) - _TOGETHER_SECONDS
        kind = "raised after a timeout" if late else "raised"
        kind = "killed" if outcome.traceback is None else kind
    return _MOST_INFORMATIVE_FIRST.index(kind)


def _file(index: int, nodes: Nodes, log: Path) -> Path:
    return log.with_suffix(f".node{index}.{nodes.attempt}.json")
