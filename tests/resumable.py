"""A plugin of pytest (-p tests.resumable): tests that passed before do not run again, and there is a limit.

$RESUMABLE_FILE keeps the ids of the tests that passed, one a line. No test begins after $RESUMABLE_SECONDS;
the exit code is then 2. Where all have passed it is 0.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

_FILE = Path(os.environ["RESUMABLE_FILE"])
_ENDS_AT = time.monotonic() + float(os.environ["RESUMABLE_SECONDS"])


def passed() -> set[str]:
    return set(_FILE.read_text().splitlines()) if _FILE.is_file() else set()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    before = passed()
    done = [item for item in items if item.nodeid in before]
    config.hook.pytest_deselected(items=done)
    items[:] = [item for item in items if item.nodeid not in before]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" and report.passed:
        _FILE.parent.mkdir(parents=True, exist_ok=True)
        with _FILE.open("a") as file:
            file.write(f"{report.nodeid}\n")


def pytest_runtest_logfinish(nodeid: str) -> None:
    session = _session[0] if _session else None
    if session is not None and time.monotonic() > _ENDS_AT:
        session.shouldstop = f"the time is over after {nodeid}"


_session: list[pytest.Session] = []


def pytest_sessionstart(session: pytest.Session) -> None:
    _session.append(session)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and passed():
        session.exitstatus = pytest.ExitCode.OK
