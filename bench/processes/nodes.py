"""The machines that the ranks of a trial are spread over: one, unless a launcher started a task on several.

With one task on each node of an allocation, all tasks execute the same job. Each starts its share of the
ranks, which meet where torchrun's would (a store at MASTER_ADDR:MASTER_PORT, served by rank 0). The first
node's task writes the row; each other task writes its Outcome to a file beside the sweep's logs, which the
first one reads.
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
_TOGETHER_SECONDS = 5.0  # what happens on several nodes within these has one cause


@dataclass(frozen=True)
class Seat:
    """Which rank of a trial a process is, and where it meets the others (a URL for torch.distributed)."""

    rank: int
    local_rank: int
    local_ranks: int
    rendezvous: str


@dataclass(frozen=True)
class Nodes:
    """How many machines there are, which one this is, where ranks meet, and which restart of the job."""

    count: int = 1
    index: int = 0
    address: str = ""
    attempt: str = "0"

    def seats(self, ranks: int, meeting_place: Path) -> list[Seat]:
        """The seats of the ranks on this machine.

        Args:
            ranks: how many the trial has.
            meeting_place: a folder of this trial's own, where ranks meet if they are all on one machine.
        """
        if not self.spread(ranks):
            rendezvous = f"file://{meeting_place / 'rendezvous'}"
            return [Seat(rank, rank, ranks, rendezvous) for rank in range(ranks)]
        rendezvous, local_ranks = f"tcp://{self.address}", ranks // self.count
        first = self.index * local_ranks
        return [Seat(first + local, local, local_ranks, rendezvous) for local in range(local_ranks)]

    def spread(self, ranks: int) -> bool:
        """Whether so many ranks are divided evenly over all machines; else the first has all of them."""
        return self.count > 1 and ranks % self.count == 0


ALONE = Nodes()


def gather_outcomes(own: Outcome, nodes: Nodes, log: Path) -> Outcome:
    """On the first node, the outcome over all nodes' ranks; on any other `own`, written for the first."""
    if nodes.index:
        target = _file(nodes.index, nodes, log)
        hidden = target.with_name(f".{target.name}")
        hidden.write_text(json.dumps(asdict(own)))
        hidden.rename(target)
        return own
    return _merged([own, *(_outcome_of(index, own, nodes, log) for index in range(1, nodes.count))])


def _outcome_of(index: int, own: Outcome, nodes: Nodes, log: Path) -> Outcome:
    """The outcome that node `index` wrote; an error if it writes none in time."""
    path = _file(index, nodes, log)
    deadline = time.monotonic() + _LATE_SECONDS
    while path not in path.parent.iterdir():  # listing the folder looks it up anew, over NFS too
        if time.monotonic() > deadline:
            reason = f"node {index} of {nodes.count} has not told how its ranks ended"
            return replace(own, status="error", reason=reason, traceback=None, ranks=[])
        time.sleep(0.2)
    written = json.loads(path.read_text())
    path.unlink()
    return replace(own, **written)


def _merged(outcomes: list[Outcome]) -> Outcome:
    """The most informative outcome, with the ranks of all."""
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
