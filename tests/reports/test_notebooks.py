"""The notebooks of analysis/: stored bare, executed on made-up rows, and rendered to pages of their own."""

from __future__ import annotations

import html
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from traitlets.config import Config

from bench.analysis import studies
from bench.reports import figures
from bench.reports.notebooks import ANALYSIS, NAMES, NotRenderedError, render
from bench.results import store
from bench.trial.vocabulary import CATEGORIES
from tests import rows
from tests.conftest import ROOT

STORED = [ANALYSIS / f"{name}.ipynb" for name in NAMES]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """All four on a folder's worth of rows, for real: a kernel each."""
    place = tmp_path_factory.mktemp("report")
    rows.write_all(place / "results")
    hostile = rows.measured("seed=1", sweep="20260305T000000-ffffff", number=1)
    hostile |= {"status": "error", "reason": "<script>alert(1)</script> & <img src=http://x.invalid/y>"}
    hostile["model"] = "<iframe src=http://x.invalid/y></iframe>"
    store.write(hostile, place / "results", "hostile")
    before = {path: path.read_bytes() for path in ANALYSIS.iterdir() if path.is_file()}
    told: list[str] = []
    written = render(place / "results", place / "report", told.append)
    assert [path.name for path in written] == [f"{name}.html" for name in NAMES]
    assert all(path.parent == place / "report" / "notebooks" for path in written)
    assert len(told) == len(NAMES)
    assert {path: path.read_bytes() for path in ANALYSIS.iterdir() if path.is_file()} == before
    return {path.stem: path.read_text(encoding="utf-8") for path in written}


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_stored_without_outputs(path: Path) -> None:
    stored = json.loads(path.read_text())
    nbformat.validate(stored)
    code = [cell for cell in stored["cells"] if cell["cell_type"] == "code"]
    assert code
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert stored["cells"][0]["cell_type"] == "markdown"
    assert set(stored["metadata"]["language_info"]) == {"name"}, "a kernel's version is an output too"


def text_of(page: str) -> str:
    """What a reader sees, one blank between words."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


RUNG = re.compile(r" ok ([\d.]+) ([+−][\d.]+) ")  # a line of the ladder: its peak, and the change


def test_the_ladder_has_the_rows_peaks(pages: dict[str, str]) -> None:
    fits = [r for r in rows.all_rows() if r["status"] == "ok" and r["method"] == "measure"]
    least = min(r["peak_allocated_bytes"] for r in fits)
    first = next(r for r in fits if r["overrides"].endswith(rows.GRID[0]))["peak_allocated_bytes"]
    shown = text_of(pages["memory"])
    ladder = shown[shown.index("(baseline)") :]
    rungs = [(float(peak), float(by.replace("−", "-"))) for peak, by in RUNG.findall(ladder)]
    top = next(place for place, (peak, _) in enumerate(rungs) if f"{peak:.3f}" == f"{least / 2**20:.3f}")
    assert top > 1
    for (below, _), (peak, change) in pairwise(rungs[: top + 1]):
        assert change == pytest.approx((peak / below - 1) * 100, abs=0.02), "from the line above"
    assert re.search(rf"\(baseline\) fp32 ok {first / 2**20:.3f} \S* ?23,", shown), (
        "measured: it has a rate"
    )


def test_rates_are_the_replicates_medians(pages: dict[str, str]) -> None:
    rate = "tokens_per_sec_per_device"
    same = [r for r in rows.all_rows() if r["overrides"].endswith(f"run.py {rows.GRID[1]}")]
    assert len(same) == 3
    low, high = min(r[f"{rate}_ci_low"] for r in same), max(r[f"{rate}_ci_high"] for r in same)
    median = statistics.median(r[rate] for r in same)
    assert f"fp32 + checkpointing {median:,.0f} {low:,.0f} {high:,.0f}" in text_of(pages["throughput"])


def test_utilisation_is_shown_where_it_is_defined(pages: dict[str, str]) -> None:
    best = max((r for r in rows.all_rows() if r["mfu"]), key=lambda r: r["mfu"])
    page = text_of(pages["throughput"])
    assert f"{best['mfu'] * 100:.2f} {best['hfu'] * 100:.2f}" in page
    others = {r["device_name"] for r in rows.all_rows() if r["status"] == "ok" and r["mfu"] is None}
    assert rows.CPU.name in others
    table = page.partition("How much of the device is used")[2].partition("Speed over")[0]
    assert rows.H100.name in table
    assert rows.CPU.name not in table


def test_errors_are_those_that_were_made(pages: dict[str, str]) -> None:
    shown = text_of(pages["prediction"])
    worst = {name: max(factors, key=lambda f: abs(f - 1)) - 1 for name, factors in rows.FACTORS.items()}
    of_all = re.search(r"all (\d+) [\d.]+ [\d.]+ [\d.]+ (\S+) (\S+) (\S+)", shown)
    assert of_all is not None
    assert int(of_all[1]) == 11 + 6  # predicted trials of the CPU, and those of the GPU that fit
    for seen, made in zip(of_all.groups()[1:], worst.values(), strict=True):
        assert float(seen.replace("−", "-")) == pytest.approx(made * 100, abs=0.02)


def test_what_has_no_prediction_is_listed(pages: dict[str, str]) -> None:
    left = text_of(pages["prediction"]).partition("Measured, and not predicted")[2]
    assert f"fp32 {rows.measured('seq_len=32')['peak_allocated_bytes'] / 2**20:.3f}" in left
    assert f"{rows.GRID[0]}" not in left, "its label is fp32 too, and it has one"
    assert "lora.rank=64" in left


def test_figures_are_drawn_in_the_page(pages: dict[str, str]) -> None:
    assert {name: pages[name].count("<svg") > 0 for name in NAMES} == {
        "memory": True,
        "throughput": True,
        "prediction": True,
        "comparison": False,  # no trial of these rows was measured twice
    }
    assert "Nothing to compare" in text_of(pages["comparison"])


def test_a_predicted_bar_is_as_long_as_its_peak(tmp_path: Path) -> None:
    """Its categories, and nothing untracked beside them."""
    row = rows.predicted(rows.GRID[0], rows.CPU, "simulate", 1.0)
    trials = studies.trials(store.read(rows.write([row], tmp_path)))
    parts = figures.memory_bars(trials).to_dict()["datasets"].values()  # type: ignore[union-attr]
    sizes = [part["size"] for table in parts for part in table if "category" in part]
    assert sum(sizes) == pytest.approx(row["peak_allocated_bytes"] / 2**20)


def test_the_picture_of_a_step_is_as_high_as_its_peak() -> None:
    nothing = {category: [0, 0, 0] for category in CATEGORIES}
    step = {"phase": ["forward", "backward", "done"], "stack": ["layers"] * 3, "block": [0, 0, None]}
    held = nothing | {"parameter": [2**20] * 3, "activation": [2**20, 3 * 2**20, 0]}
    chart = figures.memory_over_step({"timeline": json.dumps(step | held)})
    assert chart is not None and figures.memory_over_step({"timeline": None}) is None
    tables = list(chart.to_dict()["datasets"].values())
    [says] = [line["says"] for table in tables for line in table if "says" in line]
    assert says == "peak 4.00 MiB"
    parts = [part for table in tables for part in table if "category" in part]
    assert {part["category"] for part in parts} == {"parameters", "activations"}
    assert [sum(p["size"] for p in parts if p["at"] == at) for at in range(4)] == [2, 4, 1, 1]


def test_pages_load_nothing_and_run_nothing(pages: dict[str, str]) -> None:
    for page in pages.values():
        assert "default-src 'none'" in page
        assert not re.search(r"<(script|link|img|iframe|object|embed|base)\b", page)
        assert not re.search(r"@import|url\(\s*['\"]?(?!#)|\son\w+\s*=\s*['\"]", page)
        links = re.findall(r"(?:href|src)\s*=\s*['\"]([^'\"]*)", page)
        assert {link for link in links if not link.startswith("#")} <= {f"{name}.html" for name in NAMES}
        addresses = set(re.findall(r"https?://[^\s'\"<>&]+", page))
        assert addresses <= {
            "http://www.w3.org/2000/svg",
            "http://www.w3.org/1999/xlink",
            "http://x.invalid/y",
        }


def test_what_rows_say_is_text(pages: dict[str, str]) -> None:
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; &lt;img" in pages["memory"]
    assert "&lt;iframe src=http://x.invalid/y&gt;" in pages["memory"]


def test_a_failing_cell_is_named_and_the_others_are_rendered(tmp_path: Path) -> None:
    good, bad = (nbformat.v4.new_notebook() for _ in range(2))
    good.cells = [nbformat.v4.new_code_cell("import sys\nsys.executable + ' runs this'")]
    bad.cells = [
        nbformat.v4.new_markdown_cell("# fine"),
        nbformat.v4.new_code_cell("\n{}['peak']", id="wrong"),
    ]
    for name, notebook in (("good", good), ("bad", bad)):
        nbformat.write(notebook, tmp_path / f"{name}.ipynb")
    stale = tmp_path / "report" / "notebooks" / "bad.html"
    stale.parent.mkdir(parents=True)
    stale.write_text("an older run's")
    told: list[str] = []
    with pytest.raises(NotRenderedError) as caught:
        render(tmp_path, tmp_path / "report", told.append, analysis=tmp_path, names=("bad", "good"))
    assert str(caught.value) == "bad.ipynb, cell 2 (wrong, `{}['peak']`): KeyError: 'peak'"
    assert f"notebooks: {caught.value}" in told
    assert not stale.exists()
    page = (tmp_path / "report" / "notebooks" / "good.html").read_text()
    assert f"{sys.executable} runs this" in text_of(page), "the kernel is this interpreter"


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> InteractiveShell:
    """One kernel's worth of IPython for all odd folders, in this process."""
    config = Config()
    config.HistoryManager.enabled = False
    return InteractiveShell.instance(ipython_dir=str(tmp_path_factory.mktemp("ipython")), config=config)


@pytest.fixture
def shown(shell: InteractiveShell, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Path], str]:
    """The text that a notebook's cells show of a results folder."""

    def run(name: str, results_dir: Path, baseline: Path | None = None) -> str:
        monkeypatch.setenv("BENCH_RESULTS_DIR", str(results_dir))
        monkeypatch.delenv("BENCH_BASELINE_DIR", raising=False)
        if baseline:
            monkeypatch.setenv("BENCH_BASELINE_DIR", str(baseline))
        shell.reset(new_session=False)
        texts = []
        for cell in json.loads((ANALYSIS / f"{name}.ipynb").read_text())["cells"]:
            if cell["cell_type"] == "code":
                with capture_output() as captured:
                    done = shell.run_cell("".join(cell["source"]))
                done.raise_error()
                texts += [output.data.get("text/html", "") for output in captured.outputs]
        return text_of(" ".join(texts))

    return run


ODD: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "no rows": list,
    "one row": lambda: [rows.measured(rows.GRID[0])],
    "one skipped row": lambda: [rows.measured("precision=nf4")],
    "only oom": lambda: [rows.measured(words, rows.H100) for words in rows.LARGE[:2]],
    "only simulated": lambda: [rows.predicted(words, rows.CPU, "simulate", 1.0) for words in rows.GRID[:6]],
    "only formulas": lambda: [
        rows.predicted(words, rows.CPU, "closed_form", 1.0) for words in rows.GRID[:2]
    ],
    "one predicted": lambda: [
        rows.measured(rows.GRID[0]),
        rows.predicted(rows.GRID[0], rows.CPU, "rule_of_thumb", 0.5),
    ],
}
SAYS = {
    ("memory", "no rows"): "There are no rows in results/trials yet.",
    ("memory", "one row"): "values of it were tried alone",
    ("memory", "only oom"): "OutOfMemoryError: CUDA out of memory.",
    ("memory", "only simulated"): "simulate llama-tiny ok 6",
    ("memory", "only formulas"): "estimated: llama-tiny, train, 4 × 128 tokens, estimated cpu, closed form",
    ("throughput", "one row"): "Fewer than two trials of this study were timed.",
    ("throughput", "only oom"): "No row of results/trials was timed",
    ("throughput", "only simulated"): "No row of results/trials was timed",
    ("prediction", "one row"): "Measured trials: 1; predictions: 0; measured with a prediction: 0.",
    ("prediction", "only simulated"): "No trial was both measured and predicted.",
    ("prediction", "one predicted"): "−50.00",
    ("comparison", "one row"): "Nothing to compare",
}


@pytest.mark.parametrize("folder", ODD)
@pytest.mark.parametrize("name", NAMES)
def test_odd_folders_are_answered_in_words(
    name: str, folder: str, tmp_path: Path, shown: Callable[[str, Path], str]
) -> None:
    said = shown(name, rows.write(ODD[folder](), tmp_path / "results"))
    assert SAYS.get((name, folder), "") in said
    assert not re.search(r"\bnan\b|\bNone\b|\bNaN\b", said)
    assert said.strip()


def test_two_folders_are_compared(tmp_path: Path, shown: Callable[..., str]) -> None:
    earlier = rows.again(sweep="20260101T080000-eeeeee")
    later = rows.again(slower=0.08, heavier=2**20)
    said = shown("comparison", rows.write(later, tmp_path / "new"), rows.write(earlier, tmp_path / "old"))
    assert "Trials in both sets: 4." in said
    assert "To the byte the same: 0 of 4." in said
    assert said.count("+1.000") == 4
    rate = "tokens_per_sec_per_device"
    before, after = (statistics.median(r[rate] for r in part[:5]) for part in (earlier, later))
    line = f"{before:,.0f} {after:,.0f} {(after / before - 1) * 100:+.2f}".replace("-", "−")
    assert f"{line} 0.003968 5 and 5" in said  # 1 of 252 divisions of ten replicates
    assert "Every shared trial ended the same way." in said


def test_one_folder_is_parted_by_device_or_else_by_sweep(tmp_path: Path, shown: Callable[..., str]) -> None:
    first, second = rows.again(), rows.again(sweep="20260501T080000-eeeeee", heavier=2**20)
    by_sweep = shown("comparison", rows.write([*first, *second], tmp_path / "sweeps"))
    assert "2026-04-20, sweep 20260420T080000-dddddd" in by_sweep
    assert by_sweep.count("+1.000") == 4
    other = rows.again(device=rows.OTHER_CPU, sweep="20260502T080000-eeeeee")
    by_device = shown("comparison", rows.write([*first, *second, *other], tmp_path / "devices"))
    assert f"{rows.OTHER_CPU.name} {rows.OTHER_CPU.name} 2.13.0" in by_device
    assert by_device.count("−1.000") == 4  # the larger of the first device's replicates counts
    assert "<svg" not in by_device


def test_no_kernel_outlives_its_notebook(pages: dict[str, str]) -> None:
    assert pages
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    commands = [Path(f"/proc/{child}/cmdline").read_bytes() for child in children]
    assert not [command for command in commands if b"ipykernel" in command]


def test_notebooks_need_no_torch() -> None:
    """Importing it would take longer than all the rest."""
    imports = (
        "from bench.analysis import comparison; from bench.analysis.grading import accuracy; "
        "from bench.reports import figures, figures_across, notebook_display, notebooks"
    )
    asks = f"{imports}; import sys; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", asks], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "False"
    assert not [path for path in STORED if "import torch" in path.read_text()]
