"""The report's door, and the summary it writes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.conftest import ROOT, Command


def report(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "bench" / "report.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_summary_of_a_real_sweep(bench_run: Callable[..., Command]) -> None:
    sweep = bench_run("-m", "precision=fp32,nf4", "lora=off,on")
    done = report(f"results_dir={sweep.results_dir}")
    assert done.returncode == 0, done.stderr
    summary = (sweep.results_dir / "report" / "summary.md").read_text()
    assert "4 trials: 3 ok, 1 skipped." in summary
    lines = [line for line in summary.splitlines() if line.startswith("| `")]
    assert len(lines) == 4
    assert lines[0].startswith("| `precision=fp32 lora=off` | ok | ")
    assert " | first | " in lines[0]
    assert "train adapters with lora=on" in lines[2]
    assert {line.count("|") for line in lines} == {8}


def test_no_rows_says_what_to_do(tmp_path: Path) -> None:
    done = report(f"results_dir={tmp_path}")
    assert done.returncode == 1
    assert "run bench/run.py first" in done.stderr


def test_an_unknown_key_is_refused() -> None:
    done = report("result_dir=x")
    assert (done.returncode, done.stdout) == (2, "")
    assert "result_dir=x: no such key (did you mean results_dir?)" in done.stderr
