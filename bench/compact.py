"""The door to compaction: `python bench/compact.py results_dir=DIR` merges DIR/trials into few large files.

  results_dir=DIR      default results
  older_than_days=N    only files that are older (default 0: all)
Every reader, plain pandas included, sees the same rows before and after, and reads them much faster. Trials
may run meanwhile. Files that cannot be read, or that a newer version wrote, stay where they are and are
named. Exit codes: 0; 1 when the folder cannot be read or written to, or another compaction is at work in
it; 2 when the command line is wrong.
"""

import sys
from pathlib import Path

sys.path[0:1] = [str(Path(__file__).resolve().parents[1])]


def main(arguments: list[str]) -> int:
    """Merges, says what came of it, and returns the exit code."""
    from bench.config.key_values import KeyValueError, read_key_values
    from bench.paths import ROOT

    try:
        words = read_key_values(arguments, {"results_dir": ROOT / "results", "older_than_days": 0.0})
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
            done = compaction.compact(
                words["results_dir"],
                words["older_than_days"],
                lambda read, of: live.update(task, completed=read, total=of),
            )
    except (OSError, compaction.BusyError) as error:
        print(f"bench/compact.py: {error}", file=sys.stderr)
        return 1
    parquet.warn_unreadable(done.left, "left as it is")
    into = f" into {count_of(len(done.parts), 'file')}" if done.parts else ""
    merged = f"{count_of(done.rows, 'row')} of {count_of(done.files, 'file')} merged"
    print(f"{merged}{into}, {len(done.left)} left")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
