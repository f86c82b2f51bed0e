"""The door to the report: `python bench/report.py results_dir=DIR` writes DIR/report/summary.md."""

import sys
from pathlib import Path

sys.path[0:1] = [str(Path(__file__).resolve().parents[1])]


def main(arguments: list[str]) -> int:
    """Writes the report and says where it is; 2 when the command line is wrong, 1 without any row."""
    from bench.machine import ROOT
    from bench.words import WordError, read_words

    try:
        results_dir = read_words(arguments, {"results_dir": ROOT / "results"})["results_dir"]
    except WordError as error:
        print(f"bench/report.py: {error}", file=sys.stderr)
        return 2
    from bench import results, summary

    rows = results.records(results_dir)
    if not rows:
        print(
            f"bench/report.py: no rows in {results_dir / 'trials'}; run bench/run.py first", file=sys.stderr
        )
        return 1
    target = results_dir / "report" / "summary.md"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(summary.markdown(rows))
    print(f"{len(rows)} rows: {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
