"""The door to the report: `python bench/report.py results_dir=DIR` writes DIR/report/summary.md."""

import sys
from pathlib import Path

sys.path[0:1] = [str(Path(__file__).resolve().parents[1])]


def main(arguments: list[str]) -> int:
    """Writes the report and says where it is; 2 when the command line is wrong, 1 without any row."""
    from bench.machine import ROOT

    results_dir = ROOT / "results"
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key != "results_dir" or not value:
            print(f"bench/report.py: {argument}: the only key is results_dir=DIR", file=sys.stderr)
            return 2
        results_dir = Path(value).expanduser().absolute()
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
