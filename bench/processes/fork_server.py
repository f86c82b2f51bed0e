"""The fork server: one for the life of this process, from which each rank of each trial is forked.

It has imported all libraries (`preload.py`) and touched no device. Owns its start, its end, and what it and
its children inherit. Nothing here may import torch: only the server does.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from pathlib import Path

from bench.paths import ROOT


def start_fork_server(log: Path) -> None:
    """Starts the fork server if there is none yet; what it prints goes to `log`."""
    _name_main()
    multiprocessing.get_context("forkserver").set_forkserver_preload(["bench.processes.preload"])
    with _server_environment(log):
        forkserver.ensure_running()


def _name_main() -> None:
    """multiprocessing reads `__spec__` of the main module, which those of IPython and execnet lack."""
    main = sys.modules["__main__"]
    if not hasattr(main, "__spec__"):
        main.__spec__ = None


def stop_fork_server() -> None:
    """Ends the fork server, so that the next trial starts a new one; for benchmarks of start-up."""
    forkserver._forkserver._stop()  # type: ignore[attr-defined]


def fork_server_pid() -> int | None:
    """The process number of the fork server; None if there is none yet."""
    number: int | None = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    return number


def end_with_parent() -> None:
    """In a forked process: Ctrl-C is its parent's to understand, and it ends when its parent does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    # The fork server lives as long as any process holds this open; a forked one must not keep it alive.
    with contextlib.suppress(AttributeError, OSError, TypeError):
        os.close(forkserver._forkserver._forkserver_alive_fd)  # type: ignore[attr-defined]


@contextmanager
def default_start_method(method: str) -> Iterator[None]:
    """Makes `method` the default start method while entered: a child is told its parent's default, and does
    not start if only the parent knows that method (in a worker of joblib it is loky)."""
    _name_main()
    default = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(method, force=True)
    try:
        yield
    finally:
        multiprocessing.set_start_method(default, force=True)


@contextmanager
def _server_environment(log: Path) -> Iterator[None]:
    """While entered: PYTHONPATH, stderr and SIGINT as the fork server is to inherit them.

    stderr is the log. Ctrl-C reaches all processes of a terminal, and would end a server that imports.
    """
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *([path] if path else [])])
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # see preload.py
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # as NVML numbers them
    sys.stdout.flush()
    sys.stderr.flush()
    screen = os.dup(2)
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(target, 2)
    in_main_thread = threading.current_thread() is threading.main_thread()  # only it may set handlers
    heeded = signal.signal(signal.SIGINT, signal.SIG_IGN) if in_main_thread else None
    try:
        yield
    finally:
        if in_main_thread:
            signal.signal(signal.SIGINT, heeded)
        os.dup2(screen, 2)
        os.close(screen)
        os.close(target)
        if path is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = path
