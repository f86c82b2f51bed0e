"""method=simulate: the measured step over fake tensors: shapes without data, no device, no memory.

The same `build` and `step` run under torch's FakeTensorMode, and the tracker that attributes a measured
step says what the allocator would have held. Where the code looks at data (is anything masked? did it
overflow?) it is given the answer that the measured step finds, so that it takes the measured step's path.

Sources of what is answered: transformers' masking_utils asks whether tokens are packed or padded (never,
here) and treats fake tensors as tracing; torch's GradScaler asks whether any gradient overflowed (not in a
step that counts); Adafactor reads its step count.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import masking_utils

from bench import facts
from bench.build import build
from bench.step import step
from bench.trial import Trial

_SETTLING_STEPS = 2  # the optimizer's state appears in the first; the second is already steady


class _Answers(TorchDispatchMode):
    """Gives code that reads a fake scalar the value that a training step would find there."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            dtype = args[0].dtype
            return True if dtype == torch.bool else 1.0 if dtype.is_floating_point else 1
        return func(*args, **(kwargs or {}))


def _step_regardless(
    _scaler: Any, optimizer: torch.optim.Optimizer, _state: Any, *args: Any, **kwargs: Any
) -> Any:
    return optimizer.step(*args, **kwargs)


@contextmanager
def _fake() -> Iterator[None]:
    """Inside, new tensors have shapes only, and questions about their data are answered."""
    with ExitStack() as stack:
        enter = stack.enter_context
        enter(mock.patch.object(masking_utils, "is_tracing", lambda *_: False))
        enter(mock.patch.object(torch.amp.GradScaler, "_maybe_opt_step", _step_regardless))
        enter(FakeTensorMode(allow_non_fake_inputs=True))
        enter(_Answers())  # type: ignore[no-untyped-call]
        yield


def simulate(trial: Trial, columns: dict[str, Any]) -> None:
    """The columns that a steady step of `trial` on a CPU determines without running it.

    Args:
        trial: what to predict.
        columns: filled as facts become known.
    """
    started = time.perf_counter()
    with _fake():
        run = build(trial, torch.device("cpu"))
        columns["build_seconds"] = time.perf_counter() - started
        columns |= facts.size(run)
        for _ in range(_SETTLING_STEPS):
            step(run)
        columns |= facts.watched_step(run)
    columns["peak_allocated_bytes"] = columns["tracked_peak_bytes"]
