"""Collectives between ranks of this machine, timed: `measured` starts a process for each rank.

In: the device, the number of ranks, and the threads of each. Out: `Sample`s of gathers, reductions and
scatters by size, under the names and bytes that simulation gives them. With one accelerator, or on a
machine with a single core, there is nothing to time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.paths import ROOT
from bench.timing.samples import Sample

_BYTES = (2**12, 2**16, 2**20, 2**24)  # of the whole tensor, in float32
_ROUNDS, _TIMES = 5, 6
_TIMEOUT_SECONDS = 120.0


def measured(device_type: str, ranks: int, threads: int) -> list[Sample]:
    """The samples of rank 0; none if there are not as many devices, or a rank fails."""
    if ranks < 2:
        return []
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", __name__, device_type, str(ranks), str(threads), f"{folder}/store"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
        started = [
            subprocess.Popen([*words, str(rank)], env=environment, stdout=subprocess.PIPE, text=True)
            for rank in range(ranks)
        ]
        try:
            outputs = [process.communicate(timeout=_TIMEOUT_SECONDS)[0] for process in started]
        except subprocess.TimeoutExpired:
            return []
        finally:
            for process in started:
                process.kill()
    if any(process.returncode for process in started):
        return []
    return [Sample(*one) for one in json.loads(outputs[0].splitlines()[-1])]


def _run_rank(device_type: str, ranks: int, threads: int, store: str, rank: int) -> list[Sample]:
    import torch
    import torch.distributed as dist

    from bench.machine import accelerator

    torch.set_num_threads(threads)
    device = torch.device(device_type, rank) if device_type != "cpu" else torch.device("cpu")
    dist.init_process_group(
        dist.get_default_backend_for_device(device),
        init_method=Path(store).as_uri(),
        rank=rank,
        world_size=ranks,
    )
    found = []
    for size in _BYTES:
        whole = torch.ones(size // 4, device=device)
        part = torch.ones(size // 4 // ranks, device=device)
        calls: tuple[Callable[[], Any], ...] = (
            lambda w=whole, p=part: dist.all_gather_into_tensor(w, p),  # type: ignore[misc]
            lambda w=whole, p=part: dist.reduce_scatter_tensor(p, w),  # type: ignore[misc]
            lambda w=whole: dist.all_reduce(w),  # type: ignore[misc]
        )
        for call in calls:
            name, moved = _seen(call)
            seconds = []
            for _ in range(_ROUNDS):
                dist.barrier()
                accelerator.synchronize(device)
                began = time.perf_counter()
                for _ in range(_TIMES):
                    call()
                accelerator.synchronize(device)
                seconds.append((time.perf_counter() - began) / _TIMES)
            found.append(Sample(name, "float32", 0, moved, min(seconds)))
    dist.destroy_process_group()
    return found


def _seen(call: Callable[[], Any]) -> tuple[str, int]:
    """The name and the bytes of a collective, as a simulated step counts them."""
    from torch.utils._python_dispatch import TorchDispatchMode

    from bench.timing.operations import work_of

    entries: list[tuple[str, int]] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if func.namespace == "c10d":
                for entry, times in work_of(func, args, kwargs or {}, result, "").items():
                    if entry.moved_bytes:
                        entries.append((entry.name, entry.moved_bytes * times))
            return result

    with Watch():  # type: ignore[no-untyped-call]
        call()
    names = {name for name, _ in entries}
    return names.pop(), sum(moved for _, moved in entries)


if __name__ == "__main__":
    kind, *numbers = sys.argv[1:]
    samples = _run_rank(kind, int(numbers[0]), int(numbers[1]), numbers[2], int(numbers[3]))
    print(json.dumps(samples))
