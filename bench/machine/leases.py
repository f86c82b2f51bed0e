"""Leases of this machine's devices, so that two trials never share one by accident.

Each GPU and each core has a lock file, and a trial that measures holds the locks of what it uses. The
kernel releases a lock when its process ends, however it ends: there is nothing to clean up. Only one trial
at a time tries to lock devices, the holder of one more lock, the queue. So a trial of many devices does get
them between trials of one device, and two such trials never hold a half each and wait for the other half.

The files lie in one folder for all users of the machine: $BENCH_LEASES, by default bench-leases in the
system's folder for temporary files.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
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

_RETRY_SECONDS = 0.2  # between two attempts to lock devices that others hold
_QUEUE, _TRIALS = "queue", "trials"  # files that are no device's


@dataclass(frozen=True)
class Lease:
    """What a trial may use: cores by number, GPUs by UUID (None: all that there are).

    `shared` says that other trials hold some of it at the same time, which only `busy=share` allows.
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
    """Holds the devices of one trial while entered. A trial that is only predicted needs none.

    Args:
        trial: what will run; its device and its number of ranks count.
        jobs: trials that this sweep runs side by side; on a CPU each gets its part of the cores.
        busy: `flag` waits for other sweeps; `wait` also until no other process uses the GPU; `share` waits
            for nobody.
        on_wait: called with who holds the devices, before each new attempt; may raise to end the wait.

    Raises:
        OSError: the lock files cannot be made.
    """
    cores = host.cores()
    if trial.method != "measure":
        yield Lease(tuple(cores))
        return
    gpus = _gpus_for(trial)
    with ExitStack() as locks:
        if not gpus:
            share = max(1, len(cores) // jobs)
            taken, shared = _take([f"core-{core}" for core in cores], share, busy, locks, on_wait)
            yield Lease(tuple(sorted(int(name.removeprefix("core-")) for name in taken)), None, shared)
            return
        numbered = ":" in trial.device  # then the trial itself says which, by number
        taken, shared = _take(
            [f"gpu-{uuid}" for uuid in gpus],
            len(gpus) if numbered else min(trial.world_size, len(gpus)),
            busy,
            locks,
            on_wait,
        )
        uuids = tuple(name.removeprefix("gpu-") for name in taken)
        if busy == "wait":
            _until_alone(uuids, on_wait)
        yield Lease(tuple(cores), None if numbered else uuids, shared)


@contextmanager
def hold_trial(identity: str, on_wait: Callable[[str], None] = lambda _who: None) -> Iterator[bool]:
    """While entered, no other process of this machine holds the trial that `identity` names.

    It is a lock of one byte of one file, far beyond its end, by a hash: the kernel releases it when this
    process ends, and there is nothing to clean up.

    Args:
        identity: tells the trial, its replicate and its folder of results from all others.
        on_wait: called with who holds it, before each new attempt; may raise to end the wait.

    Yields:
        Whether another process held it before.

    Raises:
        OSError: the lock file cannot be made.
    """
    place = int.from_bytes(hashlib.sha256(identity.encode()).digest()[:6], "big")
    waited = False
    with _open(_TRIALS) as file:
        while True:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
                break
            except (BlockingIOError, PermissionError):
                waited = True
            on_wait("another sweep, which runs this trial")
            time.sleep(_RETRY_SECONDS)
        yield waited


def _gpus_for(trial: Trial) -> list[str]:
    """UUIDs of the NVIDIA GPUs that the trial may use; none if it runs on another kind of device."""
    kind, _, index = trial.device.partition(":")
    if kind not in ("auto", "cuda"):
        return []
    uuids = nvml.gpu_uuids()
    if not index:
        return uuids
    return uuids[int(index) : int(index) + trial.world_size]


def _take(
    names: list[str], count: int, busy: str, locks: ExitStack, on_wait: Callable[[str], None]
) -> tuple[list[str], bool]:
    """Locks `count` of these, all or none, until `locks` closes; their names, and whether shared."""
    if busy == "share":
        taken = _locked(names, count, locks)
        others = [name for name in names if name not in taken][: count - len(taken)]
        return taken + others, bool(others)
    with ExitStack() as queue:
        first_in_queue = False
        while True:
            first_in_queue = first_in_queue or _lock(_QUEUE, queue)
            if first_in_queue:
                with ExitStack() as attempt:
                    taken = _locked(names, count, attempt)
                    if len(taken) == count:
                        locks.push(attempt.pop_all())
                        return taken, False
            on_wait(_holders(names))
            time.sleep(_RETRY_SECONDS)


def _locked(names: list[str], count: int, locks: ExitStack) -> list[str]:
    """Locks the first `count` of these that nobody else holds, or fewer, and returns their names."""
    taken: list[str] = []
    for name in names:
        if len(taken) < count and _lock(name, locks):
            taken.append(name)
    return taken


def _lock(name: str, locks: ExitStack) -> bool:
    """Whether the lock could be taken; it is held until `locks` closes."""
    file = _open(name)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return False
    except BaseException:
        file.close()
        raise
    locks.enter_context(file)
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return True


def _open(name: str) -> IO[str]:
    """The lock file of one device; anyone on this machine may lock it, and nobody may put a link there."""
    directory = folder()
    if not directory.is_dir():
        directory.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(PermissionError):
            directory.chmod(0o1777)
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.open(directory / name.replace("/", "_"), flags, 0o666)
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
    names = sorted(path.name for path in folder().glob("*") if path.name not in (_QUEUE, _TRIALS))
    return {name: pid for name in names if (pid := holder(name)) is not None}


def _until_alone(uuids: tuple[str, ...], on_wait: Callable[[str], None]) -> None:
    """Waits until no process computes on these GPUs."""
    while others := sorted(pid for uuid in uuids for pid in nvml.gpu_processes(uuid)):
        on_wait(f"process {', '.join(map(str, others))}")
        time.sleep(_RETRY_SECONDS)
