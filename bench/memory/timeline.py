"""What a watched step held, from its first operation to its last: segments, their maxima, the peak.

In: the changes of storages' sizes, in order, and marks where a segment begins: the forward or the backward
of a block, the code between two blocks, an operation of the optimizer over all tensors at once. Both come
from `tracker.py`. Out: one `Segment` for each mark, and an `Attribution` of them all. `methods/depth.py`
extends the segments of two shallow models to a deep one.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bench.trial.vocabulary import CATEGORIES, PHASES
from bench.workload.state import REPEATED

if TYPE_CHECKING:
    import torch


@dataclass(eq=False)
class Storage:
    """One storage: what it holds now, and what it turned out to be."""

    bytes: int  # as its allocator rounded them; 0 once it is gone
    requested_bytes: int = 0  # before rounding
    category: str = "temporary"
    gathered: bool = False  # by FSDP, for as long as a block computes
    on_host: bool = False  # it takes no memory of the device
    unmade_bytes: int = 0  # its size, if it was first seen as an argument and counts 0 (Tracker._see)
    reference: weakref.ref[torch.UntypedStorage] | None = None


@dataclass(frozen=True)
class Mark:
    """Where a segment begins: its phase, and the block it belongs to."""

    at: int  # index of its first change
    phase: str
    micro_step: int = 0
    stack: str = ""  # the list that the block is in: encoder and decoder have one each
    block: int | None = None  # its number in that list; None between blocks
    operation: str = ""  # the optimizer's, over all tensors at once


@dataclass(frozen=True)
class Segment:
    """What one stretch of the step held at most, in bytes."""

    mark: Mark
    peak: int  # the most that the device held
    at_peak: dict[str, int]  # each category at that instant
    most: dict[str, int]  # each category's own maximum, and that of `gathered` and of `host`
    changes: tuple[int, ...]  # every change of a size, in order


@dataclass(frozen=True)
class Attribution:
    """What the tracker saw in one step, in bytes."""

    peak: int
    phase: str  # in which the peak is
    at_peak: dict[str, int]  # each category at the peak; the values sum to it
    largest: dict[str, int]  # each category's own maximum
    gathered: int  # FSDP's gathered weights, at most
    host: int  # offloaded to the host, at most
    peak_by_phase: dict[str, int]

    @classmethod
    def of(cls, segments: list[Segment]) -> Attribution:
        """The attribution of a step from its segments; of equal peaks the first counts."""
        highest = max(segments, key=lambda segment: segment.peak)
        most = {name: max(s.most[name] for s in segments) for name in segments[0].most}
        return cls(
            peak=highest.peak,
            phase=highest.mark.phase,
            at_peak=highest.at_peak,
            largest={category: most[category] for category in CATEGORIES},
            gathered=most["gathered"],
            host=most["host"],
            peak_by_phase={
                phase: max(s.peak for s in segments if s.mark.phase == phase)
                for phase in PHASES
                if any(s.mark.phase == phase for s in segments)
            },
        )


def stretches(segments: list[Segment]) -> dict[str, list[Any]]:
    """The step as a picture of it shows it: of each segment where it is, and each category at its peak.

    Micro-steps that repeat are drawn once (`REPEATED`), unless the peak is in a later one.

    Returns:
        Lists as long as there are segments: `phase`, `stack` and `block` (null between blocks), and bytes
        by category. The largest sum is the step's peak.
    """
    first = [
        segment
        for segment in segments
        if segment.mark.micro_step <= REPEATED or segment.mark.phase in ("optimizer", "done")
    ]
    if max(segment.peak for segment in first) == max(segment.peak for segment in segments):
        segments = first
    lists: dict[str, list[Any]] = {
        "phase": [segment.mark.phase for segment in segments],
        "stack": [segment.mark.stack for segment in segments],
        "block": [segment.mark.block for segment in segments],
    }
    return lists | {name: [segment.at_peak[name] for segment in segments] for name in CATEGORIES}


@dataclass
class Timeline:
    """Changes of storages' sizes in order, with marks where segments begin."""

    initial: dict[Storage, int] = field(default_factory=dict)
    changes: list[tuple[Storage, int]] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)

    def segments(self) -> list[Segment]:
        """A segment for each mark, by the categories that storages have in the end.

        A segment begins with what the one before it left.
        """
        held = dict.fromkeys((*CATEGORIES, "gathered", "host"), 0)
        for storage, size in self.initial.items():
            _apply(held, storage, size)
        for storage, size in self.changes[: self.marks[0].at]:
            _apply(held, storage, size)
        ends = [mark.at for mark in self.marks[1:]] + [len(self.changes)]
        segments = []
        for mark, end in zip(self.marks, ends, strict=True):
            total = sum(held[category] for category in CATEGORIES)
            peak, at_peak, most = total, dict(held), dict(held)
            for storage, size in self.changes[mark.at : end]:
                for name in _apply(held, storage, size):
                    most[name] = max(most[name], held[name])
                if not storage.on_host:
                    total += size
                if total > peak:
                    peak, at_peak = total, dict(held)
            profile = tuple(size for _, size in self.changes[mark.at : end])
            at_peak = {category: at_peak[category] for category in CATEGORIES}
            segments.append(Segment(mark, peak, at_peak, most, profile))
        return segments


def _apply(held: dict[str, int], storage: Storage, size: int) -> tuple[str, ...]:
    """Adds a change to the accounts it belongs to, and returns their names."""
    if storage.on_host:
        accounts: tuple[str, ...] = ("host",)
    elif storage.gathered:
        accounts = (storage.category, "gathered")
    else:
        accounts = (storage.category,)
    for account in accounts:
        held[account] += size
    return accounts
