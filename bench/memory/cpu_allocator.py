"""What torch's CPU allocator counts: it decides the measured peak on a CPU, where no device keeps counters.

torch.profiler reports every allocation and release, each with the allocator's running total. Recording
takes time, so it is done in a pass of its own (`methods/measure.py`), never while steps are timed. By
default the total misses what threads release that the profiler does not follow, above all gloo's; the flag
FLAGS_caffe2_report_cpu_memory_usage makes the allocator count every thread.

Source: ProfiledCPUMemoryReporter in c10/core/CPUAllocator.cpp.
"""

from __future__ import annotations

import ctypes
import gc
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile, record_function

_COUNT_EVERY_THREAD = "FLAGS_caffe2_report_cpu_memory_usage"


@dataclass(frozen=True)
class CpuAllocations:
    """Bytes that the CPU allocator counted: the peak within each named span of a recording."""

    peaks: dict[str, int]

    def peak(self, prefix: str) -> int:
        """The highest peak of the spans whose name starts with `prefix`; 0 if there is none."""
        return max((p for name, p in self.peaks.items() if name.startswith(prefix)), default=0)

    def least_peak(self, prefix: str) -> int:
        """The lowest peak of the spans whose name starts with `prefix`; 0 if there is none."""
        return min((p for name, p in self.peaks.items() if name.startswith(prefix)), default=0)


class CpuRecorder:
    """Records every allocation of torch's CPU allocator between entering and leaving.

    Allocations from before are not counted, so `peaks` are absolute for what is built inside. Releasing an
    earlier allocation would lower them: garbage is collected first, and the caller must keep what is still
    in use until the end.
    """

    def __init__(self) -> None:
        self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)

    def __enter__(self) -> CpuRecorder:
        gc.collect()
        _count_every_thread(True)
        self._profile.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._profile.__exit__(*exc)
        _count_every_thread(False)

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Names a stretch of the recording, so that its peak can be asked for."""
        with record_function(f"bench/{name}"):
            yield

    def allocations(self) -> CpuAllocations:
        """The recording's peaks; to be called after leaving."""
        spans: list[tuple[int, int, str]] = []
        totals: list[tuple[int, int, int]] = []
        pending: list[Any] = list(self._profile.profiler.kineto_results.experimental_event_tree())  # type: ignore[union-attr]
        while pending:
            event = pending.pop()
            pending.extend(event.children)
            if event.tag == _EventType.Allocation and event.extra_fields.device.type == "cpu":
                allocation = event.extra_fields
                totals.append((event.start_time_ns, allocation.total_allocated, allocation.alloc_size))
            elif event.name.startswith("bench/"):
                name = event.name.removeprefix("bench/")
                spans.append((event.start_time_ns, event.end_time_ns, name))
        totals.sort(key=lambda total: total[0])
        before = totals[0][1] - totals[0][2] if totals else 0
        held = [(when, total - before) for when, total, _ in totals]
        return CpuAllocations(peaks=_peaks_within(spans, held))


def _count_every_thread(yes: bool) -> None:
    """Sets c10's flag where this build of torch exports it; elsewhere only profiled threads are counted."""
    library = Path(torch.__file__).parent / "lib" / "libc10.so"
    try:
        ctypes.c_bool.in_dll(ctypes.CDLL(str(library)), _COUNT_EVERY_THREAD).value = yes
    except (OSError, ValueError):
        return


def _peaks_within(spans: list[tuple[int, int, str]], totals: list[tuple[int, int]]) -> dict[str, int]:
    """For each span (start, end, name): the total's maximum inside it, with its level at the start."""
    peaks: dict[str, int] = defaultdict(int)
    for start, end, name in spans:
        held = 0
        for when, total in totals:
            if when > end:
                break
            if when >= start:
                peaks[name] = max(peaks[name], held, total)
            held = total
    return dict(peaks)
