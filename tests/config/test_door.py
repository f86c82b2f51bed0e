"""What all doors do alike: --help, --version, Ctrl-C, a closed pipe, narrow terminals, odd paths."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import bench
from bench.config import door, reference
from tests.conftest import ROOT, some

DOORS = ("run", "plan", "report", "compare", "claims", "doctor", "compact", "grade")
EVERY = sorted(p.stem for p in (ROOT / "bench").glob("*.py") if "door.enter(main" in p.read_text())
REFERENCE = ROOT / "results" / "reference" / "nvidia-h100-80gb-hbm3-techniques"
# Words with which each door works for a while, on a folder with rows.
BUSY = {
    "run": ["-m", "precision=fp32,bf16", "timing.budget_seconds=1", "results_dir={folder}"],
    "plan": ["gpu=t4", "model=llama-160m", "results_dir={folder}"],
    "report": ["results_dir={folder}"],
    "compare": ["baseline={folder}", "candidate={folder}"],
    "claims": ["results_dir={folder}"],
    "doctor": ["results_dir={folder}"],
    "compact": ["results_dir={folder}"],
    "grade": ["results_dir={folder}"],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Rows in a folder whose name has letters that few programs expect."""
    place = tmp_path / "über alles, (1)"
    shutil.copytree(REFERENCE, place / "trials")
    return place


@pytest.fixture
def keeps_handlers() -> object:
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def started(name: str, folder: Path, **environment: str) -> subprocess.Popen[str]:
    """A door at work, in a group of its own, as under a terminal."""
    words = [word.format(folder=folder) for word in BUSY[name]]
    return subprocess.Popen(
        [sys.executable, str(ROOT / "bench" / f"{name}.py"), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in a shell's background
        cwd=ROOT,
        env={**os.environ, "BENCH_CACHE": str(folder / "cache"), **environment},
    )


def entered(monkeypatch: pytest.MonkeyPatch, main: Callable[[list[str]], int], *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["bench/plan.py", *words])
    return door.enter(main, "Plans.")


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_is_answered_before_the_door_opens(
    word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], keeps_handlers: object
) -> None:
    assert entered(monkeypatch, lambda _: pytest.fail("it opened"), "gpu=t4", word) == 0
    assert capsys.readouterr().out.startswith("usage: python bench/plan.py [key=value ...]\n\nPlans.\n")


def test_the_version_is_this_project_s(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], keeps_handlers: object
) -> None:
    assert entered(monkeypatch, lambda _: pytest.fail("it opened"), "--version") == 0
    assert capsys.readouterr().out == f"memory-bench {bench.__version__}\n"


def test_words_and_other_options_reach_the_door_in_order(
    monkeypatch: pytest.MonkeyPatch, keeps_handlers: object
) -> None:
    given = ["-m", "precision=fp32,bf16", "--baseline-ref", "auto", "--cfg=job"]
    seen: list[str] = []
    assert entered(monkeypatch, lambda words: seen.extend(words) or 7, *given) == 7
    assert seen == given


def test_ctrl_c_ends_it_with_a_line_whatever_a_library_makes_of_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], keeps_handlers: object
) -> None:
    def main(_: list[str]) -> int:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        except KeyboardInterrupt:
            raise ImportError("numpy: C extension not built") from None
        return 0

    assert entered(monkeypatch, main) == 130
    assert capsys.readouterr().err == "\nbench/plan.py: stopped by Ctrl-C\n"
    assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL, "a second Ctrl-C ends it at once"


def test_an_error_of_our_own_is_not_hidden(monkeypatch: pytest.MonkeyPatch, keeps_handlers: object) -> None:
    def main(_: list[str]) -> int:
        raise BrokenPipeError("of some other pipe")

    with pytest.raises(BrokenPipeError):
        entered(monkeypatch, main)


INTERRUPTED_AT_ITS_FIRST_IMPORT = """
import os, runpy, signal, sys
class Interrupts:
    def find_spec(self, name, *_):
        if name == "bench":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupts())
runpy.run_path(sys.argv[1], run_name="__main__")
"""


@pytest.mark.parametrize("name", EVERY)
def test_ctrl_c_while_the_door_is_imported_says_nothing(name: str) -> None:
    command = [sys.executable, "-c", INTERRUPTED_AT_ITS_FIRST_IMPORT, str(ROOT / "bench" / f"{name}.py")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


@pytest.mark.parametrize("name", [name for name in EVERY if name != "run"])
def test_every_door_has_help_that_fits_a_terminal(name: str) -> None:
    text = (ROOT / "bench" / f"{name}.py").read_text().split('"""')[1]
    wrapped = door.wrapped(text, 80)
    assert max(map(len, wrapped.splitlines())) <= 80
    assert wrapped.split() == text.split(), "no word is lost or broken"
    assert set(DOORS) <= set(EVERY)


def test_an_entry_is_continued_below_what_it_means() -> None:
    text = "Keys:\n  gpu=NAME  a card\n            of conf/gpu/, or auto\nEnd."
    expected = "Keys:\n  gpu=NAME  a card of\n            conf/gpu/,\n            or auto\nEnd."
    assert door.wrapped(text, 22) == expected


def test_help_of_run_has_every_axis_level_and_key_that_it_takes() -> None:
    text = reference.text()
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert reference.axes()[:2] == ["model", "precision"]
    for axis in reference.axes():
        for file in (ROOT / "conf" / axis).glob("*.yaml"):
            assert re.search(rf"^  {re.escape(file.stem)}( |$)", text, re.MULTILINE), file
    for key in ("method=measure", "memory_limit_bytes=null", "timing.budget_seconds=3.0", "busy=flag"):
        assert f"  {key}" in text
    assert "sweep_id" not in text


def test_ctrl_c_in_the_first_second(folder: Path) -> None:
    """The cheap representative of the slow test below."""
    process = started("run", folder)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in out + err
    assert "the trial that runs is finished first" not in err, "none ran"


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.1, 0.5, 1, 3, 10])
@pytest.mark.parametrize("name", DOORS)
def test_ctrl_c_leaves_no_traceback(name: str, seconds: float, folder: Path) -> None:
    process = started(name, folder)
    time.sleep(seconds)
    ended = process.poll() is not None
    if not ended:
        os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=300)
    ours = err.replace(f'{ROOT}/bench/{name}.py", line 0', "")  # before the first line
    if str(ROOT / "bench") not in ours and re.search("Fatal Python error|frozen|KeyboardInterrupt", err):
        return  # Python itself had not started yet, and no line of ours had run
    assert "Traceback" not in out + err
    assert ended or process.returncode in (130, -signal.SIGINT, 0, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", DOORS)
def test_a_reader_that_leaves_is_no_error(name: str, folder: Path) -> None:
    process = started(name, folder)
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(timeout=600)
    assert "Traceback" not in err and "BrokenPipe" not in err
    assert process.returncode in (141, 0, 1)


@pytest.mark.parametrize("name", some(DOORS, every=8, first=6))
def test_80_columns_and_a_path_with_odd_letters(name: str, folder: Path) -> None:
    process = started(name, folder, COLUMNS="80")
    out, err = process.communicate(timeout=600)
    assert "Traceback" not in out + err
    assert process.returncode in (0, 1), err
    tables = [line for line in out.splitlines() if str(folder) not in line and not line[:1].isdigit()]
    long = [line for line in tables if len(line) > 80]
    assert all(line.startswith(("Once more", "Go on")) for line in long), long
