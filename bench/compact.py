"""Compaction: `python bench/compact.py results_dir=DIR` merges DIR/trials into few large files.

  results_dir=DIR      default results
  older_than_days=N    merges only older files; default 0, which merges all
Every reader, plain pandas included, reads the same rows before and after, and much faster after. Trials may
run meanwhile. Files that cannot be read, or that a newer version wrote, stay where they are and are named.
Exit codes: 0; 1 if the folder cannot be read or written to, or another compaction is running in it; 2 if
the command line is wrong.
"""

import signal
import sys

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback of what is imported before `door.enter`

from pathlib import Path

sys.path[0:1] = [str(Path(__file__).resolve().parents[1])]


def main(arguments: list[str]) -> int:
    """Merges, prints what was merged, and returns the exit code."""
    from bench.config.key_values import KeyValueError, read_key_values
    from bench.paths import RESULTS

    try:
        words = read_key_values(arguments, {"results_dir": RESULTS, "older_than_days": 0.0})
        if not (words["results_dir"] / "trials").is_dir():
            raise KeyValueError(f"results_dir={words['results_dir']}: no folder trials in it")
    except KeyValueError as error:
        print(f"bench/compact.py: {error}", file=sys.stderr)
        return 2
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    from bench.formatting import count_of
    from bench.results import compaction, parquet

    console = Console(stderr=True)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    try:
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as live:
            task = live.add_task("merging files", total=None)
            merge = compaction.compact(
                words["results_dir"],
                words["older_than_days"],
                lambda read, total: live.update(task, completed=read, total=total),
            )
    except (OSError, compaction.BusyError) as error:
        print(f"bench/compact.py: {error}", file=sys.stderr)
        return 1
    parquet.warn_unreadable(merge.left, "left as it is")
    into = f" into {count_of(len(merge.parts), 'file')}" if merge.parts else ""
    merged = f"{count_of(merge.rows, 'row')} of {count_of(merge.files, 'file')} merged"
    print(f"{merged}{into}, {len(merge.left)} left")
    return 0


if __name__ == "__main__":
    from bench.config import door

    sys.exit(door.enter(main, __doc__))
