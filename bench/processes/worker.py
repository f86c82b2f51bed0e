"""Inside the fresh process: executes one rank of one trial.

In: a Trial and a Seat. Out: messages for the parent, pairs (kind, payload): `device` with what the trial
runs on, `stage` as each stage begins, and one last message: `ok`, `skipped`, `oom` or `error`. Importing
this module imports all libraries and touches no device; the fork server does it once for all trials.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from bench.machine import accelerator
from bench.machine.accelerator import hardware
from bench.machine.host import cores, process_bytes
from bench.methods.measure import measure
from bench.methods.predict_time import time_columns
from bench.methods.simulate import simulate
from bench.processes.nodes import Seat
from bench.timing.devices import DeviceError, device_type_of, named
from bench.trial.columns import Columns
from bench.trial.outcome import CannotExistError, in_one_line
from bench.trial.platform import platform_of
from bench.trial.skip_rules import skip_reason
from bench.trial.spec import Trial

Send = Callable[[str, Any], None]


def run_rank(trial: Trial, seat: Seat, send: Send) -> None:
    """Executes one rank of `trial` and reports what came of it; raises nothing.

    Args:
        trial: what to execute.
        seat: which rank, on which of the machine's devices, and where it meets the others.
        send: takes (kind, payload) to the parent.
    """
    columns: Columns = {}
    device = torch.device("cpu")
    try:
        if trial.method != "measure":
            _simulate(trial, columns, send)
            return
        first = accelerator.resolve(trial.device)
        nodes = trial.world_size // seat.local_ranks
        reason = skip_reason(trial, platform_of(first.type), accelerator.count(first.type) * nodes)
        if reason:
            send("skipped", {"reason": reason})
            return
        device = accelerator.resolve(trial.device, seat.local_rank)
        columns["threads"] = _set_up(trial, device, seat.local_ranks)
        send("device", hardware(device))
        if trial.fsdp.name != "off":
            _join_process_group(trial, device, seat)
        started = time.perf_counter()
        measure(trial, device, seat.rank, columns, lambda stage: send("stage", stage))
        columns["working_seconds"] = time.perf_counter() - started
        if nodes > 1:
            columns["evidence"]["nodes"] = nodes
        if dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()
        send("ok", columns)
    except (CannotExistError, DeviceError) as error:
        send("skipped", {"reason": str(error)})
    except BaseException as error:
        send(*_last_word(error, device, columns))


def _simulate(trial: Trial, columns: Columns, send: Send) -> None:
    """Simulates the trial; touches no device, whichever one the trial is about."""
    platform = platform_of(_simulated_type(trial))
    reason = skip_reason(trial, platform, device_count=0)
    if reason:
        send("skipped", {"reason": reason})
        return
    send(
        "device",
        {"device_name": f"simulated {named(trial.gpu).name if trial.gpu else platform.device_type}"},
    )
    send("stage", "simulate")
    started = time.perf_counter()
    simulation = simulate(trial, platform)
    columns |= simulation.columns
    if trial.gpu is not None:
        columns |= time_columns(trial, simulation)
    columns["working_seconds"] = time.perf_counter() - started
    send("ok", columns)


def _simulated_type(trial: Trial) -> str:
    """The type of device that a simulation is about: `device`, or that of `gpu`, or this machine's."""
    kind = trial.device.partition(":")[0]
    if kind != "auto":
        return kind
    return device_type_of(trial.gpu) if trial.gpu else accelerator.resolve("auto").type


def _last_word(error: BaseException, device: torch.device, columns: Columns) -> tuple[str, dict[str, Any]]:
    """The last message of a rank that failed; on an accelerator that ran out of memory, with its peaks."""
    if isinstance(error, CannotExistError):
        return "skipped", {"reason": in_one_line(error)}
    text = "".join(traceback.format_exception(error))
    with contextlib.suppress(OSError, ValueError):  # the disk is full, or the text cannot be encoded
        print(text, file=sys.stderr, flush=True)
    ran_out, requested_bytes = accelerator.out_of_memory(error)
    counters = accelerator.counters(device) if ran_out else None
    if counters is not None:
        columns["peak_allocated_bytes"] = counters.peak_allocated
        columns["peak_reserved_bytes"] = counters.peak_reserved
    columns["oom_requested_bytes"] = requested_bytes
    return ("oom" if ran_out else "error"), {
        "reason": in_one_line(error),
        "traceback": text,
        "columns": columns,
    }


def _set_up(trial: Trial, device: torch.device, local_ranks: int) -> int:
    """Sets the device, its memory limit if there is one, and the number of threads, which it returns."""
    torch.set_num_threads(trial.threads or max(1, len(cores()) // local_ranks))
    accelerator.activate(device, trial.memory_limit_bytes)
    if device.type == "cpu" and trial.memory_limit_bytes is not None:
        torch.ones(1 << 20).sum()  # so that the thread pool's stacks exist before the limit counts
        data_bytes = process_bytes("VmData")  # what RLIMIT_DATA counts: private writable memory
        if data_bytes is None:
            raise OSError("memory_limit_bytes on a CPU needs /proc/self/status, which this system lacks")
        resource.setrlimit(resource.RLIMIT_DATA, (data_bytes + trial.memory_limit_bytes,) * 2)
    return torch.get_num_threads()


def _join_process_group(trial: Trial, device: torch.device, seat: Seat) -> None:
    """Joins the trial's process group. Ranks of one machine meet over a file: no port, no host name."""
    if seat.rendezvous.startswith("file:"):
        loopback = "lo" if sys.platform == "linux" else "lo0"
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    dist.init_process_group(
        backend=dist.get_default_backend_for_device(device),
        init_method=seat.rendezvous,
        rank=seat.rank,
        world_size=trial.world_size,
        device_id=device if device.type != "cpu" else None,
    )
