"""The report: `python bench/report.py results_dir=DIR` writes DIR/report/.

  index.html          one page that opens from a disk: findings, tables, figures, claims, every row
  summary.md          findings and tables in short, for a pull request
  figures/, tables/   each figure as SVG and PNG, each table as CSV
Its key=value arguments:
  results_dir=DIR     default results
  notebooks=false     true also executes the notebooks of analysis/ on these rows, and writes them as HTML
Exit codes: 0; 1 if there is no row, a notebook fails or the report cannot be written; 2 if the command line
is wrong.
"""

import signal
import sys

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback of what is imported before `door.enter`

import shutil
import textwrap
from pathlib import Path

sys.path[0:1] = [str(Path(__file__).resolve().parents[1])]

_PLAIN_WIDTH = 160  # columns, where the output is no terminal


def main(arguments: list[str]) -> int:
    """Writes the report, prints where it is and its findings, and returns the exit code."""
    from bench.config.key_values import KeyValueError, read_key_values
    from bench.paths import RESULTS

    try:
        words = read_key_values(arguments, {"results_dir": RESULTS, "notebooks": False})
    except KeyValueError as error:
        print(f"bench/report.py: {error}", file=sys.stderr)
        return 2
    results_dir = words["results_dir"]
    target = results_dir / "report"
    try:
        rows = _read(results_dir)
        if rows.empty:
            where = results_dir / "trials"
            print(f"bench/report.py: no rows in {where}; run bench/run.py first", file=sys.stderr)
            return 1
        pages, failed = _render(results_dir, target) if words["notebooks"] else ([], 0)
        findings = _write(rows, results_dir, target, pages)
    except OSError as error:
        print(f"bench/report.py: cannot write the report: {error}", file=sys.stderr)
        return 1
    print(f"\nReport     {target / 'index.html'}  ({len(rows)} rows)")
    width = shutil.get_terminal_size((_PLAIN_WIDTH, 0)).columns
    lines = textwrap.TextWrapper(
        width, initial_indent="  ", subsequent_indent="     ", break_on_hyphens=False
    )
    for number, finding in enumerate(findings, 1):
        print(lines.fill(f"{number}. {finding}"))
    return failed


def _read(results_dir: Path):  # type: ignore[no-untyped-def]
    from bench.analysis import studies
    from bench.results import store

    return store.read(results_dir, columns=studies.COLUMNS)


def _render(results_dir: Path, target: Path) -> tuple[list[Path], int]:
    from bench.reports import notebooks

    try:
        return notebooks.render(results_dir, target), 0
    except notebooks.NotRenderedError as error:
        print(f"bench/report.py: {error}", file=sys.stderr)
        return [], 1


def _write(rows, results_dir: Path, target: Path, pages: list[Path]) -> list[str]:  # type: ignore[no-untyped-def]
    from bench.analysis import literature
    from bench.reports import contents, write

    claims = literature.read_claims(literature.LEDGER)
    report = contents.build_report(rows, claims, literature.read_values(results_dir / "claims.json"))
    write.write_report(report, target, pages)
    return report.findings


if __name__ == "__main__":
    from bench.config import door

    sys.exit(door.enter(main, __doc__))
