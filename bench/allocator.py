"""What torch's CPU allocator itself counts: the judge of a measured peak where no device counts for free.

torch.profiler tells of every allocation and release; recording them costs time, so it is done in a pass of
its own (see `measure.py`), never while steps are timed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function


@dataclass(frozen=True)
class CpuAllocations:
    """The CPU allocator's own account, in bytes: peaks within the named spans of a recording."""

    peaks: dict[str, int]

    def peak(self, prefix: str) -> int:
        """The highest of the spans whose name starts with `prefix`; 0 if there is none."""
        return max((p for name, p in self.peaks.items() if name.startswith(prefix)), default=0)


class CpuRecorder:
    """Records every allocation of torch's CPU allocator between entering and leaving.

    What was allocated before is not counted and its release is ignored, so `peaks` are absolute for
    what is built inside. Source: torch.profiler's [memory] events (profile_memory=True).
    """

    def __init__(self) -> None:
        self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)

    def __enter__(self) -> CpuRecorder:
        self._profile.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._profile.__exit__(*exc)

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Names a stretch of the recording, so that its peak can be asked for."""
        with record_function(f"bench/{name}"):
            yield

    def allocations(self) -> CpuAllocations:
        """To be called after leaving."""
        events: Any = self._profile.profiler.kineto_results.events()  # type: ignore[union-attr]
        spans = [
            (e.start_ns(), e.end_ns(), e.name().removeprefix("bench/"))
            for e in events
            if e.name().startswith("bench/")
        ]
        changes = [
            (e.start_ns(), e.nbytes())
            for e in events
            if e.name() == "[memory]" and e.device_type() == torch._C._autograd.DeviceType.CPU
        ]
        changes.sort(key=lambda change: change[0])
        return CpuAllocations(peaks=_peaks_within(spans, changes))


def _peaks_within(spans: list[tuple[int, int, str]], changes: list[tuple[int, int]]) -> dict[str, int]:
    """For each span (start, end, name): the running sum's maximum inside it, its level at the start
    included."""
    peaks: dict[str, int] = defaultdict(int)
    for start, end, name in spans:
        held = 0
        for when, change in changes:
            if when > end:
                break
            if when > start:
                peaks[name] = max(peaks[name], held)
            held += change
            if when >= start:
                peaks[name] = max(peaks[name], held)
    return dict(peaks)
