"""The door to comparison: `python bench/compare.py baseline=DIR candidate=DIR` says what got worse.

Its words:
  baseline=PATH       a results folder, or a glob of parquet files
  baseline_ref=NAME   instead: results/reference/NAME, a set stored in the repository
  candidate=PATH      likewise; default results
  slower=0.03         share of the throughput that may be lost
  p=0.01              the chance of seeing such a loss by accident, at most
  memory_bytes=0      bytes that the peak may grow by
  any_device=false    compare rows of different devices too
  markdown=FILE       write the table there as well
Exit codes: 0 when nothing got worse, or nothing can be compared (it says which); 1 on a regression; 2 when
the command line is wrong or the devices differ.
"""

import sys
from pathlib import Path
from typing import Any

sys.path[0:1] = [str(Path(__file__).resolve().parents[1])]


def main(arguments: list[str]) -> int:
    """Compares, prints, and returns the exit code."""
    from bench import comparing
    from bench.machine import ROOT
    from bench.words import WordError, read_words

    defaults: dict[str, Any] = {
        "baseline": "",
        "baseline_ref": "",
        "candidate": str(ROOT / "results"),
        "slower": 0.03,
        "p": 0.01,
        "memory_bytes": 0,
        "any_device": False,
        "markdown": "",
    }
    try:
        words = read_words(
            [word.removeprefix("--").replace("-ref=", "_ref=") for word in arguments], defaults
        )
        if bool(words["baseline"]) == bool(words["baseline_ref"]):
            raise WordError("say either baseline=PATH or baseline_ref=NAME")
        baseline = words["baseline"] or str(ROOT / "results" / "reference" / words["baseline_ref"])
        before, after = _rows(baseline), _rows(words["candidate"])
        thresholds = comparing.Thresholds(words["memory_bytes"], words["slower"], words["p"])
        found = comparing.compare(before, after, thresholds, any_device=words["any_device"])
    except (WordError, comparing.OtherDevice) as error:
        hint = " (any_device=true compares them all the same)" * isinstance(error, comparing.OtherDevice)
        print(f"bench/compare.py: {error}{hint}", file=sys.stderr)
        return 2
    if words["markdown"]:
        Path(words["markdown"]).write_text(comparing.markdown(found))
    return _show(found, len(before), len(after))


def _rows(place: str) -> list[dict[str, Any]]:
    from bench import results
    from bench.words import WordError

    folder = Path(place).expanduser()
    if folder.is_dir():
        nested = folder / "trials"
        return results.records_of(sorted((nested if nested.is_dir() else folder).glob("*.parquet")))
    files = sorted(folder.parent.glob(folder.name)) if folder.parent.is_dir() else []
    if not files:
        raise WordError(f"{place}: neither a folder nor files")
    return results.records_of(files)


def _show(found: list[Any], before: int, after: int) -> int:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from bench import comparing

    console = Console()
    console = console if console.is_terminal else Console(width=180)
    if not found:
        console.print(f"Nothing to compare: no trial is in both sets ({before} rows, {after} rows).")
        return 0
    header, rows = comparing.lines(found)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in header:
        table.add_column(name, overflow="fold")
    for one, row in zip(found, rows, strict=True):
        table.add_row(*map(escape, row), style="red" if one.regressions else "")
    console.print(table, highlight=False)
    worse = [one for one in found if one.regressions]
    alone = sum(one.p is None for one in found)
    if alone:
        console.print(f"\nSpeed is not judged for {alone} trials without replicates (replicates=5).")
    if worse:
        console.print(
            f"\n{len(worse)} of {len(found)} trials got worse; the worst: {escape(worse[0].label)}"
        )
        return 1
    console.print(f"\nNone of {len(found)} trials got worse.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
