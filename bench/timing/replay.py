"""Operations that simulation has seen, executed for real: what each costs on the device that is present.

In: operations with their fake arguments. Out: `Sample`s: seconds of one execution. Real arguments have the
fake ones' shapes, strides and types: floats are random numbers below one, everything else is zeros, which
are valid indices. An operation is repeated for some milliseconds, three times, and the fastest counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch

from bench.machine import accelerator
from bench.timing.operations import work_of
from bench.timing.samples import ProductSample, Sample

LAYOUTS = ("nt", "nn", "tn")  # of a linear layer's forward, and of the gradients of its input and weight
_TARGET_SECONDS, _ROUNDS = 0.004, 3
_LIMIT_SECONDS = 0.5  # of one execution; what takes longer is timed once


@dataclass(frozen=True)
class _Like:
    """A tensor's form, in place of a fake tensor."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def make(self, device: torch.device) -> torch.Tensor:
        """A real tensor of this form."""
        made = torch.empty_strided(self.size, self.stride, dtype=self.dtype, device=device)
        return made.uniform_(0.05, 1.0) if self.dtype.is_floating_point else made.zero_()


@dataclass
class Seen:
    """The distinct operations that simulated steps have called; pass it as the observer of a simulation."""

    calls: dict[str, tuple[Any, Any, dict[str, Any], str, int, int]] = field(default_factory=dict)

    def __call__(self, func: Any, args: Any, kwargs: dict[str, Any], result: Any) -> None:
        """Keeps the operation, unless it moves nothing, multiplies matrices, or sends to other ranks."""
        entries = work_of(func, args, kwargs, result, "")
        moved = sum(entry.moved_bytes * times for entry, times in entries.items())
        first = next(iter(entries), None)
        if first is None or not moved or first.shape or first.name.startswith("c10d::"):
            return
        flops = sum(entry.flops * times for entry, times in entries.items())
        forms, options = _forms(args), _forms(kwargs)
        key = f"{func.name()} {forms} {options}"
        self.calls.setdefault(key, (func, forms, options, first.dtype, flops, moved))

    def __len__(self) -> int:
        return len(self.calls)


def _forms(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return _Like(tuple(value.shape), value.stride(), value.dtype)
    if isinstance(value, list | tuple):
        return type(value)(_forms(one) for one in value)
    if isinstance(value, dict):
        return {name: _forms(one) for name, one in value.items()}
    return value


def _made(value: Any, device: torch.device) -> Any:
    if isinstance(value, _Like):
        return value.make(device)
    if isinstance(value, list | tuple):
        return type(value)(_made(one, device) for one in value)
    if isinstance(value, dict):
        return {name: _made(one, device) for name, one in value.items()}
    return device if isinstance(value, torch.device) else value


def samples(seen: Seen, device: torch.device, failed: dict[str, str]) -> Iterator[Sample]:
    """Times every operation that was seen.

    Args:
        seen: the operations.
        device: where to execute them.
        failed: filled with the operations that could not be executed, and why.
    """
    for func, forms, options, dtype, flops, moved in seen.calls.values():
        name = func.name().partition(".")[0]
        try:
            args, kwargs = _made(forms, device), _made(options, device)
            with torch.no_grad():
                seconds = _seconds(lambda func=func, a=args, k=kwargs: func(*a, **k), device)  # type: ignore[misc]
        except Exception as error:  # whatever a kernel says about arguments that nobody computed
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            continue
        yield Sample(name, dtype, flops, moved, seconds)


def product_samples(
    device: torch.device, sizes: tuple[tuple[int, ...], ...], dtypes: tuple[torch.dtype, ...]
) -> Iterator[ProductSample]:
    """Times products of matrices over a grid, as linear layers call them: rows x inner by inner x columns.

    Args:
        device: where to execute them.
        sizes: the rows, the columns and the inner lengths of the grid.
        dtypes: of both matrices.
    """
    for dtype, layout in product(dtypes, LAYOUTS):
        for rows, columns, inner in product(*sizes):
            left = _matrix(rows, inner, layout[0], dtype, device)
            right = _matrix(inner, columns, layout[1], dtype, device)
            with torch.no_grad():
                seconds = _seconds(lambda a=left, b=right: torch.mm(a, b), device)  # type: ignore[misc]
            name = str(dtype).removeprefix("torch.")
            yield ProductSample(name, rows, columns, inner, layout, seconds)


def _matrix(rows: int, columns: int, lies: str, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A random matrix [rows, columns] that lies by rows (`n`) or by columns (`t`)."""
    size = (rows, columns) if lies == "n" else (columns, rows)
    made = torch.empty(size, dtype=dtype, device=device).normal_(0, 0.02)
    return made if lies == "n" else made.t()


def copy_samples(device: torch.device) -> Iterator[Sample]:
    """Times copies between host and device, pinned; nothing where they are one."""
    if device.type == "cpu":
        return
    for size in (2**20, 2**24, 2**28):
        host = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        there = torch.empty(size, dtype=torch.uint8, device=device)
        seconds = _seconds(lambda h=host, t=there: t.copy_(h, non_blocking=True), device)  # type: ignore[misc]
        yield Sample("to_device", "uint8", 0, size, seconds)
        seconds = _seconds(lambda h=host, t=there: h.copy_(t, non_blocking=True), device)  # type: ignore[misc]
        yield Sample("to_host", "uint8", 0, size, seconds)


def fresh_memory_seconds_per_byte(device: torch.device) -> float:
    """What it costs to write memory that the system has just given, beyond writing it again; 0 where an
    allocator of its own keeps what was freed. A tensor beyond 32 MiB is always new to glibc's malloc."""
    if device.type != "cpu":
        return 0.0
    size = 2**26
    extra = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        made = torch.empty(size, dtype=torch.uint8).fill_(1)
        first = time.perf_counter()
        made.fill_(2)
        extra.append((first - began) - (time.perf_counter() - first))
    return max(0.0, min(extra)) / size


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call: the fastest of some rounds, each with one synchronisation at its end."""
    once = _round(call, 1, device)  # it warms up, too
    once = min(once, _round(call, 1, device)) if once < _LIMIT_SECONDS else once
    if once >= _LIMIT_SECONDS:
        return once
    times = max(1, round(_TARGET_SECONDS / max(once, 1e-7)))
    return min(_round(call, times, device) for _ in range(_ROUNDS))


def _round(call: Callable[[], object], times: int, device: torch.device) -> float:
    started = time.perf_counter()
    for _ in range(times):
        call()
    accelerator.synchronize(device)
    return (time.perf_counter() - started) / times
