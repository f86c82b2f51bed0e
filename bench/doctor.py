"""The door to the doctor: `python bench/doctor.py results_dir=DIR` says what is wrong, and how to mend it.

It looks at the installation (versions, devices, a trial that really runs) and at a folder of results (files
that are no rows, places that killed sweeps left, trials that failed). It changes nothing.
Its words:
  results_dir=DIR     default results
  trial=true          also execute a tiny trial, as bench/run.py would
Exit codes: 0 when all is well; 1 when something has to be mended; 2 when the command line is wrong.
"""

import sys
from pathlib import Path

sys.path[0:1] = [str(Path(__file__).resolve().parents[1])]


def main(arguments: list[str]) -> int:
    """Prints one line for each finding and returns the exit code."""
    from bench.config.key_values import KeyValueError, read_key_values
    from bench.paths import ROOT

    try:
        words = read_key_values(arguments, {"results_dir": ROOT / "results", "trial": True})
    except KeyValueError as error:
        print(f"bench/doctor.py: {error}", file=sys.stderr)
        return 2
    from bench.sweep import diagnosis

    found = []
    for finding in diagnosis.findings(words["results_dir"], trial=words["trial"]):
        diagnosis.show(finding)
        found.append(finding)
    wrong = [finding for finding in found if finding.wrong]
    print(f"\n{len(wrong)} of {len(found)} to mend" if wrong else f"\nAll {len(found)} are well")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
