"""Which tests stay together where they run side by side (xdist). Imports no torch: a plugin of its own."""

from __future__ import annotations

from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

# Files whose tests share nothing that is dear to make; the tests of any other stay together.
APART = (
    "tests/analysis/grading/test_accuracy.py",
    "tests/analysis/plans/test_planning.py",
    "tests/methods/test_estimate.py",
    "tests/methods/test_estimate_inference.py",
    "tests/methods/test_simulate.py",
)

# Files that keep one worker for minutes: begun first, so that none of them is waited for at the end.
LONG = (
    "tests/sweep/test_run.py",
    "tests/sweep/test_faults.py",
    "tests/processes/test_isolate.py",
    "tests/test_workflows.py",
    "tests/sweep/test_resume.py",
    "tests/reports/test_report.py",
    "tests/reports/test_notebooks.py",
    "tests/memory/test_tracker.py",
)


def in_order(file: str) -> int:
    """Sort key of a test's file: the long ones, the others, then those whose tests fill the gaps."""
    if file in APART:
        return len(LONG) + 1
    return LONG.index(file) if file in LONG else len(LONG)


class ByFile(LoadScopeScheduling):  # type: ignore[misc]
    """xdist's own groups (--dist loadgroup) are not seen under pytest 9 (pytest-xdist issue 1386)."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return nodeid if file in APART else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    return ByFile(config, log)
