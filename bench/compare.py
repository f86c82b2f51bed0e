"""Comparison: `python bench/compare.py baseline=DIR candidate=DIR` says what got worse.

Its key=value arguments:
  baseline=PATH       a results folder, or a glob of parquet files
  baseline_ref=NAME   instead of baseline: results/reference/NAME, a set accepted into the repository; auto
                      takes that of the candidate's device, which need not exist
  candidate=PATH      a results folder, or a glob of parquet files; default results
  slower=0.03         the share of the throughput that may be lost
  p=0.01              the largest probability of such a loss by chance that counts as a regression
  memory_bytes=0      the bytes by which the peak may grow
  any_device=false    true also compares rows of different devices
  require_all=false   true: a trial of the baseline that the candidate lacks is a failure, too
  markdown=FILE       also write the table there
Options work too: --baseline-ref NAME, --baseline-ref=NAME. Exit codes: 0 if nothing got worse, or
baseline_ref=auto finds no baseline for this device yet (it says how to accept one); 1 if something got
worse; 2 if the command line is wrong or the devices differ; 3 if no trial is in both sets, so that nothing
was compared.
"""

import signal
import sys

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback of what is imported before `door.enter`

from pathlib import Path
from typing import Any

sys.path[0:1] = [str(Path(__file__).resolve().parents[1])]

_NOTHING_MATCHED = 3
_PLAIN_WIDTH = 180  # columns, where the output is no terminal


def main(arguments: list[str]) -> int:
    """Compares, prints, and returns the exit code."""
    from bench.analysis import comparison
    from bench.config.key_values import KeyValueError, options_as_key_values, read_key_values
    from bench.paths import RESULTS

    defaults: dict[str, Any] = {
        "baseline": "",
        "baseline_ref": "",
        "candidate": str(RESULTS),
        "slower": 0.03,
        "p": 0.01,
        "memory_bytes": 0,
        "any_device": False,
        "require_all": False,
        "markdown": "",
    }
    try:
        words = read_key_values(options_as_key_values(arguments), defaults)
        return _compare(words)
    except (KeyValueError, comparison.OtherDeviceError) as error:
        other_device = isinstance(error, comparison.OtherDeviceError)
        hint = " (any_device=true compares them all the same)" if other_device else ""
        print(f"bench/compare.py: {error}{hint}", file=sys.stderr)
        return 2


def _compare(words: dict[str, Any]) -> int:
    from bench.analysis import comparison, comparison_table
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
    compared = comparison.compare(before, after, thresholds, any_device=words["any_device"])
    verdict = comparison_table.verdict(compared, before, after)
    subject = comparison_table.subject(after)
    table = comparison_table.comparison_markdown(compared).rstrip()
    _write(words["markdown"], "\n\n".join([f"{subject}.", table, *verdict]))
    _show(subject, compared, verdict)
    if not compared:
        return _NOTHING_MATCHED
    gone = words["require_all"] and comparison.unmatched(before, after)
    return 1 if gone or any(trial.regressions for trial in compared) else 0


def _accepted(name: str, after: list[dict[str, Any]], candidate: str) -> str:
    """The folder of an accepted baseline; with `auto`, of the candidate's device, which need not exist."""
    from bench.config.key_values import KeyValueError
    from bench.results import baselines

    if name != "auto":
        if name not in baselines.names():
            known = ", ".join(baselines.names()) or "none yet"
            raise KeyValueError(f"baseline_ref={name}: no such set; there are: {known}; or auto, by device")
        return str(baselines.FOLDER / name)
    try:
        return str(baselines.FOLDER / baselines.name_of(baselines.device_of(after)))
    except ValueError as error:
        raise KeyValueError(f"baseline_ref=auto: the rows of {candidate} were {error}") from None


def _how_to_accept(folder: str, candidate: str) -> str:
    from bench.paths import SHIPPED

    place = Path(folder).relative_to(SHIPPED)
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


def _show(subject: str, compared: list[Any], verdict: list[str]) -> None:
    from rich.markup import escape

    from bench import formatting
    from bench.analysis import comparison_table

    console = formatting.console(_PLAIN_WIDTH)
    if compared:
        console.print(f"{escape(subject)}\n", highlight=False)
        header, rows = comparison_table.comparison_lines(compared)
        styles = ["red" if trial.regressions else "" for trial in compared]
        formatting.print_rows(console, header, rows, wraps=["trial", "verdict"], styles=styles)
    for sentence in verdict:
        console.print(f"\n{escape(sentence)}")


if __name__ == "__main__":
    from bench.config import door

    sys.exit(door.enter(main, __doc__))
