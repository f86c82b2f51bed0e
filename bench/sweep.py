"""From a checked command line to rows and a table: what the door does around Hydra's own loop."""

from __future__ import annotations

import secrets
import shlex
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from bench.config import Command, CommandError, check, job_of, register_resolvers, trial_of

_OWN_KEYS = ("sweep_id", "sweep_size", "replicate", "replicates", "results_dir", "hydra.mode")


def main(hydra_main: Callable[[], None], argv: list[str]) -> int:
    """Runs the command line and returns the exit code.

    Args:
        hydra_main: the door's function under @hydra.main, which reads sys.argv.
        argv: the command line, program name first.
    """
    arguments = get_args_parser().parse_args(argv[1:])
    asks = ("help", "hydra_help", "version", "cfg", "shell_completion", "info")
    if any(getattr(arguments, ask, None) for ask in asks):
        hydra_main()
        return 0
    if arguments.config_dir or arguments.config_path or arguments.config_name:
        print("bench/run.py: its configuration lies in conf/; other folders are not read", file=sys.stderr)
        return 2
    sweep_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
    from bench import launchers

    try:
        launcher = launchers.chosen(arguments.overrides)
        command = check(arguments.overrides, multirun=arguments.multirun, sweep_id=sweep_id)
    except CommandError as error:
        print(f"bench/run.py: {error}", file=sys.stderr)
        return 2
    try:
        (command.results_dir / "trials").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=command.results_dir / "trials"):
            pass
    except OSError as error:
        print(f"bench/run.py: results_dir={command.results_dir}: {error.strerror}", file=sys.stderr)
        return 2
    words = command.arguments if launcher is None else launchers.prepare(launcher, command)
    sys.argv = [argv[0], *words]
    from bench import screen

    try:
        with screen.progress(command.size):
            hydra_main()
        interrupted = False
    except KeyboardInterrupt:
        interrupted = True
    return _close(command, interrupted)


def _close(command: Command, interrupted: bool) -> int:
    """Shows the sweep's table; the exit code follows from its rows."""
    from bench import results, screen

    rows = results.records(command.results_dir, command.sweep_id)
    screen.show(rows, command, interrupted)
    screen.show_lost()
    if interrupted:
        return 130
    failed = any(row["status"] in ("error", "timeout") for row in rows)
    missing = command.size is not None and len(rows) < command.size
    return 1 if failed or missing or not rows else 0


def run_job(config: DictConfig) -> dict[str, Any]:
    """One trial: executed, its row written, shown and returned. Never raises for what a trial does.

    Raises:
        CommandError: the config is not a trial (under sweepers whose values nobody could check).
        OSError: the row cannot be written.
    """
    from bench import isolate, machine, results, screen

    register_resolvers()  # the job may have come here by itself, from a pickle
    trial, job = trial_of(config), job_of(config)
    hydra: Any = HydraConfig.get()
    number = int(hydra.job.get("num") or 0)  # missing outside of -m
    sweep_id = job.sweep_id or "single"
    overrides = reproducing(list(hydra.overrides.task))
    name = f"{sweep_id}-{number:04d}-{trial.trial_id}"
    started_at = datetime.now(UTC)
    line = screen.begin(number, job.sweep_size, overrides, job.replicate)
    outcome = isolate.run(
        trial,
        log=job.results_dir / "logs" / sweep_id / f"{name}.log",
        timeout_seconds=job.timeout_seconds,
        on_stage=line.stage,
    )
    identity: dict[str, Any] = {
        "sweep_id": sweep_id,
        "replicate": job.replicate,
        "started_at": started_at,
        "overrides": shlex.join(["python", "bench/run.py", *overrides]),
        **machine.software(),
    }
    row = results.row_of(trial, outcome, identity)
    results.write(row, job.results_dir, name)
    line.end(row)
    return row


def reproducing(overrides: list[str]) -> list[str]:
    """The overrides that define a trial, without those that the door adds or that say where to."""
    return [o for o in overrides if o.partition("=")[0] not in _OWN_KEYS]
