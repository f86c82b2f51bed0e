"""Leases of this machine's devices, so that two trials never share one by accident.

Each GPU and each core has a lock file, and a trial that measures holds the locks of what it uses. The
kernel lets go of a lock when its process ends, however it ends: there is nothing to clean up. Who waits
stands in one line (a lock of its own), so that a trial of many devices is not starved by those of one, and
two of them never wait for each other's half.

The files lie in one folder for all users of the machine: $BENCH_LEASES, by default bench-leases in the
system's folder for temporary files.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bench.machine import host, nvml
from bench.trial.spec import Trial

_PATIENCE_SECONDS = 0.2  # between two looks at devices that others hold
_QUEUE = "queue"


@dataclass(frozen=True)
class Lease:
    """What a trial may use: cores by number, GPUs by UUID (None: all that there are).

    `shared` says that others hold some of it at the same time, which only `busy=share` allows.
    """

    cores: tuple[int, ...]
    gpus: tuple[str, ...] | None = None
    shared: bool = False


def folder() -> Path:
    """Where the lock files lie."""
    named = os.environ.get("BENCH_LEASES")
    return Path(named) if named else Path(tempfile.gettempdir()) / "bench-leases"


@contextmanager
def hold_devices(
    trial: Trial,
    *,
    jobs: int,
    busy: str,
    on_wait: Callable[[str], None] = lambda _who: None,
) -> Iterator[Lease]:
    """The devices of one trial, for as long as the context lasts. What is predicted needs none.

    Args:
        trial: on which kind of device, and of how many ranks.
        jobs: trials that this sweep runs side by side; on a CPU each gets its part of the cores.
        busy: `flag` waits for other sweeps; `wait` also until no other process uses the GPU; `share` waits
            for nobody.
        on_wait: told who is waited for, before each further look; what it raises ends the wait.

    Raises:
        OSError: the lock files cannot be made.
    """
    cores = host.cores()
    if trial.method != "measure":
        yield Lease(tuple(cores))
        return
    gpus = _gpus_for(trial)
    with ExitStack() as held:
        if not gpus:
            share = max(1, len(cores) // jobs)
            taken, shared = _take([f"core-{core}" for core in cores], share, busy, held, on_wait)
            yield Lease(tuple(sorted(int(name.removeprefix("core-")) for name in taken)), None, shared)
            return
        numbered = ":" in trial.device  # then the trial itself says which, by number
        taken, shared = _take(
            [f"gpu-{uuid}" for uuid in gpus],
            len(gpus) if numbered else min(trial.world_size, len(gpus)),
            busy,
            held,
            on_wait,
        )
        uuids = tuple(name.removeprefix("gpu-") for name in taken)
        if busy == "wait":
            _until_alone(uuids, on_wait)
        yield Lease(tuple(cores), None if numbered else uuids, shared)


def _gpus_for(trial: Trial) -> list[str]:
    """UUIDs of the NVIDIA GPUs that the trial may use; none where it runs on the CPU (or on what NVML does
    not know)."""
    kind, _, index = trial.device.partition(":")
    if kind not in ("auto", "cuda"):
        return []
    uuids = nvml.gpu_uuids()
    if not index:
        return uuids
    return uuids[int(index) : int(index) + trial.world_size]


def _take(
    names: list[str], count: int, busy: str, held: ExitStack, on_wait: Callable[[str], None]
) -> tuple[list[str], bool]:
    """Locks `count` of these devices, all or none, and keeps them in `held`; whether some are shared."""
    if busy == "share":
        taken = _locked(names, count, held)
        others = [name for name in names if name not in taken][: count - len(taken)]
        return taken + others, bool(others)
    with ExitStack() as line:
        mine = False
        while True:
            mine = mine or _lock(_QUEUE, line)
            if mine:
                with ExitStack() as attempt:
                    taken = _locked(names, count, attempt)
                    if len(taken) == count:
                        held.push(attempt.pop_all())
                        return taken, False
            on_wait(_holders(names))
            time.sleep(_PATIENCE_SECONDS)


def _locked(names: list[str], count: int, held: ExitStack) -> list[str]:
    """The first `count` of these that nobody else holds, or fewer."""
    taken: list[str] = []
    for name in names:
        if len(taken) < count and _lock(name, held):
            taken.append(name)
    return taken


def _lock(name: str, held: ExitStack) -> bool:
    file = _open(name)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return False
    except BaseException:
        file.close()
        raise
    held.enter_context(file)
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return True


def _open(name: str) -> IO[str]:
    """The lock file of one device; anyone on this machine may lock it, and nobody may put a link there."""
    where = folder()
    if not where.is_dir():
        where.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(PermissionError):
            where.chmod(0o1777)
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.open(where / name.replace("/", "_"), flags, 0o666)
    with contextlib.suppress(PermissionError):
        os.fchmod(file, 0o666)  # whatever the umask
    return os.fdopen(file, "a+")


def _holders(names: list[str]) -> str:
    """Who holds these, by process number, for a person to read."""
    pids = sorted({text for text in (holder(name) for name in names) if text})
    return f"process {', '.join(pids)}" if pids else "another sweep"


def holder(name: str) -> str | None:
    """The number of the process that holds this device's lock, or None if nobody does."""
    try:
        with (folder() / name).open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read().strip() or "?"
    except OSError:
        pass
    return None


def leased() -> dict[str, str]:
    """The devices of this machine that are held now, and by which process."""
    names = sorted(path.name for path in folder().glob("*") if path.name != _QUEUE)
    return {name: pid for name in names if (pid := holder(name)) is not None}


def _until_alone(uuids: tuple[str, ...], on_wait: Callable[[str], None]) -> None:
    """Returns when no process computes on these GPUs."""
    while others := sorted(pid for uuid in uuids for pid in nvml.gpu_processes(uuid)):
        on_wait(f"process {', '.join(map(str, others))}")
        time.sleep(_PATIENCE_SECONDS)
