"""The door: `python bench/run.py key=value ...` is one trial, `-m` with comma-separated values a sweep.

It starts light, checks the whole command line, hands it to Hydra, and shows what came of it. Exit codes:
0 when every trial is ok, oom or skipped; 1 when one is error or timeout; 2 when the command line is wrong;
130 after Ctrl-C.
"""

import signal
import sys

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback of what is imported before `door.enter`

from pathlib import Path
from typing import Any

# Running a script puts its own folder first on sys.path, where our modules would shadow others'.
sys.path[0:1] = [str(Path(__file__).resolve().parents[1])]


def job(config: Any) -> dict[str, Any] | None:
    """One Hydra job, under whatever launcher: one trial in fresh processes, one row."""
    from bench.sweep import context
    from bench.sweep.job import run

    context.current().stop.install(door=False)
    return run(config)


def main(arguments: list[str]) -> int:
    """Runs the trial or the sweep, and returns the exit code."""
    from bench.sweep.main import main as run_sweep

    return run_sweep(job, [sys.argv[0], *arguments])


def _help() -> str:
    from bench.config.reference import text

    return text()


if __name__ == "__main__":
    from bench.config import door

    sys.exit(door.enter(main, _help))
