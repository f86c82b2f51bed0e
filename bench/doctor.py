"""Diagnosis: `python bench/doctor.py results_dir=DIR` says what is wrong and how to mend it.

It checks the installation (versions, devices, a trial that really runs) and a results folder (files that
are not rows, hidden files that killed sweeps left, trials that failed). It changes nothing.
Its key=value arguments:
  results_dir=DIR     default results
  trial=true          also executes a tiny trial, as bench/run.py would; false does not
  contribution=DIR    checks instead whether the rows in DIR can become a reference, as
                      results/reference/README.md says
Exit codes: 0 if all is well; 1 if something has to be mended; 2 if the command line is wrong.
"""

import signal
import sys

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback of what is imported before `door.enter`

from pathlib import Path

sys.path[0:1] = [str(Path(__file__).resolve().parents[1])]


def main(arguments: list[str]) -> int:
    """Prints one line for each finding and returns the exit code."""
    from bench.config.key_values import KeyValueError, read_key_values
    from bench.paths import RESULTS

    try:
        defaults = {"results_dir": RESULTS, "trial": True, "contribution": ""}
        words = read_key_values(arguments, defaults)
    except KeyValueError as error:
        print(f"bench/doctor.py: {error}", file=sys.stderr)
        return 2
    from bench.sweep import diagnosis
    from bench.sweep.card import contribution

    found = (
        contribution.findings(Path(words["contribution"]).expanduser())
        if words["contribution"]
        else diagnosis.findings(words["results_dir"], trial=words["trial"])
    )
    findings = []
    for finding in found:
        diagnosis.show(finding)
        findings.append(finding)
    wrong = [finding for finding in findings if finding.wrong]
    print(f"\n{len(wrong)} of {len(findings)} to mend" if wrong else f"\nAll {len(findings)} are well")
    return 1 if wrong else 0


if __name__ == "__main__":
    from bench.config import door

    sys.exit(door.enter(main, __doc__))
