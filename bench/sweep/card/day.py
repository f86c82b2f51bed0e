"""Card day: all that only a GPU can show, in order of worth, within a number of seconds.

`bash run_all.sh card` calls `main`. It runs the parts of conf/card.toml one after the other, each with its
share of the time, and then compares and grades what it measured. All that it makes lies in one folder,
results/card/DEVICE, and the same command goes on where it stopped: a part that is done does not run again,
and a sweep goes on by its rows. Sweeps run in this process, so that the libraries are imported once for all
of them; what may touch the device itself runs in processes of its own.

Its key=value arguments: budget_seconds=540, results_dir=results/card, wheels=wheels. It must import what
every Python has alone: the first thing that it finds out is what is missing.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.config.key_values import KeyValueError, read_key_values
from bench.machine import brought, host, nvml, provenance
from bench.paths import RESULTS, ROOT
from bench.results import baselines
from bench.sweep.card.parts import Day, Diary, Part

PARTS = ROOT / "conf" / "card.toml"
STOPPED = -1  # in place of the exit code of a command whose time was over
_TESTS_STOPPED = 2  # pytest's exit code where tests/resumable.py ended it
_NOTHING_IN_COMMON = 3  # bench/compare.py's
_LEAST_SECONDS = 5.0  # a part that has less is not begun
_LEAST_FOR_A_COMMAND = 3.0
_GRACE_SECONDS = 8.0  # for a command to end by itself, where there is time
_TO_LEAVE_SECONDS = 2.0  # for Python to start and to end, and to pack the folder
_TO_END_SECONDS = 3.0  # for a command that was asked to end, before it is killed

Call = Callable[[list[str], float], int]  # runs a command within so many seconds: exit code, or STOPPED


def main(arguments: list[str]) -> int:
    """Runs what there is time for, and returns the exit code.

    Returns:
        0; 1 if packages are missing, something failed, or got worse than the accepted rows; 2 if the
        command line is wrong; what a sweep returns after Ctrl-C.
    """
    started = time.monotonic()
    defaults: dict[str, Any] = {"budget_seconds": 540.0, "results_dir": RESULTS / "card"}
    defaults["wheels"] = ROOT / "wheels"
    try:
        words = read_key_values(arguments, defaults)
        if not words["budget_seconds"] > 0:
            raise KeyValueError(f"budget_seconds={words['budget_seconds']:g}: must be greater than 0")
    except KeyValueError as error:
        print(f"run_all.sh card: {error}", file=sys.stderr)
        return 2
    brought.unpack(words["wheels"], words["results_dir"] / ".packages")
    missing = brought.missing()
    if missing:
        print(brought.advice(missing, words["wheels"]))
        return 1
    devices = nvml.gpu_names()
    device = devices[0] if devices else host.cpu_name()
    folder = words["results_dir"] / baselines.name_of(device)
    print(f"{'' if devices else 'No GPU, so toys of all parts: '}{device}; {_versions()}; into {folder}")
    if untested := brought.untested():
        print(f"Not tested with {', '.join(untested)}: rows say so; grade them with the tested versions")
    day = Day.read(PARTS.read_text(), toy=not devices)
    return Running(folder, started, words["budget_seconds"], call).run(day)


@dataclass
class Running:
    """A day that is running into `folder` since `started` (`time.monotonic`), for `budget_seconds`."""

    folder: Path
    started: float
    budget_seconds: float
    call: Call

    def run(self, day: Day) -> int:
        """Runs the parts that are not done, then compares and grades; the exit code."""
        self.folder.mkdir(parents=True, exist_ok=True)
        environment = provenance.fingerprint(len(host.cores()))
        diary = Diary(self.folder, environment)
        os.environ["RESUMABLE_FILE"] = str(self.folder / f"tests-{environment}.txt")
        weights = day.ending_seconds + sum(part.seconds for part in day.parts)
        ending_seconds = self.budget_seconds * day.ending_seconds / weights
        to_run = [part for part in day.parts if diary.status(part) != "done"]
        while to_run and (seconds := self._left() - ending_seconds) > _LEAST_SECONDS:
            share = max(_LEAST_SECONDS, seconds * to_run[0].seconds / sum(p.seconds for p in to_run))
            part = to_run.pop(0)
            print(f"\n== {part.name}: {part.about} (at most {share:.0f} s)", flush=True)
            lacking = brought.missing(brought.FOR_TESTS) if "pytest" in part.command else []
            if lacking:
                print(f"left out: it needs {', '.join(lacking)}")
                continue
            code, whole = self._run_part(part, share)
            diary.note(part, "failed" if code else "done" if whole else "unfinished")
            if code > 128:  # Ctrl-C
                return code
        codes = self._judge() if (self.folder / "trials").is_dir() else []
        statuses = {part: diary.status(part) for part in day.parts}
        self._show(statuses)
        return 1 if any(codes) or "failed" in statuses.values() else 0

    def _left(self) -> float:
        return self.started + self.budget_seconds - _TO_LEAVE_SECONDS - time.monotonic()

    def _run_part(self, part: Part, seconds: float) -> tuple[int, bool]:
        """Runs one part within so many seconds; its exit code, and whether all of it ran."""
        ends_at = time.monotonic() + seconds
        code, whole = 0, True
        if part.command:
            os.environ["RESUMABLE_SECONDS"] = f"{seconds:.1f}"
            words = shlex.split(part.command.format(folder=shlex.quote(str(self.folder))))
            code = self.call(words, min(seconds + _GRACE_SECONDS, self._left()))
            code, whole = (0, False) if code == STOPPED else (code, True)
        for words in map(str.split, part.sweeps):
            left = ends_at - time.monotonic()
            sweep_code, complete = _sweep(words, self.folder, left) if left > 1 else (0, False)
            code, whole = max(code, sweep_code), whole and complete
        return code, whole

    def _judge(self) -> list[int]:
        """Compares and grades what was measured; the exit codes."""
        from bench.sweep import diagnosis
        from bench.sweep.card import contribution

        page = self.folder / "report" / "comparison.md"
        compare = ["bench/compare.py", "baseline_ref=auto", f"candidate={self.folder}", f"markdown={page}"]
        grade = ["bench/grade.py", f"results_dir={self.folder}"]
        codes = []
        for about, words in (("comparison with the accepted rows", compare), ("grading", grade)):
            print(f"\n== {about}", flush=True)
            code = self.call(words, self._left())
            if code == STOPPED:
                print(f"No time is left for it; anywhere, without a GPU: python {shlex.join(words)}")
            codes.append(0 if code in (STOPPED, _NOTHING_IN_COMMON) else code)
        print("\n== whether these rows can become a reference", flush=True)
        for finding in contribution.findings(self.folder):
            diagnosis.show(finding)
        return codes

    def _show(self, statuses: dict[Part, str]) -> None:
        """Says how each part ended, packs the folder, and says how to go on."""
        print()
        for part, status in statuses.items():
            print(f"{part.name:<13}{status:<12}{part.about}")
        archive = shutil.make_archive(str(self.folder), "gztar", self.folder.parent, self.folder.name)
        print(f"\nTake home    {self.folder} (packed: {archive})")
        print("Contribute   results/reference/README.md says how")
        unfinished = sum(status != "done" for status in statuses.values())
        if unfinished:
            print(f"Go on        bash run_all.sh card ({unfinished} of {len(statuses)} parts)")


def call(words: list[str], seconds: float) -> int:
    """Runs a command of this checkout with this Python; its exit code, or `STOPPED`."""
    if seconds < _LEAST_FOR_A_COMMAND:
        return STOPPED
    process = subprocess.Popen([sys.executable, *words], cwd=ROOT)
    try:
        code = process.wait(seconds - 1)
    except subprocess.TimeoutExpired:
        process.terminate()
        try:
            process.wait(_TO_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        return STOPPED
    return STOPPED if code == _TESTS_STOPPED and "pytest" in words else code


def _sweep(words: list[str], folder: Path, seconds: float) -> tuple[int, bool]:
    """Runs a sweep in this process within so many seconds; its exit code, and whether all of it ran."""
    from bench.sweep.main import main as run_sweep

    given = ["-m", *words, f"results_dir={folder}", f"budget_seconds={seconds:.0f}", "order=informative"]
    before = set(folder.glob("logs/*/*.left_out.json"))
    with _restored():
        code = run_sweep(_job, ["bench/run.py", *given])
    return code, set(folder.glob("logs/*/*.left_out.json")) <= before


def _job(config: Any) -> dict[str, Any] | None:
    from bench.sweep.job import run

    return run(config)


@contextmanager
def _restored() -> Iterator[None]:
    """Leaves the handlers of signals and the command line as they were: a sweep makes them its own."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.getsignal(number) for number in numbers}
    argv = sys.argv
    try:
        yield
    finally:
        sys.argv = argv
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _versions() -> str:
    versions = provenance.software()
    return ", ".join(f"{name} {versions[f'{name}_version']}" for name in provenance.PACKAGES[:4])


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        print("\nrun_all.sh card: stopped by Ctrl-C; the same command goes on", file=sys.stderr)
        sys.exit(130)
