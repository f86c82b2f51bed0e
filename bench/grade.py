"""The door to the grades: `python bench/grade.py results_dir=DIR` predicts what was measured there.

For each measured trial it asks simulation and both formulas, on no device, and prints the errors by
technique; the table is also written to DIR/report/grades.md, every trial to DIR/report/grades.csv.
`grid=true` first measures the grid of configurations that the tests grade, on the CPU, and `sample=40` as
many that nobody picked (`seed=0`). Exit codes: 2 when the command line is wrong, 1 when there is nothing to
grade.
"""

import csv
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path[0:1] = [str(Path(__file__).resolve().parents[1])]


def main(arguments: list[str]) -> int:
    """Grades, prints and writes; returns the exit code."""
    from bench.analysis import accuracy, accuracy_grid
    from bench.config.key_values import KeyValueError, read_key_values
    from bench.paths import ROOT

    defaults: dict[str, Any] = {"results_dir": ROOT / "results", "grid": False, "sample": 0, "seed": 0}
    try:
        words = read_key_values(arguments, defaults)
    except KeyValueError as error:
        print(f"bench/grade.py: {error}", file=sys.stderr)
        return 2
    folder: Path = words["results_dir"]
    chosen = (accuracy_grid.grid() if words["grid"] else []) + accuracy_grid.sample(
        words["sample"], words["seed"]
    )
    found, failed = _grade(folder, chosen)
    if not found:
        print(
            f"bench/grade.py: nothing to grade in {folder / 'trials'}; run bench/run.py first, "
            "or say grid=true",
            file=sys.stderr,
        )
        return 1
    grades = accuracy.grades_by_technique(found)
    _write(found, grades, folder / "report")
    from rich.console import Console

    console = Console()
    console = console if console.is_terminal else Console(width=120)
    console.print(accuracy.grades_table(grades))
    shares = [one.bound_share for one in found if one.bound_share]
    if shares:
        above = sum(share > 1 for share in shares)
        console.print(
            f"\nRoofline: its least step time is {statistics.median(shares):.0%} of the measured one "
            f"(median of {len(shares)}), and above it {above} times",
            highlight=False,
        )
    console.print(
        f"\n{len(found)} trials; every one in {folder / 'report' / 'grades.csv'}", highlight=False
    )
    return 1 if failed else 0


def _grade(folder: Path, chosen: list[Any]) -> tuple[list[Any], int]:
    """What could be graded, and how many could not: those are named as they come."""
    from rich.console import Console
    from rich.progress import track

    from bench.analysis import predictions
    from bench.processes.simulation_pool import Simulator

    tasks: list[tuple[str, Any, Any]] = [
        *((row["overrides"], predictions.grade_row, row) for row in predictions.measured_trials(folder)),
        *((" ".join(overrides), predictions.grade_now, overrides) for overrides in chosen),
    ]
    console = Console(stderr=True)
    found: list[Any] = []
    if not tasks:
        return found, 0
    failed = 0
    with Simulator() as simulator:
        for label, grade, what in track(tasks, "grading", console=console):
            try:
                found.append(grade(what, simulator))
            except predictions.NotGradedError as error:
                console.print(f"passed over: {label}: {error}", markup=False, highlight=False)
                failed += 1
    return found, failed


def _write(found: list[Any], grades: Any, folder: Path) -> None:
    from bench.analysis import accuracy

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "grades.md").write_text(
        "# Prediction against measurement\n\n" + accuracy.grades_markdown(grades)
    )
    with (folder / "grades.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        names = (f"{name}_error" for name in accuracy.PREDICTORS)
        writer.writerow(
            ["trial", "measured_bytes", *names, "worst_category_error", "roofline_over_measured"]
        )
        for one in found:
            errors = (one.errors.get(name) for name in accuracy.PREDICTORS)
            worst = max(map(abs, one.category_errors.values()), default=None)
            writer.writerow([one.label, one.measured_bytes, *errors, worst, one.bound_share])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
