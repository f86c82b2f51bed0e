"""From a checked command line to rows and a table: what the door does around Hydra's own loop.

In: the command line. Out: the exit code. What takes long to import is imported only after the command
line was checked, so that a mistake in it is reported at once.
"""

from __future__ import annotations

import importlib
import os
import secrets
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.plugins.sweeper import Sweeper

from bench import paths
from bench.config.command_line import LOCAL_LAUNCHERS, Command, check, without_effect
from bench.config.compose import CONF, CommandError, register_resolvers
from bench.config.reproducing import replicate_of, reproducing_command
from bench.formatting import count_of
from bench.machine import nvml
from bench.results import row_file
from bench.sweep.errors import BudgetSpentError, EndedBySignal, NotWrittenError, RefusedError

if TYPE_CHECKING:
    from bench.sweep.context import SweepContext
    from bench.sweep.schedule.budget import LeftOut
    from bench.trial.spec import Trial


def main(job: Callable[[Any], Any], argv: list[str]) -> int:
    """Runs the command line and returns the exit code.

    Args:
        job: the door's function, which Hydra calls with the config of each trial.
        argv: the command line, program name first.
    """
    register_resolvers()
    hydra_main = hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(job)
    arguments = get_args_parser().parse_intermixed_args(argv[1:])  # -m may stand anywhere
    flags_that_only_print = ("hydra_help", "cfg", "shell_completion", "info")
    if any(getattr(arguments, flag, None) for flag in flags_that_only_print):
        hydra_main()
        return 0
    if arguments.config_dir or arguments.config_path or arguments.config_name:
        print("bench/run.py: its configuration lies in conf/; other folders are not read", file=sys.stderr)
        return 2
    sweep_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
    from bench.sweep.launchers import registry

    try:
        registry.require(arguments.overrides)
        command = check(arguments.overrides, multirun=arguments.multirun, sweep_id=sweep_id)
    except CommandError as error:
        print(f"bench/run.py: {error}", file=sys.stderr)
        return 2
    try:
        if command.launcher in LOCAL_LAUNCHERS:
            for trial in command.trials:
                _require_machine(trial)
        _require_results_dir(command)
    except CommandError as error:
        print(f"bench/run.py: {error}", file=sys.stderr)
        return 2
    for sentence in without_effect(arguments.overrides, command.trials):
        print(f"bench/run.py: {sentence}", file=sys.stderr)
    sys.argv = [argv[0], *registry.arguments(command)]
    from bench.sweep.context import SweepContext, entered

    try:
        with entered(SweepContext()) as sweep:
            cut_short = _run_jobs(command, hydra_main, sweep)
    except RefusedError as error:
        print(f"bench/run.py: {error}", file=sys.stderr)
        return 2
    if cut_short == 128 + signal.SIGPIPE:  # there is nobody to show a table to
        sys.stdout = None
        return cut_short
    return _show_results(command, cut_short, sweep, argv[1:])


def _require_gpu(trial: Trial) -> None:
    """Checks that a simulated trial's `gpu` is known, and is a device of the type that it is about.

    Raises:
        CommandError: it is not.
    """
    from bench.timing import devices

    assert trial.gpu is not None
    try:
        device_type = devices.device_type_of(trial.gpu)
    except devices.DeviceError as error:
        raise CommandError(str(error)) from None
    if trial.device.partition(":")[0] not in ("auto", device_type):
        raise CommandError(
            f"device={trial.device} gpu={trial.gpu}: that is a device for device={device_type}"
        )


def _require_machine(trial: Trial) -> None:
    """Checks that this machine has the device and the cores that a trial to be measured asks for.

    Raises:
        CommandError: it does not.
    """
    if trial.method == "simulate" and trial.gpu is not None:
        _require_gpu(trial)
    if trial.method != "measure":
        return
    cores = os.cpu_count() or 1
    if trial.threads is not None and trial.threads > cores:
        raise CommandError(f"threads={trial.threads}: this machine has {count_of(cores, 'core')}")
    kind, _, index = trial.device.partition(":")
    wanted = int(index or 0) + 1
    if kind in ("auto", "cpu") or (kind == "cuda" and len(nvml.gpu_names()) >= wanted):
        return
    from bench.machine import accelerator  # torch takes seconds, and knows devices that NVML does not

    present = accelerator.count(kind)
    if present < wanted:
        raise CommandError(
            f"device={trial.device}: this machine has {present or 'none'}; choose cpu or auto, "
            f"or method=simulate, which needs no device"
        )


def _require_results_dir(command: Command) -> None:
    """Makes the folder of results if it is not there, and deletes what killed sweeps left in it.

    A dry run only reads it.

    Raises:
        CommandError: the folder cannot be written to, or, in a dry run, not be read.
    """
    folder = command.results_dir
    try:
        if command.dry_run:
            paths.names_in(folder / "trials")
            return
        if paths.is_remote(folder):
            probe = folder / "trials" / f".{command.sweep_id}"
            probe.write_bytes(b"")
            probe.unlink()
            return
        (folder / "trials").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder / "trials"):
            pass
        for abandoned in row_file.abandoned_files(folder):
            abandoned.unlink(missing_ok=True)
    except OSError as error:
        raise CommandError(f"results_dir={folder}: {error.strerror or error}") from None
    except Exception as error:  # behind a URL: whatever the package for its protocol raises
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CommandError(f"results_dir={folder}: {reason}") from None


def _run_jobs(command: Command, hydra_main: Callable[[], None], sweep: SweepContext) -> int | None:
    """Runs all jobs.

    Returns:
        None; the exit code if the sweep was cut short.

    Raises:
        RefusedError: the launcher could not submit the jobs.
    """
    from bench.sweep import progress
    from bench.sweep.schedule import order

    all_jobs: list[list[str]] = []
    # Now, while Ctrl-C is the door's: a library may turn it into an error of its own, which Hydra shows.
    importlib.import_module("bench.sweep.job")
    sweep.ends_in_time = command.launcher == "basic"
    sweep.stop.install(door=True, patient=command.launcher in LOCAL_LAUNCHERS)
    # Hydra would compose every combination before the first may start; `check` has just passed them all.
    Sweeper.validate_batch_is_legal = lambda self, batch: None  # type: ignore[method-assign]
    try:
        with ExitStack() as stack:
            sweep.display = stack.enter_context(progress.shown(command.size))
            if command.launcher == "joblib":  # its trials run in other processes, which are patient too
                stack.enter_context(sweep.stop.finishing())
            stack.enter_context(order.arranged(command.order, all_jobs.extend))
            hydra_main()
    except BudgetSpentError:
        sweep.jobs = [(reproducing_command(words), replicate_of(words)) for words in all_jobs]
        return None
    except EndedBySignal as ended:
        return 128 + ended.number
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except NotWrittenError as error:
        print(f"bench/run.py: {error}", file=sys.stderr)
        return 1
    return None


def _show_results(command: Command, cut_short: int | None, sweep: SweepContext, given: list[str]) -> int:
    """Shows the sweep's table, and returns the exit code: `cut_short`, else what the rows say."""
    from bench.results import store
    from bench.sweep import plan_table, resume, summary
    from bench.sweep.schedule import budget

    if command.dry_run:
        if cut_short:
            sweep.simulator.stop()
            return cut_short
        with sweep.simulator:
            plans = [pending.planned() for pending in sweep.planned]
        plan_table.show_plan(plans, command.budget_seconds)
        return 0
    logs = paths.local_dir(command.results_dir) / "logs" / command.sweep_id
    reused = resume.reused_rows(logs, command.results_dir)
    rows = store.records(command.results_dir, command.sweep_id)
    left_out: list[LeftOut] = []
    if command.budget_seconds is not None and cut_short is None:
        left_out = budget.left_out(logs, sweep.jobs, rows + reused)
    summary.show(rows, reused, command, given, interrupted=cut_short is not None, left_out=left_out)
    summary.show_lost(sweep.lost)
    rows += reused
    if cut_short is not None:
        return cut_short
    failed = any(row["status"] in ("error", "timeout") for row in rows)
    accounted = len(rows) + len(left_out)
    missing = command.size is not None and accounted < command.size
    return 1 if failed or missing or not accounted else 0
