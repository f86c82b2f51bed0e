"""Accuracy: `python bench/grade.py results_dir=DIR` predicts what was measured, and prints the errors.

It predicts each measured trial by simulation and by both formulas, without a device, and prints the errors
by technique. The table is also written to DIR/report/grades.md, every trial to DIR/report/grades.csv.
On a card of the catalogue it predicts each step's time, too; `gpu=NAME` names the calibration of the device
that the rows were measured on (of this CPU, with `grid=true` or `sample=`).
`grid=true` first measures the tests' grid of configurations on the CPU; `sample=40` measures 40 random ones
(`seed=0`); `model=DIR,NAME` measures these models, plain, with LoRA and checkpointing, and in nf4.
`architectures=true` asks whether every language model of the installed transformers is measured and
simulated alike, and writes docs/architectures.md; with `sample=8` it asks eight, and the page is in
DIR/report/. Interrupted, the same command goes on. Exit codes: 0; 1 if there is nothing to grade, or a
trial could not be graded; 2 if the command line is wrong.
"""

import signal
import sys

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback of what is imported before `door.enter`

from pathlib import Path
from typing import Any

sys.path[0:1] = [str(Path(__file__).resolve().parents[1])]

_PLAIN_WIDTH = 120  # columns, where the output is no terminal


def main(arguments: list[str]) -> int:
    """Grades, prints and writes; returns the exit code."""
    import statistics

    from bench import formatting
    from bench.analysis.grading import accuracy, accuracy_grid, time_accuracy
    from bench.config.compose import CommandError
    from bench.config.key_values import KeyValueError, read_key_values
    from bench.paths import RESULTS
    from bench.timing import devices

    defaults: dict[str, Any] = {"results_dir": RESULTS, "grid": False, "sample": 0, "seed": 0}
    defaults |= {"architectures": False, "model": "", "gpu": ""}
    try:
        words = read_key_values(arguments, defaults)
        chosen = _of_models(words["model"])
        if words["gpu"]:
            devices.named(words["gpu"])
    except (KeyValueError, CommandError, devices.DeviceError) as error:
        print(f"bench/grade.py: {error}", file=sys.stderr)
        return 2
    folder: Path = words["results_dir"]
    if words["architectures"]:
        return _architectures(folder / "report", words["sample"], words["seed"])
    chosen += accuracy_grid.grid() if words["grid"] else []
    chosen += accuracy_grid.sample(words["sample"], words["seed"])
    graded, failed = _grade(folder, chosen, words["gpu"])
    if not graded:
        print(
            f"bench/grade.py: nothing to grade in {folder / 'trials'}; run bench/run.py first, "
            "or say grid=true or model=NAME",
            file=sys.stderr,
        )
        return 1
    grades = accuracy.grades_by_technique(graded)
    _write(graded, grades, folder / "report")
    console = formatting.console(_PLAIN_WIDTH)
    header, lines = accuracy.grades_lines(grades)
    formatting.print_rows(console, header, lines, right=header[1:])
    shares = [trial.bound_share for trial in graded if trial.bound_share]
    if shares:
        above = sum(share > 1 for share in shares)
        console.print(
            f"\nRoofline: its least step time is {statistics.median(shares):.0%} of the measured one "
            f"(median of {len(shares)}), and above it {above} times",
            highlight=False,
        )
    time_header, time_lines = time_accuracy.time_lines(graded)
    if time_lines:
        console.print("\nPredicted step times:", highlight=False)
        formatting.print_rows(console, time_header, time_lines, right=time_header[1:])
    console.print(
        f"\n{len(graded)} trials; every one in {folder / 'report' / 'grades.csv'}", highlight=False
    )
    return 1 if failed else 0


def _of_models(names: str) -> list[tuple[str, ...]]:
    """What is measured of each model given: plain, with LoRA and checkpointing, quantised.

    Raises:
        CommandError: a name is of no model.
    """
    from bench.analysis.grading.conformance import AXES
    from bench.config import compose

    levels = [name for name in names.split(",") if name]
    for level in levels:
        compose.trial_from([f"model={level}"])
    return [(f"model={level}", *words) for level in levels for words in AXES.values()]


def _architectures(folder: Path, sample: int, seed: int) -> int:
    """Walks all architectures, or a sample, and writes and prints the table."""
    import random

    import transformers
    from rich.console import Console
    from rich.progress import track

    from bench import formatting
    from bench.analysis.grading import conformance, conformance_table, shrunken_configs
    from bench.paths import IS_CHECKOUT, ROOT

    names = [*shrunken_configs.causal(), *shrunken_configs.sequence_to_sequence()]
    if sample:
        others = [name for name in names if name not in conformance.DIVERSE]
        names = [*conformance.DIVERSE, *random.Random(seed).sample(others, len(others))][:sample]
    found = folder / f"architectures-{transformers.__version__}.jsonl"
    for _ in track(conformance.walk(names, found), "walking", len(names), console=Console(stderr=True)):
        pass
    verdicts = [verdict for verdict in conformance.read(found) if verdict.architecture in names]
    page = conformance_table.page(verdicts, transformers.__version__, names)
    target = (ROOT / "docs" if IS_CHECKOUT and not sample else folder) / "architectures.md"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page)
    formatting.console(_PLAIN_WIDTH).print(page, markup=False, highlight=False)
    return 0


def _grade(folder: Path, chosen: list[Any], gpu: str) -> tuple[list[Any], int]:
    """The graded trials, and the number of those that could not be graded; each is named on stderr."""
    from rich.console import Console
    from rich.progress import track

    from bench.analysis.grading import predictions
    from bench.processes.simulation_pool import Simulator

    tasks: list[tuple[str, Any, Any]] = [
        *((row["overrides"], predictions.grade_row, row) for row in predictions.measured_trials(folder)),
        *((" ".join(overrides), predictions.grade_now, overrides) for overrides in chosen),
    ]
    console = Console(stderr=True)
    graded: list[Any] = []
    if not tasks:
        return graded, 0
    failed = 0
    with Simulator() as simulator:
        for label, grade, task in track(tasks, "grading", console=console):
            try:
                graded.append(grade(task, simulator, gpu))
            except predictions.NotGradedError as error:
                console.print(f"passed over: {label}: {error}", markup=False, highlight=False)
                failed += 1
    return graded, failed


def _write(graded: list[Any], grades: Any, folder: Path) -> None:
    import csv

    from bench.analysis.grading import accuracy

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "grades.md").write_text(
        "# Prediction against measurement\n\n" + accuracy.grades_markdown(grades)
    )
    with (folder / "grades.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        names = (f"{name}_error" for name in accuracy.PREDICTORS)
        times = ("step_seconds_error", "measured_seconds_per_token")
        others = ("worst_category_error", "roofline_over_measured", *times)
        writer.writerow(["trial", "measured_bytes", *names, *others])
        for trial in graded:
            errors = (trial.errors.get(name) for name in accuracy.PREDICTORS)
            worst = max(map(abs, trial.category_errors.values()), default=None)
            found = (worst, trial.bound_share, trial.time_error, trial.measured_seconds_per_token)
            writer.writerow([trial.label, trial.measured_bytes, *errors, *found])


if __name__ == "__main__":
    from bench.config import door

    sys.exit(door.enter(main, __doc__))
