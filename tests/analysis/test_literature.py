"""The ledger: every claim has a source and trials that exist, and the verdicts follow from the numbers."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from bench.analysis import claims_table, literature
from bench.analysis.literature import Claim, Finding, LedgerError, Pairs
from bench.analysis.neighbours import Ratio

CLAIMS = literature.read_claims(literature.LEDGER)


def test_every_claim_has_a_source_and_trials_or_a_reason() -> None:
    assert len(CLAIMS) >= 15
    assert all(claim.source for claim in CLAIMS)
    assert len({claim.claim for claim in CLAIMS}) == len(CLAIMS)
    assert sum(bool(literature.trials_of(claim)) for claim in CLAIMS) >= 10


def test_verdicts_follow_from_the_numbers() -> None:
    claim = Claim("half", "a paper", before="a", after="b", of=("x", "y"), between=(0.4, 0.6))
    value = literature.simulated(claim, {"a": {"x": 6, "y": 4}, "b": {"x": 3, "y": 2}})
    found = Finding(claim, value)
    assert (found.simulated, found.verdict) == (0.5, "confirmed")
    worse = literature.simulated(claim, {"a": {"x": 6, "y": 4}, "b": {"x": 3, "y": 4}})
    assert Finding(claim, worse).verdict == "contradicted"
    assert Finding(Claim("none", "a paper", untestable="because")).verdict == "not testable"
    table = claims_table.markdown([found])
    assert "| half | 0.4 to 0.6 | 0.5 |  | confirmed |  | a paper |" in table
    assert claims_table.summary([found]).startswith("1 claims: 1 confirmed.")


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("{claim: c, source: s}", "needs `after` or `pairs`"),
        ("{claim: c, source: s, after: model=nope, between: [0, 1]}", "nope"),
        ("{claim: c, source: s, after: precision=nf4, between: [0, 1]}", "frozen 4-bit values"),
        ("{claim: c, sauce: s}", "claim 1"),
    ],
)
def test_a_claim_that_cannot_be_tested_is_told(tmp_path: Path, entry: str, said: str) -> None:
    path = tmp_path / "claims.yaml"
    path.write_text(f"- {entry}\n")
    with pytest.raises(LedgerError, match=said):
        for claim in literature.read_claims(path):
            literature.trials_of(claim)


def test_a_claim_of_inference_is_not_put_to_training() -> None:
    shared = {"status": "ok", "method": "measure", "device": "CPU", "facts": {"axis": "all"}}
    shared |= {"param_count": 10**9, "model": "m", "world_size": 1}
    rows = [
        shared | {"workload": workload, "precision": precision, "parameter_bytes": size}
        for workload, sizes in (("train", (10, 30)), ("decode", (10, 5)))
        for precision, size in zip(("fp16_pure", "int8"), sizes, strict=True)
    ]
    pairs = literature.Pairs("precision", "fp16_pure", "int8", of="weights", workload="inference")
    assert [one.value for one in pairs.ratios(pd.DataFrame(rows))] == [0.5]


@pytest.mark.parametrize(
    ("low", "high", "also", "verdict"),
    [
        (1.02, 1.10, {}, "confirmed"),
        (0.93, 1.17, {}, "undecided"),  # 7,768 [7,292, 7,886] against 8,079 [7,748, 8,545]
        (0.80, 0.95, {}, "contradicted"),
        (1.02, 1.10, {"comparable": False}, "undecided"),
        (1.02, 1.10, {"toy": True}, "undecided"),
    ],
)
def test_a_claim_about_time_needs_intervals_that_are_apart_and_a_device_for_each_rank(
    low: float, high: float, also: dict[str, bool], verdict: str
) -> None:
    pairs = Pairs("fsdp", "full_shard", "shard_grad_op", of="tokens/s")
    claim = Claim("gathered is faster", "a paper", pairs=pairs, between=(1.01, float("inf")))
    flags = {"comparable": True, "toy": False} | also
    found = Finding(claim, None, (Ratio(1.04, low, high, model="m", device="d", **flags),))
    assert found.verdict == verdict
    assert bool(found.why) == (verdict == "undecided")
