"""The command `memory-bench`: `memory-bench run precision=bf16` is `python bench/run.py precision=bf16`.

In: the command line. It becomes that of a door, which is then run as the file that it is.
"""

from __future__ import annotations

import runpy
import sys

import bench
from bench.paths import ROOT

DOORS = {
    "run": "one trial, or with -m a sweep",
    "plan": "what fits a card, and what to pick",
    "report": "a page about the rows",
    "compare": "rows against a baseline: what got worse",
    "claims": "what the literature claims, put to the test",
    "grade": "predictions against measurements",
    "calibrate": "time this device, to predict times on it",
    "compact": "many row files into few",
    "doctor": "what is wrong with this machine, and how to mend it",
}


def main() -> int:
    """Runs a door with the words that follow its name; 2 if there is no such door."""
    door, *words = sys.argv[1:] or ["--help"]
    if door in ("-h", "--help"):
        print("usage: memory-bench COMMAND [key=value ...]\n")
        print("\n".join(f"  {name:<11}{what}" for name, what in DOORS.items()))
        print("\nmemory-bench COMMAND --help says more. Rows and reports are written to ./results.")
        return 0
    if door == "--version":
        print(f"memory-bench {bench.__version__}")
        return 0
    if door not in DOORS:
        print(
            f"memory-bench: {door}: no such command; the commands are {', '.join(DOORS)}", file=sys.stderr
        )
        return 2
    sys.argv = [str(ROOT / "bench" / f"{door}.py"), *words]
    runpy.run_path(sys.argv[0], run_name="__main__")
    return 0
