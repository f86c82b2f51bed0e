"""The report's door and what it leaves: on real rows, and on folders of every odd kind."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench.analysis import literature, studies
from bench.reports import contents, write
from bench.results import store
from bench.results.schema import SCHEMA
from tests import rows as made
from tests.conftest import door, door_here
from tests.sweeps import Here

PLAIN = [made.measured(words) for words in made.GRID]


def written(rows: list[made.Row], target: Path) -> str:
    claims = literature.read_claims(literature.LEDGER)
    write.write_report(contents.build_report(pd.DataFrame(rows), claims, {}), target)
    return (target / "index.html").read_text()


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on all rows; to be read only."""
    folder = tmp_path_factory.mktemp("everything")
    written(made.all_rows(), folder)
    return folder


class Page(HTMLParser):
    """The page's tables as text, and every address it names."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.tags: list[str] = []
        self._cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [
            value or "" for name, value in attrs if name in ("src", "href", "data", "action")
        ]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._cell = True

    def handle_endtag(self, tag: str) -> None:
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.tables[-1][-1][-1] += data


def test_a_real_sweep(here: Here) -> None:
    assert here.run("precision=fp32,nf4", "lora=off,on") == 0
    done = door_here(f"results_dir={here.folder}", script="report.py")
    assert done.returncode == 0, done.stderr
    report = here.folder / "report"
    assert f"Report     {report / 'index.html'}  (4 rows)" in done.stdout
    said = " ".join(done.stdout.split())  # lines are as wide as the terminal
    assert re.search(r" 1\. llama-tiny, [^:]*: lowest peak: nf4 \+ LoRA r16 takes [\d.]+ MiB", said)
    summary = (report / "summary.md").read_text()
    assert "4 trials: 3 ok, 1 skipped." in summary
    peaks = here.frame().set_index(["precision", "lora"])["peak_allocated_bytes"]
    change = peaks["fp32", "on"] / peaks["fp32", "off"] - 1
    rungs = [line for line in summary.splitlines() if line.startswith("| + LoRA r16")]
    assert f"| {change * 100:+.1f} % |".replace("-", "−") in rungs[0]
    table = pd.read_csv(report / "tables" / "trials.csv")
    assert list(table["peak GiB"].dropna() * 2**30) == pytest.approx(list(peaks.dropna()))
    assert "train adapters with lora=on" in table["reason"].dropna().iloc[0]


def test_the_page_is_one_file_that_names_no_address(everything: Path) -> None:
    text = (everything / "index.html").read_text()
    page = Page(text)
    anchors = {address for address in page.addresses if address.startswith("#")}
    assert set(page.addresses) - anchors == {"data:,"}
    for anchor in anchors:
        assert f'id="{anchor[1:]}"' in text
    assert "default-src 'none'" in text


def test_the_headline_reproduces_each_rung(tmp_path: Path) -> None:
    ladder = Page(written(PLAIN, tmp_path)).tables[2]
    assert ladder[0][0] == "added"
    assert [line[0] for line in ladder[1:]] == ["fp32", "+ LoRA r16", "+ nf4", "+ checkpointing"]
    commands = {row["overrides"]: row for row in PLAIN}
    for line in ladder[1:]:
        command = line[-1].removeprefix("show")
        assert line[1] == f"{commands[command]['peak_allocated_bytes'] / 2**20:.1f} MiB"


def test_figures_and_tables_lie_beside_it(everything: Path) -> None:
    names = {path.stem for path in (everything / "figures").glob("*.svg")}
    assert names >= {"memory-1", "trade-off-1", "pairs-1", "lora_rank-peak", "seq_len-rate", "predictions"}
    for name in names:
        svg = (everything / "figures" / f"{name}.svg").read_text()
        assert "currentColor" not in svg
        assert 'fill="white"' in svg
        assert (everything / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    claims = pd.read_csv(everything / "tables" / "claims.csv")
    assert set(claims["verdict"]) == {"confirmed", "contradicted"}, "only what was put to a test"
    assert claims["measured here"].notna().all()


def test_an_earlier_reports_figures_do_not_stay(everything: Path, tmp_path: Path) -> None:
    shutil.copytree(everything, tmp_path, dirs_exist_ok=True)
    written(PLAIN[:1], tmp_path)
    assert {path.stem for path in (tmp_path / "figures").glob("*.png")} == {"memory-1"}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (PLAIN[:1], "1 trial: 1 ok."),
        ([made.measured(words, made.H100) for words in made.LARGE[:2]], "2 trials: 2 oom."),
        ([made.predicted(w, made.CPU, "simulate", 1.0) for w in made.GRID[:6]], "6 trials: 6 ok."),
        ([made.measured("precision=nf4")], "1 trial: 1 skipped."),
        (
            [PLAIN[0] | {"status": "error", "reason": "a bug", "peak_allocated_bytes": None}],
            "1 trial: 1 error.",
        ),
    ],
    ids=["one row", "only oom", "only simulated", "only skipped", "only an error"],
)
def test_folders_with_little_in_them(rows: list[made.Row], said: str, tmp_path: Path) -> None:
    text = written(rows, tmp_path)
    assert said in text
    assert said in (tmp_path / "summary.md").read_text()
    assert len(pd.read_csv(tmp_path / "tables" / "trials.csv")) == len(rows)
    if said.startswith("2 trials"):
        assert "out of memory" in (tmp_path / "figures" / "memory-1.svg").read_text()


def test_rows_of_the_first_schema(tmp_path: Path) -> None:
    later = {"formula", "simulation_seconds", "host_max_bytes", "threads", "definition", "untracked_bytes"}
    old = pa.Table.from_pylist(PLAIN[:4], schema=SCHEMA).drop_columns(sorted(later))
    (tmp_path / "trials").mkdir()
    pq.write_table(old, tmp_path / "trials" / "old.parquet")
    done = door_here(f"results_dir={tmp_path}", script="report.py")
    assert done.returncode == 0, done.stderr
    ladder = Page((tmp_path / "report" / "index.html").read_text()).tables[2]
    assert [line[0] for line in ladder[1:]] == ["fp32", "+ LoRA r16", "+ checkpointing"]


def test_rows_are_data_and_not_markup(tmp_path: Path) -> None:
    evil = "</script><script>document.title='owned'</script><img src=http://x.invalid onerror=alert(1)>"
    rows = [PLAIN[0] | {"overrides": evil, "reason": evil, "model": evil}, PLAIN[1]]
    text = written(rows, tmp_path)
    clean = written(PLAIN[:2], tmp_path)
    assert Page(text).tags.count("script") == Page(clean).tags.count("script")
    assert "img" not in Page(text).tags
    assert "&lt;/script&gt;" in text


def test_claims_show_what_was_simulated_and_what_these_rows_hold(tmp_path: Path) -> None:
    literature.write_values(
        {"Mixed precision nearly halves the memory of training": 0.5}, tmp_path / "claims.json"
    )
    made.write(PLAIN, tmp_path)
    assert door_here(f"results_dir={tmp_path}", script="report.py").returncode == 0
    claims = pd.read_csv(tmp_path / "report" / "tables" / "claims.csv").set_index("claim")
    assert claims.loc["Mixed precision nearly halves the memory of training", "verdict"] == "confirmed"
    slower = claims.loc["Checkpointing makes training 20 to 30 % slower"]
    rates = {row["overrides"]: row["tokens_per_sec_per_device"] for row in PLAIN}
    ratios: list[Any] = sorted(
        rate / rates[command.replace("checkpointing=on", "checkpointing=off")]
        for command, rate in rates.items()
        if command.endswith("checkpointing=on") and rate
    )
    middle = len(ratios) // 2
    assert slower["measured here"].startswith(f"{ratios[middle]:.3g} [")
    assert f"({len(ratios)} pairs: llama-tiny; {made.CPU.name})" in slower["measured here"]
    assert slower["verdict"] == "undecided"
    assert "only toy models" in slower["note"]
    assert "run bench/claims.py" in claims["note"].str.cat(sep=" ", na_rep="")


def test_no_rows_says_what_to_do(tmp_path: Path) -> None:
    done = door_here(f"results_dir={tmp_path}", script="report.py")
    assert done.returncode == 1
    assert "run bench/run.py first" in done.stderr


def test_a_report_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    made.write(PLAIN[:1], tmp_path)
    (tmp_path / "report").write_text("in the way")
    done = door_here(f"results_dir={tmp_path}", script="report.py")
    assert done.returncode == 1
    assert "cannot write the report" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_key_is_refused() -> None:
    done = door("result_dir=x", script="report.py")
    assert (done.returncode, done.stdout) == (2, "")
    assert "result_dir=x: no such key (did you mean results_dir?)" in done.stderr


def test_reading_some_columns_reads_the_same(tmp_path: Path) -> None:
    made.write(PLAIN[:3], tmp_path)
    some = store.read(tmp_path, columns=studies.COLUMNS)
    assert set(some.columns) == set(studies.COLUMNS)
    pd.testing.assert_frame_equal(some, store.read(tmp_path)[list(some.columns)])
