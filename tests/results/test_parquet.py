"""What a results folder may hold besides rows: each absurd file is named once, and rows are still read."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from bench.results import compaction, parquet as reading, store
from bench.results.query import Query
from bench.results.schema import SCHEMA
from tests import rows
from tests.conftest import ROOT

ROW = rows.measured("precision=bf16 lora=on")
WHEN = datetime(2026, 3, 2, tzinfo=UTC)


def table(**columns: Any) -> pa.Table:
    """A file's table: the row, with these columns in place of its own."""
    whole = pa.Table.from_pylist([ROW], schema=SCHEMA)
    for name, array in columns.items():
        whole = whole.set_column(whole.column_names.index(name), name, array)
    return whole


def parquet(content: pa.Table) -> Callable[[Path], None]:
    return lambda path: pq.write_table(content, path)


def claims_many_rows(path: Path) -> None:
    """The footer's own number of rows, blown up; the columns still hold one."""
    pq.write_table(pa.table({"trial_id": ["x"], "started_at": [WHEN]}), path)
    content = path.read_bytes()
    length = int.from_bytes(content[-8:-4], "little")
    footer = bytearray(content[-8 - length : -8])
    at = footer.rindex(b"\x16\x02", 0, footer.index(b"\x19\x1c\x19"))  # field 3, a zigzag 1
    footer[at : at + 2] = b"\x16\xfe\xff\xff\xff\xff\xff\xff\xff\x7f"
    path.write_bytes(content[: -8 - length] + footer + len(footer).to_bytes(4, "little") + b"PAR1")


def twice(path: Path) -> None:
    """Two columns of one name."""
    names = ["trial_id", "started_at", "trial_id"]
    pq.write_table(pa.Table.from_arrays([["x"], [WHEN], ["y"]], names=names), path)


def no_utf8(path: Path) -> None:
    raw = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff\xfe"], pa.binary()).buffers())
    pq.write_table(table(reason=raw), path)


ABSURD: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "torn": lambda path: path.write_bytes(b"PAR1 and then no more"),
    "text": lambda path: path.write_text("import os; os.system('true')"),
    "foreign": parquet(pa.table({"a": [1, 2, 3]})),
    "folder": lambda path: path.mkdir(),
    "pipe": os.mkfifo,
    "dangling": lambda path: path.symlink_to("nowhere"),
    "loop": lambda path: path.symlink_to(path),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "several_columns_of_a_name": twice,
    "claims_many_rows": claims_many_rows,
    "not_utf8": no_utf8,
    "nested": parquet(table(status=pa.array([{"ok": [["ok"]]}]))),
    "lists_for_bytes": parquet(table(peak_allocated_bytes=pa.array([[1, 2]]))),
    "lossy": parquet(table(peak_allocated_bytes=pa.array([1.5]))),
    "beyond_64_bits": parquet(table(peak_allocated_bytes=pa.array([1e30]))),
    "when_as_text": parquet(table(started_at=pa.array(["yesterday"]))),
    "when_as_a_flag": parquet(table(started_at=pa.array([True]))),
    "when_beyond_the_calendar": parquet(table(started_at=pa.array([2**62], pa.timestamp("us", tz="UTC")))),
    "no_when": parquet(table(started_at=pa.array([None], pa.timestamp("us", tz="UTC")))),
    "no_such_status": parquet(table(status=pa.array(["fine\x1b[2J"]))),
}


@pytest.mark.parametrize("kind", ABSURD)
def test_an_absurd_file_is_named_once_and_stays(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows.write([ROW], tmp_path)
    path = tmp_path / "trials" / f"{ROW['sweep_id']}-{kind}.parquet"
    ABSURD[kind](path)
    before = path.lstat()  # its last time of access may change, and nothing else
    for read in (store.read, store.records):
        assert len(read(tmp_path)) == 1
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert lines[0].startswith(f"{path}: not a row of this project, passed over (")
        assert lines[0].isprintable()
    after = path.lstat()
    assert (after.st_ino, after.st_mode, after.st_size) == (before.st_ino, before.st_mode, before.st_size)
    assert after.st_mtime_ns == before.st_mtime_ns


def test_a_file_of_several_rows_gives_them_all(tmp_path: Path) -> None:
    (tmp_path / "trials").mkdir()
    pq.write_table(pa.concat_tables([table(), table()]), tmp_path / "trials" / "two.parquet")
    assert len(store.read(tmp_path)) == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows.write([ROW, ROW | {"trial_id": "b"}], tmp_path)
    secret = next((tmp_path / "trials").glob("*b.parquet"))
    secret.chmod(0)
    assert len(store.read(tmp_path)) == 1
    secret.chmod(stat.S_IRUSR)
    assert secret.name in capsys.readouterr().err


def test_what_a_file_says_about_pandas_is_not_heeded(tmp_path: Path) -> None:
    """Pandas would take columns away into an index."""
    (tmp_path / "trials").mkdir()
    frame = pd.DataFrame([ROW]).set_index("trial_id")
    said = pa.Table.from_pandas(frame[["status"]]).schema.metadata[b"pandas"]
    hostile = table().replace_schema_metadata({b"pandas": said})
    pq.write_table(hostile, tmp_path / "trials" / "a.parquet")
    assert list(store.read(tmp_path).columns) == SCHEMA.names


def test_a_file_that_is_gone_when_its_turn_comes_is_looked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows.write([ROW], tmp_path)
    whole, seen = reading.read_small, []

    def late(files: list[Path], asked: Query) -> reading.ReadResult:
        if not seen:  # renamed between the listing and the reading
            files[0].rename(files[0].with_name("renamed.parquet"))
        seen.append(files)
        return whole(files, asked)

    monkeypatch.setattr(reading, "read_small", late)
    assert len(store.read(tmp_path)) == 1
    assert len(seen) == 2
    assert capsys.readouterr().err == ""


def test_rows_are_filtered_by_values_and_by_expressions(tmp_path: Path) -> None:
    large = [rows.measured(words, rows.H100, number=n) for n, words in enumerate(rows.LARGE)]
    rows.write([*large, *(rows.measured(words) for words in rows.GRID[-4:])], tmp_path)
    every = store.read(tmp_path)
    chosen = every[(every["model"] == "llama-7b") & every["precision"].isin(["int8", "nf4"])]
    where = {"model": "llama-7b", "precision": ["int8", "nf4"]}
    found = store.read(tmp_path, columns=["trial_id", "started_at"], where=where)
    assert list(found["trial_id"]) == list(chosen["trial_id"])
    assert 0 < len(chosen) < len(every)
    assert len(store.read(tmp_path, where={"lora_rank": None})) == every["lora_rank"].isna().sum()
    large = pc.field("peak_allocated_bytes") > 2**34
    assert len(store.read(tmp_path, where=large)) == (every["peak_allocated_bytes"] > 2**34).sum()
    with pytest.raises(ValueError, match="modle: rows have no such column"):
        store.read(tmp_path, where={"modle": "llama-7b"})
    with pytest.raises(ValueError, match="no_column"):
        store.read(tmp_path, where=pc.field("no_column") > 1)


FUZZ = """
import random, sys
from pathlib import Path
from bench.results import store

folder, seed, tries = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
whole = [Path(path).read_bytes() for path in sys.argv[4:]]
draw = random.Random(seed)
names = ("a.parquet", "0-compacted/m/part-a.parquet")
targets = [folder / str(number) / "trials" / name for number, name in enumerate(names)]
for target in targets:
    target.parent.mkdir(parents=True)
single, merged = targets
(merged.parents[2] / "b.parquet").write_bytes(whole[0])
columns = ("trial_id", "started_at", "status", "per_rank", "losses", "reason", "peak_allocated_bytes")
for number in range(tries):
    content = bytearray(draw.choice(whole))
    start = draw.choice([0, len(content) * 3 // 4, len(content) - 4000])  # pages, and the footer
    for _ in range(draw.choice([1, 1, 2, 8, 64])):
        at = draw.randrange(start, len(content))
        flipped = content[at] ^ 1 << draw.randrange(8)
        content[at] = draw.choice([0, 1, 127, 128, 255, draw.randrange(256), flipped])
    if draw.random() < 0.2:
        del content[draw.randrange(len(content)) :]
    if draw.random() < 0.1:
        at = draw.randrange(len(content) + 1)
        content[at:at] = draw.randbytes(draw.randrange(64))
    target = draw.choice(targets)
    target.write_bytes(content)
    print(number, flush=True)
    place = target.parents[1 if target == single else 3]
    store.read(place, columns=None if number % 10 == 0 else columns)
    store.records(place, columns=columns, where={"status": "ok"})
"""


def test_mutated_rows_end_in_words_never_in_a_crash(tmp_path: Path) -> None:
    """In a process of its own: what is sought is what would kill it."""
    new = store.write(ROW, tmp_path / "new", "a")
    old = ROOT / "tests" / "fixtures" / "schema" / "1-104-columns.parquet"  # its pages have no checksums
    store.write(ROW, tmp_path / "many", "a")
    (many,) = compaction.compact(tmp_path / "many").parts
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, str(tmp_path), "0", "250", str(new), str(old), str(many)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    last = (done.stdout.splitlines() or ["none"])[-1]
    assert (done.returncode, last) == (0, "249"), done.stderr[-2000:]
    passed_over = sum("not a row of this project" in line for line in done.stderr.splitlines())
    assert passed_over > 100
