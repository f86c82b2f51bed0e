"""Claims of the literature: `python bench/claims.py` simulates each and prints its verdict.

analysis/claims.yaml holds what the literature says each technique does to memory, with its source, and the
trials that test it at the claim's own scale. Claims about time are tested on the measured rows of
results_dir=DIR (its only argument). The table is also written to DIR/report/claims.md, and the simulated
values to DIR/claims.json, which bench/report.py reads. Exit codes: 0, whatever the verdicts; 2 if the
command line or the ledger is wrong.
"""

import signal
import sys

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback of what is imported before `door.enter`

from pathlib import Path

sys.path[0:1] = [str(Path(__file__).resolve().parents[1])]

_PLAIN_WIDTH = 160  # columns, where the output is no terminal


def main(arguments: list[str]) -> int:
    """Tests every claim, prints and writes the table, and returns the exit code."""
    from bench.analysis import literature
    from bench.config.key_values import KeyValueError, read_key_values
    from bench.paths import RESULTS

    try:
        words = read_key_values(arguments, {"results_dir": RESULTS})
        claims = literature.read_claims(literature.LEDGER)
        to_simulate = {
            words: trial for claim in claims for words, trial in literature.trials_of(claim).items()
        }
    except (KeyValueError, literature.LedgerError) as error:
        print(f"bench/claims.py: {error}", file=sys.stderr)
        return 2
    from bench import formatting
    from bench.analysis import claims_table, studies
    from bench.processes.simulation_pool import Simulator
    from bench.results import store
    from bench.trial.columns import Columns, NotSimulated

    columns: dict[str, Columns] = {}
    with Simulator() as predict:
        simulations = predict(list(to_simulate.values()))
    for trial_words, one in zip(to_simulate, simulations, strict=True):
        if isinstance(one, NotSimulated):
            print(f"bench/claims.py: {trial_words}: {one.reason}", file=sys.stderr)
        else:
            columns[trial_words] = one.columns
    values = {claim.claim: literature.simulated(claim, columns) for claim in claims}
    literature.write_values(values, words["results_dir"] / "claims.json")
    trials = studies.trials(store.read(words["results_dir"], columns=studies.COLUMNS))
    findings = literature.judge_claims(claims, values, trials)
    target = words["results_dir"] / "report" / "claims.md"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("# Claims\n\n" + claims_table.markdown(findings))
    screen = formatting.console(_PLAIN_WIDTH)
    formatting.print_rows(screen, *claims_table.lines(findings), wraps=["claim", "note", "source"])
    print(f"\n{claims_table.summary(findings)}\nAlso in {target}")
    return 0


if __name__ == "__main__":
    from bench.config import door

    sys.exit(door.enter(main, __doc__))
