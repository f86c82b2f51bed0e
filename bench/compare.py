"""The door to comparison: `python bench/compare.py baseline=DIR candidate=DIR` says what got worse.

Its words:
  baseline=PATH       a results folder, or a glob of parquet files
  baseline_ref=NAME   instead: results/reference/NAME, a set accepted into the repository; or auto for the
                      candidate's device, which may have none yet
  candidate=PATH      likewise; default results
  slower=0.03         share of the throughput that may be lost
  p=0.01              the chance of seeing such a loss by accident, at most
  memory_bytes=0      bytes that the peak may grow by
  any_device=false    compare rows of different devices too
  markdown=FILE       write the table there as well
Options are words too: --baseline-ref NAME, --baseline-ref=NAME. Exit codes: 0 when nothing got worse, or
nothing can be compared (it says which); 1 on a regression; 2 when the command line is wrong or the devices
differ.
"""

import sys
from pathlib import Path
from typing import Any

sys.path[0:1] = [str(Path(__file__).resolve().parents[1])]


def main(arguments: list[str]) -> int:
    """Compares, prints, and returns the exit code."""
    from bench.analysis import comparison
    from bench.config.key_values import KeyValueError, options_as_key_values, read_key_values
    from bench.paths import ROOT

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
        words = read_key_values(options_as_key_values(arguments), defaults)
        return _compare(words)
    except (KeyValueError, comparison.OtherDevice) as error:
        hint = " (any_device=true compares them all the same)" * isinstance(error, comparison.OtherDevice)
        print(f"bench/compare.py: {error}{hint}", file=sys.stderr)
        return 2


def _compare(words: dict[str, Any]) -> int:
    from bench.analysis import comparison
    from bench.config.key_values import KeyValueError

    if bool(words["baseline"]) == bool(words["baseline_ref"]):
        raise KeyValueError("say either baseline=PATH or baseline_ref=NAME")
    after = _rows(words["candidate"])
    baseline = words["baseline"] or _accepted(words["baseline_ref"], after, words["candidate"])
    if words["baseline_ref"] == "auto" and not any(Path(baseline).rglob("*.parquet")):
        advice = _how_to_accept(baseline, words["candidate"])
        _write(words["markdown"], advice)
        print(advice)
        return 0
    before = _rows(baseline)
    thresholds = comparison.Thresholds(words["memory_bytes"], words["slower"], words["p"])
    found = comparison.compare(before, after, thresholds, any_device=words["any_device"])
    said = comparison.verdict(found, before, after)
    _write(words["markdown"], "\n\n".join([comparison.comparison_markdown(found).rstrip(), *said]))
    _show(found, said)
    return 1 if any(one.regressions for one in found) else 0


def _accepted(name: str, after: list[dict[str, Any]], candidate: str) -> str:
    """The folder of a set in the repository; with auto it need not be there."""
    from bench.config.key_values import KeyValueError
    from bench.results import baselines

    if name != "auto":
        if name not in baselines.names():
            there = ", ".join(baselines.names()) or "none yet"
            raise KeyValueError(f"baseline_ref={name}: no such set; there are: {there}; or auto, by device")
        return str(baselines.FOLDER / name)
    try:
        return str(baselines.FOLDER / baselines.name_of(baselines.device_of(after)))
    except ValueError as error:
        raise KeyValueError(f"baseline_ref=auto: the rows of {candidate} were {error}") from None


def _how_to_accept(folder: str, candidate: str) -> str:
    from bench.paths import ROOT

    place = Path(folder).relative_to(ROOT)
    return (
        f"No baseline has been accepted for this device yet: there is no {place}.\n"
        f"To accept these rows as one, have them reviewed in a pull request:\n\n"
        f"    mkdir -p {place} && cp -r {candidate}/trials/* {place}/\n"
    )


def _write(markdown: str, text: str) -> None:
    if markdown:
        Path(markdown).parent.mkdir(parents=True, exist_ok=True)
        Path(markdown).write_text(f"# Comparison with the baseline\n\n{text.rstrip()}\n")


def _rows(place: str) -> list[dict[str, Any]]:
    from bench.config.key_values import KeyValueError
    from bench.results import store
    from bench.sweep import resume

    folder = Path(place).expanduser()
    if folder.is_dir():
        nested = folder / "trials"
        return resume.without_resolved_failures(store.records_in(nested if nested.is_dir() else folder))
    files = sorted(folder.parent.glob(folder.name)) if folder.parent.is_dir() else []
    if not files:
        raise KeyValueError(f"{place}: neither a folder nor files")
    return resume.without_resolved_failures(store.records_of(files))


def _show(found: list[Any], said: list[str]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from bench.analysis import comparison

    console = Console()
    console = console if console.is_terminal else Console(width=180)
    if found:
        header, rows = comparison.comparison_lines(found)
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for name in header:
            table.add_column(name, overflow="fold")
        for one, row in zip(found, rows, strict=True):
            table.add_row(*map(escape, row), style="red" if one.regressions else "")
        console.print(table, highlight=False)
    for sentence in said:
        console.print(f"\n{escape(sentence)}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
