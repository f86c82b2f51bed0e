"""What a watched step held, from its first operation to its last: segments, their maxima, the peak.

The tracker writes changes of storages' sizes in order, and marks where a segment begins: the forward or
the backward of a block, what lies between, an operation of the optimizer over all tensors at once. The
replay turns them into one `Segment` each, and the segments into an `Attribution`.

`at_depth` answers for a deep model from two shallow ones. Blocks repeat: what a segment holds grows by the
same bytes with every block that the model has more, and the segments of inner blocks lie between those of
the outer ones. Both are checked (inner blocks must hold and release the same bytes in the same order);
where they fail there is no answer, and the whole model has to be simulated.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bench.trial.vocabulary import CATEGORIES, PHASES

if TYPE_CHECKING:
    import torch


@dataclass(eq=False)
class Storage:
    """One storage's life: what it holds now, and what it turns out to be.

    `bytes` are the allocator's, `asked` those that it was asked for.
    """

    bytes: int
    asked: int = 0
    category: str = "temporary"
    gathered: bool = False
    on_host: bool = False
    unmade_bytes: int = 0  # its size, while operations have used it, none made it and nobody owned it
    reference: weakref.ref[torch.UntypedStorage] | None = None


@dataclass(frozen=True)
class Mark:
    """Where a segment begins: its phase, and the block it belongs to."""

    at: int
    phase: str
    micro_step: int = 0
    stack: str = ""  # the list that the block is in: encoder and decoder have one each
    block: int | None = None
    operation: str = ""


@dataclass(frozen=True)
class Segment:
    """What one stretch of the step held at most, in bytes.

    `changes` is its whole profile: the sizes as they came and went. `most` has each category's maximum,
    what was gathered and what was on the host, whenever they were; `at_peak` what the categories held
    when the device held most.
    """

    mark: Mark
    peak: int
    at_peak: dict[str, int]
    most: dict[str, int]
    changes: tuple[int, ...]


@dataclass(frozen=True)
class Attribution:
    """What the tracker saw in one step; everything in bytes.

    `at_peak` sums to `peak`; `largest` is each category's own maximum, whenever it was; `host` what was
    offloaded to the host at most.
    """

    peak: int
    phase: str
    at_peak: dict[str, int]
    largest: dict[str, int]
    gathered: int
    host: int
    peak_by_phase: dict[str, int]

    @classmethod
    def of(cls, segments: list[Segment]) -> Attribution:
        """The step's from its segments'; of equal peaks the first counts."""
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


@dataclass
class Timeline:
    """Changes of storages' sizes in order, with the places where segments begin."""

    initial: dict[Storage, int] = field(default_factory=dict)
    changes: list[tuple[Storage, int]] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)

    def segments(self) -> list[Segment]:
        """Every marked stretch, what the one before left included, with storages as they turned out."""
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
    """Books a change; returns the accounts it went to."""
    if storage.on_host:
        accounts: tuple[str, ...] = ("host",)
    elif storage.gathered:
        accounts = (storage.category, "gathered")
    else:
        accounts = (storage.category,)
    for account in accounts:
        held[account] += size
    return accounts
