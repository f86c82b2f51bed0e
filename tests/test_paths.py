"""Rows behind URLs: in memory, and in a real object store of a local server, over HTTP."""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import paths
from bench.config.command_line import check
from bench.config.compose import CommandError
from bench.config.key_values import KeyValueError, read_key_values
from bench.results import compaction, store
from tests import rows
from tests.conftest import ALONE, BRIEF, ROOT, door, door_here

pytest.importorskip("upath")

SOME = [rows.measured(words, number=number) for number, words in enumerate(rows.GRID[:4])]
OTHER = rows.measured("lora=on", sweep="20260309T090000-eeeeee")


@pytest.fixture(scope="module")
def object_store() -> Iterator[str]:
    """The URL of a bucket in moto's server."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    said = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    said |= {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any"}
    before = dict(os.environ)
    os.environ.update(said)
    import s3fs

    s3fs.S3FileSystem().mkdir("rows")
    yield "s3://rows"
    os.environ.clear()
    os.environ.update(before)
    server.stop()


@pytest.fixture(params=["memory", "s3"])
def folder(request: pytest.FixtureRequest) -> Path:
    root = "memory://rows" if request.param == "memory" else request.getfixturevalue("object_store")
    return paths.results_place(f"{root}/{secrets.token_hex(4)}/results")


def test_rows_come_back_as_they_went(folder: Path, tmp_path: Path) -> None:
    assert store.records(folder) == []
    rows.write([*SOME, OTHER], folder)
    rows.write([*SOME, OTHER], tmp_path)
    assert store.records(folder) == store.records(tmp_path)
    assert len(store.records(folder)) == 5
    assert [row["sweep_id"] for row in store.records(folder, OTHER["sweep_id"])] == [OTHER["sweep_id"]]
    assert store.records(folder, where={"precision": "bf16"}) == store.records(
        tmp_path, where={"precision": "bf16"}
    )


def test_what_is_no_row_is_named_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows.write(SOME, folder)
    (folder / "trials" / "torn.parquet").write_bytes(b"PAR1 and then no more")
    (folder / "trials" / "empty.parquet").write_bytes(b"")
    (folder / "trials" / "deep.parquet" / "in.parquet").write_bytes(b"PAR1")
    assert len(store.read(folder)) == 4
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 2
    assert f"{folder}/trials/torn.parquet: not a row" in said


def test_merged_rows_that_were_copied_there_are_read(folder: Path, tmp_path: Path) -> None:
    rows.write([*SOME, OTHER], tmp_path)
    before = store.records(tmp_path)
    left_over = sorted((tmp_path / "trials").glob("*.parquet"))[0]
    (folder / "trials" / left_over.name).write_bytes(left_over.read_bytes())
    (part,) = compaction.compact(tmp_path).parts
    (folder / part.relative_to(tmp_path)).write_bytes(part.read_bytes())
    assert store.records(folder) == before
    assert store.records(folder, OTHER["sweep_id"]) == before[-1:]
    where = {"precision": "bf16"}
    assert store.records(folder, where=where) == store.records(tmp_path, where=where)


def test_a_url_of_files_is_a_path(tmp_path: Path) -> None:
    assert paths.results_place(f"file://{tmp_path}") == tmp_path
    assert not paths.is_remote(paths.results_place(f"file://{tmp_path}"))


def test_a_sweep_into_an_object_store_and_again(object_store: str) -> None:
    words = ("-m", *BRIEF, ALONE, "method=estimate", "precision=fp32,nf4")
    where = f"results_dir={object_store}/{secrets.token_hex(4)}"
    done = door(*words, where)
    assert done.returncode == 0, done.stderr
    folder = paths.results_place(where.partition("=")[2])
    assert [row["status"] for row in store.records(folder)] == ["ok", "skipped"]
    assert f"Rows       {folder}/trials" in done.stdout
    again = door_here(*words, where)
    assert "2 of these trials had a row already" in again.stdout
    assert len(store.records(folder)) == 2
    notes = list((paths.local_dir(folder) / "logs").glob("*/*.reused.json"))
    assert len(notes) == 2, "logs lie on this disk, not in the store"
    shutil.rmtree(paths.local_dir(folder))


def test_a_store_that_is_not_there_is_found_at_once(object_store: str) -> None:
    done = door_here("method=estimate", "results_dir=s3://nowhere/results")
    assert done.returncode == 2
    assert done.stderr.startswith("bench/run.py: results_dir=s3://nowhere/results: ")
    assert done.stderr.count("\n") == 1


def test_a_dry_run_says_which_package_a_store_needs() -> None:
    if importlib.util.find_spec("gcsfs"):
        pytest.skip("gcsfs is installed")
    done = door_here("method=estimate", "dry_run=true", "results_dir=gs://rows/results")
    assert done.returncode == 2
    assert (
        done.stderr.startswith("bench/run.py: results_dir=gs://rows/results: ") and "gcsfs" in done.stderr
    )
    assert done.stderr.count("\n") == 1


def test_what_is_no_url_of_fsspec_is_said_in_words() -> None:
    """Hydra and pathlib would make a folder `s3:` here."""
    with pytest.raises(CommandError, match="results_dir=unheard-of://rows: "):
        check(["results_dir=unheard-of://rows"], multirun=False, sweep_id="s")
    with pytest.raises(KeyValueError, match="results_dir=s3://rows: must be a folder of a disk"):
        read_key_values(["results_dir=s3://rows"], {"results_dir": Path("results")})


def test_installed_it_brings_what_it_needs_and_writes_where_it_is_called(tmp_path: Path) -> None:
    """The files of a wheel, as pyproject.toml lists them, away from the checkout."""
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"][
        "wheel"
    ]
    site, here = tmp_path / "site-packages", tmp_path / "here"
    here.mkdir()
    for package in wheel["packages"]:
        shutil.copytree(ROOT / package, site / package, ignore=shutil.ignore_patterns("__pycache__"))
    for source, target in wheel["force-include"].items():
        shutil.copytree(ROOT / source, site / target)
    started = [sys.executable, "-c", "from bench.config.console import main; raise SystemExit(main())"]
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}

    def called(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*started, *words], cwd=here, env=environment, capture_output=True, text=True)

    estimated = called("run", "method=estimate")
    assert estimated.returncode == 0, estimated.stderr
    assert "Once more  memory-bench run method=estimate resume=off" in estimated.stdout
    [row] = store.records(here / "results")
    assert (row["status"], row["git_commit"]) == ("ok", None)
    accepted = ROOT / "results" / "reference" / "nvidia-h100-80gb-hbm3"
    assert called("compare", "baseline_ref=auto", f"candidate={accepted}").returncode == 0
    unknown = called("runs")
    assert unknown.returncode == 2
    assert unknown.stderr.startswith("memory-bench: runs: no such command; the commands are run, plan")
