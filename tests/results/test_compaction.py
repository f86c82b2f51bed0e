"""Merging files of trials: each row stays as it was and is found once, whatever happens."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench.results import compaction, layout, store
from bench.results.schema import SCHEMA
from tests import rows
from tests.conftest import ROOT, door, door_here


def files(folder: Path) -> set[str]:
    return {path.name for path in (folder / "trials").glob("*.parquet")}


def text(found: list[dict[str, Any]]) -> list[str]:
    """Rows as text, in which a NaN is itself, in an order of their own."""
    return sorted(json.dumps(row, default=str, sort_keys=True) for row in found)


_numbers = itertools.count()


def write(folder: Path, *some: dict[str, Any]) -> list[Path]:
    """One file each, no two of a name."""
    return [
        store.write(row, folder, f"{row['sweep_id']}-{next(_numbers):04d}-{row['trial_id']}")
        for row in some
    ]


def some_rows() -> list[dict[str, Any]]:
    """A CPU's trials, two ranks among them, and a GPU's, of which some are out of memory."""
    large = "20260304T120000-cccccc"
    of_cpu = [rows.measured(words, number=n) for n, words in enumerate((*rows.GRID[:4], *rows.SHARDED[:1]))]
    return of_cpu + [
        rows.measured(words, rows.H100, sweep=large, number=n) for n, words in enumerate(rows.LARGE[:3])
    ]


def parts(folder: Path) -> list[Path]:
    return layout.merged_files(folder / "trials")


def test_rows_are_the_same_before_and_after(tmp_path: Path) -> None:
    strange = rows.measured("precision=bf16", number=99) | {
        "losses": [float("nan"), float("inf"), -0.0],
        "peak_allocated_bytes": 2**53 + 1,  # the first that a double cannot hold
        "reason": "\x00 \ud7ff \U0001f40b",
        "step_seconds": [],
    }
    written = write(tmp_path, *some_rows(), strange)
    before, plain = text(store.records(tmp_path)), pd.read_parquet(tmp_path / "trials")
    done = compaction.compact(tmp_path)
    assert (done.files, done.rows, done.left) == (len(written), len(written), {})
    assert files(tmp_path) == set()
    assert text(store.records(tmp_path)) == before
    again = pd.read_parquet(tmp_path / "trials")
    assert len(again) == len(written)
    assert set(again.columns) == {*SCHEMA.names, *layout.SOURCES.names}
    assert again["model"].dtype == plain["model"].dtype  # not the category that a partition's folder gives
    assert sorted(again["trial_id"]) == sorted(plain["trial_id"])


def test_one_sweep_and_one_model_are_read_from_merged_and_single_files_alike(tmp_path: Path) -> None:
    write(tmp_path, *some_rows())
    sweep, where = "20260304T120000-cccccc", {"model": "llama-7b", "status": "oom"}
    one, other = store.records(tmp_path, sweep), store.records(tmp_path, where=where)
    assert 0 < len(one) < len(store.records(tmp_path))
    assert 0 < len(other) < len(one)
    compaction.compact(tmp_path)
    assert store.records(tmp_path, sweep) == one
    assert store.records(tmp_path, where=where) == other
    assert store.records(tmp_path, sweep, where=where) == other
    some = store.read(tmp_path, sweep, columns=["trial_id", "started_at"])
    assert list(some.columns) == ["trial_id", "started_at"]
    assert list(some["trial_id"]) == [row["trial_id"] for row in one]
    later = rows.measured("precision=nf4", sweep=sweep, number=50)
    write(tmp_path, later)
    assert store.records(tmp_path, sweep)[-1]["trial_id"] == later["trial_id"]


def test_what_comes_later_is_merged_into_what_is_small(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path, rows.measured("lora=on", number=number))
        compaction.compact(tmp_path)
        assert len(parts(tmp_path)) == 1
        assert len(store.read(tmp_path)) == number + 1
    (part,) = parts(tmp_path)
    assert len(set(pq.read_table(part)["source_file"].to_pylist())) == 3


def test_large_parts_are_left_and_memory_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "_PART_ROWS", 4)
    monkeypatch.setattr(compaction, "_ROWS_IN_MEMORY", 6)
    monkeypatch.setattr(compaction, "_BATCH_FILES", 2)
    write(tmp_path, *(rows.measured("lora=on", number=n) for n in range(9)))
    write(tmp_path, *(rows.measured("model=gpt2", number=n) for n in range(3)))
    done = compaction.compact(tmp_path)
    sizes = sorted((part.parent.name[:4], pq.read_metadata(part).num_rows) for part in parts(tmp_path))
    assert sizes == [("gpt2", 3), ("llam", 1), ("llam", 4), ("llam", 4)]
    assert done.rows == len(store.read(tmp_path)) == 12


def test_younger_files_are_left(tmp_path: Path) -> None:
    write(tmp_path, *(rows.measured("lora=on", number=number) for number in range(2)))
    old = sorted((tmp_path / "trials").glob("*.parquet"))[0]
    os.utime(old, (time.time() - 3 * 86_400,) * 2)
    assert compaction.compact(tmp_path, older_than_days=2).files == 1
    assert len(files(tmp_path)) == 1
    assert old.name not in files(tmp_path)


def test_what_this_version_would_lose_is_left_and_still_read(tmp_path: Path) -> None:
    write(tmp_path, *(rows.measured("lora=on", number=number) for number in range(3)))
    newer, other, torn = sorted((tmp_path / "trials").glob("*.parquet"))
    whole = pq.ParquetFile(newer).read()
    pq.write_table(whole.append_column("quantum_bytes", [[7]]), newer)
    at = whole.column_names.index("peak_allocated_bytes")
    pq.write_table(whole.set_column(at, "peak_allocated_bytes", [pa.array([5], pa.int32())]), other)
    torn.write_bytes(torn.read_bytes()[:-9])
    before = {path: path.read_bytes() for path in (newer, other, torn)}
    done = compaction.compact(tmp_path)
    assert done.files == 0
    assert done.left[newer] == "this version does not know its column quantum_bytes"
    assert done.left[other] == "its peak_allocated_bytes is int32, not int64"
    assert set(done.left) == set(before)
    assert {path: path.read_bytes() for path in before} == before
    assert len(store.read(tmp_path)) == 2


@pytest.mark.parametrize(
    "label", ["../../../out", "model=x", "..", "", "/etc", "a\nb", ".hidden", "_x", "é" * 500]
)
def test_a_models_label_stays_one_harmless_folder(label: str, tmp_path: Path) -> None:
    write(tmp_path, rows.measured("lora=on") | {"model": label})
    (part,) = compaction.compact(tmp_path).parts
    assert part.parent.parent == tmp_path / "trials" / layout.MERGED
    assert part.resolve() == tmp_path.resolve() / part.relative_to(tmp_path)
    assert list(pd.read_parquet(tmp_path / "trials")["model"]) == [label]
    assert [row["model"] for row in store.records(tmp_path)] == [label]


class DiedError(Exception):
    """Stands for what a process does not live to see."""


def dies(*_arguments: object) -> None:
    raise DiedError


def died_before_deleting(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A merge's files beside what they stand for; the rows as they should be read."""
    write(folder, *(rows.measured("lora=on", number=number) for number in range(6)))
    before = text(store.records(folder))
    with monkeypatch.context() as patched, pytest.raises(DiedError):
        patched.setattr(compaction, "_delete", dies)
        compaction.compact(folder)
    assert len(files(folder)) == 6
    assert len(parts(folder)) == 1
    return before


def test_a_merge_that_died_before_deleting_counts_no_row_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = died_before_deleting(tmp_path, monkeypatch)
    assert text(store.records(tmp_path)) == before
    assert len(pd.read_parquet(tmp_path / "trials")) == 12  # plain pandas knows no better, until
    compaction.compact(tmp_path)
    assert text(store.records(tmp_path)) == before
    assert len(pd.read_parquet(tmp_path / "trials")) == 6


def test_a_merged_file_that_rots_gives_way_to_what_it_stands_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = died_before_deleting(tmp_path, monkeypatch)
    (part,) = parts(tmp_path)
    content = bytearray(part.read_bytes())
    column = next(
        column
        for number in range(pq.read_metadata(part).num_columns)
        if (column := pq.read_metadata(part).row_group(0).column(number)).path_in_schema == "overrides"
    )
    content[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    part.write_bytes(content)
    assert text(store.records(tmp_path)) == before
    assert capsys.readouterr().err.count(part.name) == 1
    compaction.compact(tmp_path)
    assert part.exists()
    assert text(store.records(tmp_path)) == before


def test_merged_files_that_died_before_deleting_smaller_ones_count_no_row_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, rows.measured("lora=on"))
    compaction.compact(tmp_path)
    write(tmp_path, rows.measured("lora=on", number=1))
    before = text(store.records(tmp_path))
    with monkeypatch.context() as patched, pytest.raises(DiedError):
        patched.setattr(compaction, "_delete", dies)
        compaction.compact(tmp_path)
    assert len(parts(tmp_path)) == 2
    assert text(store.records(tmp_path)) == before
    compaction.compact(tmp_path)
    assert len(parts(tmp_path)) == 1
    assert text(store.records(tmp_path)) == before


def test_another_row_of_a_merged_name_is_another_row(tmp_path: Path) -> None:
    write(tmp_path, rows.measured("lora=on"))
    (name,) = files(tmp_path)
    compaction.compact(tmp_path)
    store.write(rows.measured("lora=on", replicate=1), tmp_path, name.removesuffix(".parquet"))
    assert sorted(row["replicate"] for row in store.records(tmp_path)) == [0, 1]
    compaction.compact(tmp_path)
    assert sorted(row["replicate"] for row in store.records(tmp_path)) == [0, 1]


def test_a_merged_file_of_anybodys_deletes_nothing_elsewhere(tmp_path: Path) -> None:
    write(tmp_path, rows.measured("lora=on"))
    (part,) = compaction.compact(tmp_path).parts
    victim = tmp_path / "victim.parquet"
    victim.write_bytes(b"dear")
    names = ["../../../victim.parquet", str(victim), part.name]
    pq.write_table(pq.read_table(part).replace_schema_metadata({"replaces": json.dumps(names)}), part)
    write(tmp_path, rows.measured("lora=on", number=1))
    compaction.compact(tmp_path)
    assert victim.read_bytes() == b"dear"
    assert len(store.read(tmp_path)) == 2


KILLED = """
import os, sys, time
from pathlib import Path
from bench.results import compaction

# many files, so many moments between them
compaction._PART_ROWS, compaction._ROWS_IN_MEMORY, compaction._BATCH_FILES = 6, 9, 4
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        compaction.compact(Path(sys.argv[1]))
        os._exit(0)
    time.sleep(float(line))
    os.kill(child, 9)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_killed_at_any_moment_it_loses_no_row_and_doubles_none(tmp_path: Path) -> None:
    draw = random.Random(6)
    words = ("lora=on", "precision=bf16", "model=gpt2", "model=gpt2 lora=on", "model=opt-125m")
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    ends = []
    with subprocess.Popen(command, cwd=ROOT, **pipes) as server:
        for attempt in range(8):
            write(tmp_path, *(rows.measured(words[n % 5], number=6 * attempt + n) for n in range(6)))
            before = text(store.records(tmp_path))
            assert len(before) == 6 * (attempt + 1)
            server.stdin.write(f"{draw.uniform(0, 0.25)}\n")
            server.stdin.flush()
            ends.append(int(server.stdout.readline()))
            assert text(store.records(tmp_path)) == before
        server.stdin.close()
    assert set(ends) <= {0, -signal.SIGKILL}
    assert -signal.SIGKILL in ends
    compaction.compact(tmp_path)
    assert text(store.records(tmp_path)) == before
    assert len(pd.read_parquet(tmp_path / "trials")) == 48
    assert not list((tmp_path / "trials").rglob(".part*"))


def test_rows_written_and_read_meanwhile_are_all_there(tmp_path: Path) -> None:
    written: list[str] = []

    def writer(sweep: str) -> None:
        for number in range(25):
            row = rows.measured("lora=on", sweep=sweep, number=number)
            store.write(row, tmp_path, f"{sweep}-{number:04d}-{row['trial_id']}")
            written.append(f"{sweep} {row['started_at']}")

    write(tmp_path, rows.measured("lora=on"))
    writers = [threading.Thread(target=writer, args=(f"2026030{n}T090000-aaaaaa",)) for n in (3, 4)]
    merging = threading.Thread(
        target=lambda: [
            compaction.compact(tmp_path) for _ in iter(lambda: any(w.is_alive() for w in writers), False)
        ]
    )
    for thread in (*writers, merging):
        thread.start()
    while merging.is_alive():
        expected = set(written)
        read = [f"{r['sweep_id']} {r['started_at']}" for r in store.records(tmp_path)]
        assert expected <= set(read)
        assert len(read) == len(set(read))
    for thread in (*writers, merging):
        thread.join()
    assert len(store.read(tmp_path)) == 51
    compaction.compact(tmp_path)
    assert files(tmp_path) == set()
    assert len(pd.read_parquet(tmp_path / "trials")) == 51


def test_the_door_merges_and_names_what_it_leaves(tmp_path: Path) -> None:
    write(tmp_path, rows.measured("lora=on"))
    (tmp_path / "trials" / "torn.parquet").write_bytes(b"PAR1")
    done = door(f"results_dir={tmp_path}", script="compact.py")
    assert (done.returncode, done.stdout) == (0, "1 row of 1 file merged into 1 file, 1 left\n")
    assert "torn.parquet: left as it is (" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_doors_mistakes_are_one_line(tmp_path: Path) -> None:
    write(tmp_path, rows.measured("lora=on"))
    with (tmp_path / "trials" / ".merge.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        busy = door_here(f"results_dir={tmp_path}", script="compact.py")
    wrong = door_here(f"results_dir={tmp_path}", "older_than=3", script="compact.py")
    nowhere = door_here(f"results_dir={tmp_path / 'no'}", script="compact.py")
    assert [busy.returncode, wrong.returncode, nowhere.returncode] == [1, 2, 2]
    assert "another merge is at work" in busy.stderr
    assert "did you mean older_than_days?" in wrong.stderr
    assert "no folder trials in it" in nowhere.stderr
    assert [len(said.stderr.splitlines()) for said in (busy, wrong, nowhere)] == [1, 1, 1]
    assert len(files(tmp_path)) == 1
