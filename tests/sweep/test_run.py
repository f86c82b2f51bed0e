"""The door, for real: the README's sweep, statuses and exit codes, what is printed, where rows go."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl

from bench.results import schema
from bench.results.schema import SCHEMA
from tests.conftest import ALONE, BRIEF, ROOT, SHORT, Command, door, door_here, run_into
from tests.sweeps import Here

Run = Callable[..., Command]


# Starting a command costs more than what most tests ask of it: several read what one has left.


@pytest.fixture(scope="module")
def readmes_sweep(tmp_path_factory: pytest.TempPathFactory) -> Command:
    folder = tmp_path_factory.mktemp("readmes_sweep")
    return run_into(folder, "-m", "precision=fp16,int8", "lora=on,off")


@pytest.fixture(scope="module")
def starved(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """A single trial, twice, that runs out of memory."""
    words = ("memory_limit_bytes=8000000", "replicates=2", "seq_len=128")
    return run_into(tmp_path_factory.mktemp("starved"), *words)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """A single trial from another directory, whose results hold a torn file already."""
    folder = tmp_path_factory.mktemp("elsewhere")
    trials = folder / "mine" / "trials"
    trials.mkdir(parents=True)
    torn = trials / "torn.parquet"
    torn.write_bytes(b"PAR1 and then no more")
    done = door(*BRIEF, "results_dir=mine", cwd=folder)
    torn.unlink()  # plain pandas reads all or nothing
    return Command(done, folder / "mine")


@pytest.fixture(scope="module")
def worst(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """Trials that diverge and that are skipped, among others."""
    words = ("-m", "optimizer=sgd", "optimizer.lr=1e30,0.01", "precision=fp32,nf4")
    return run_into(tmp_path_factory.mktemp("worst"), *words)


def test_the_readmes_sweep(readmes_sweep: Command) -> None:
    sweep = readmes_sweep
    assert sweep.code == 0, sweep.err
    rows = sweep.rows
    assert list(rows["status"]) == ["ok"] * 4
    assert list(zip(rows["precision"], rows["lora"], strict=True)) == [
        ("fp16", "on"),
        ("fp16", "off"),
        ("int8", "on"),
        ("int8", "off"),
    ]
    fp16_off, int8_on, int8_off = (rows.iloc[index] for index in (1, 2, 3))
    assert json.loads(int8_on["evidence"])["int8_modules"] == 14
    assert json.loads(int8_on["evidence"])["quantised_weight_dtypes"] == ["int8"]
    assert int8_off["parameter_max_bytes"] >= fp16_off["parameter_max_bytes"]
    assert int8_on["parameter_max_bytes"] < 0.7 * fp16_off["parameter_max_bytes"]
    categories = ("parameter", "gradient", "optimizer", "activation", "temporary", "input")
    for _, row in rows.iterrows():
        assert sum(row[f"{name}_bytes"] for name in categories) == row["tracked_peak_bytes"]
        assert row["peak_allocated_bytes"] - row["tracked_peak_bytes"] == row["untracked_bytes"]
        assert len(row["step_seconds"]) == 3
        rate = row["tokens_per_step"] / row["step_seconds_median"]
        assert row["tokens_per_sec_per_device"] == pytest.approx(rate)
    assert rows["trial_id"].is_unique
    assert sweep.err == ""


def test_two_ranks_hold_half_each_and_learn_the_same(here: Here) -> None:
    assert here.run("fsdp=no_shard,full_shard", "offload=off,params", SHORT) == 0
    assert here.run("fsdp=shard_grad_op", SHORT) == 0
    rows = here.frame().set_index(["fsdp", "offload"])
    assert rows.loc[("no_shard", "params"), "status"] == "skipped"
    assert "FSDP's CPU offload" in rows.loc[("no_shard", "params"), "reason"]
    replicated = rows.loc[("no_shard", "off")]
    for levels in (("full_shard", "off"), ("full_shard", "params"), ("shard_grad_op", "off")):
        row = rows.loc[levels]
        assert row["status"] == "ok"
        for category in ("parameter", "gradient", "optimizer"):
            half = replicated[f"{category}_max_bytes"] / 2
            assert row[f"{category}_max_bytes"] == pytest.approx(half, rel=1e-4)
        assert row["losses"] == pytest.approx(replicated["losses"], rel=1e-5)
        assert row["tokens_per_sec_global"] == 2 * row["tokens_per_sec_per_device"]
        assert row["world_size"] == len(row["per_rank"]) == 2
        peaks = [rank["peak_allocated_bytes"] for rank in row["per_rank"]]
        assert row["peak_allocated_bytes"] == max(peaks)
    gathered = rows["gathered_max_bytes"]
    assert gathered["shard_grad_op", "off"] > gathered["full_shard", "off"] > 0


@pytest.mark.slow
def test_sharded_fine_tuning(here: Here) -> None:
    levels = "precision=bf16,bf16_pure,nf4,int8"
    assert here.run("fsdp=full_shard", "fsdp.world_size=2", "lora=on", levels, SHORT) == 0
    rows = here.frame()
    assert list(rows["status"]) == ["ok", "ok", "ok", "skipped"]
    assert "quantisation state" in rows["reason"][3]
    adapters = 2 * 16 * (4 * (128 + 128) + 3 * (128 + 352))
    for _, row in rows[:3].iterrows():
        assert row["trainable_param_count"] == adapters
        assert row["gradient_max_bytes"] == adapters * 4 / 2
        assert row["optimizer_max_bytes"] == adapters * 8 / 2 + 28 * 4
        assert json.loads(row["evidence"])["sharded_blocks"] == 2


def test_a_sweep_survives_its_worst_trials(worst: Command) -> None:
    sweep = worst
    assert sweep.code == 1
    assert list(sweep.rows["status"]) == ["error", "skipped", "ok", "skipped"]
    said = "bench.methods.timed_steps.NonFiniteLossError: the loss became"
    assert sweep.rows["reason"][0].startswith(said)
    assert "Traceback" in sweep.rows["traceback"][0]
    assert "Traceback" not in sweep.out + sweep.err
    assert "Logs" in sweep.out


def test_out_of_memory_is_a_result(starved: Command) -> None:
    assert starved.code == 0
    row = starved.rows.iloc[0]
    assert row["status"] == "oom"
    assert row["oom_requested_bytes"] > 0
    assert row["peak_host_rss_bytes"] > 0


def test_a_timeout_fails_the_command(here: Here) -> None:
    long = ("timing.max_steps=100000", "timing.budget_seconds=999.0", "timing.relative_ci=1e-9")
    assert here.run("timeout_seconds=1", *long) == 1
    assert here.statuses() == ["timeout"]


@pytest.mark.parametrize(
    "arguments",
    [("presicion=fp16",), ("-m", "precision=fp16,fp61"), ("micro_batch_size=abc",), ("lora=[on",)],
)
def test_mistakes_end_the_command_before_anything_starts(
    bench_run: Run, arguments: tuple[str, ...]
) -> None:
    command = bench_run(*arguments)
    assert command.code == 2
    assert command.out == ""
    assert command.err.startswith("bench/run.py: ")
    assert command.err.count("\n") == 1
    assert not command.results_dir.exists()


def test_a_results_dir_that_cannot_be_written_is_found_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = door(f"results_dir={tmp_path}/file")
    assert done.returncode == 2
    assert done.stderr == f"bench/run.py: results_dir={tmp_path}/file: Not a directory\n"


def test_a_torn_file_in_the_folder_does_no_harm(elsewhere: Command) -> None:
    assert elsewhere.code == 0
    assert "1 of 1 trials" in elsewhere.out
    assert elsewhere.err == ""


def test_replicates_are_fresh_interleaved_and_told_apart(here: Here) -> None:
    assert here.run("seed=1,2", "replicates=2", SHORT) == 0
    rows = here.rows()
    assert [(row["seed"], row["replicate"]) for row in rows] == [(1, 0), (2, 0), (1, 1), (2, 1)]
    assert len({row["trial_id"] for row in rows}) == 2
    assert rows[0]["losses"] == rows[2]["losses"], "the same trial, the same mathematics"


def test_replicates_of_a_single_trial(starved: Command) -> None:
    assert len(starved.rows) == 2


def test_the_recorded_command_reproduces_the_row(readmes_sweep: Command, tmp_path: Path) -> None:
    first = readmes_sweep.rows.iloc[2]
    command = first["overrides"].split()
    assert command[:2] == ["python", "bench/run.py"]
    again = tmp_path / "again"
    done = door_here(*command[2:], f"results_dir={again}")
    assert done.returncode == 0, done.stderr
    row = pd.read_parquet(again / "trials").iloc[0]
    assert row["trial_id"] == first["trial_id"]
    assert row["peak_allocated_bytes"] == first["peak_allocated_bytes"]
    assert list(row["losses"]) == list(first["losses"])


def test_rows_go_to_results_dir_whatever_the_current_directory(elsewhere: Command) -> None:
    assert elsewhere.code == 0
    assert len(elsewhere.rows) == 1
    assert elsewhere.rows["threads"][0] == len(os.sched_getaffinity(0)), (
        "all cores, where nothing else is said"
    )
    assert [path.name for path in elsewhere.results_dir.parent.iterdir()] == ["mine"]


@pytest.mark.slow  # as tests/sweep/test_faults.py with formulas; a device in use is waited for there too
def test_two_sweeps_at_once_into_one_folder(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "bench" / "run.py"), "-m", *BRIEF, ALONE, SHORT]
    both = [
        subprocess.Popen([*command, *words, f"results_dir={tmp_path}"], stdout=subprocess.DEVNULL)
        for words in (("seed=1,2", "replicates=2"), ("seed=4,5,6",))
    ]
    assert [process.wait(timeout=300) for process in both] == [0, 0]
    rows = pd.read_parquet(tmp_path / "trials")
    assert sorted(rows["seed"]) == [1, 1, 2, 2, 4, 5, 6]
    assert set(rows["status"]) == {"ok"}
    assert rows["sweep_id"].nunique() == 2


def test_the_door_starts_without_torch() -> None:
    """--help and --cfg must answer at once, and torch alone takes seconds."""
    program = (
        "import sys; sys.argv = ['bench/run.py', *sys.argv[1:]]; import runpy\n"
        "try: runpy.run_path('bench/run.py', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'pandas', 'pyarrow', 'transformers', 'numpy'} & sys.modules.keys()\n"
        "print('HEAVY', sorted(heavy))"
    )
    for asked in (("--help",), ("--cfg", "job"), ("precision=fp61",)):
        done = subprocess.run(
            [sys.executable, "-c", program, *asked], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert "HEAVY []" in done.stdout, asked


def test_hydra_composes_a_trial_when_it_comes_and_not_all_before_the_first(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Composing takes a tenth of a second: of a thousand trials, minutes before anything is seen."""
    composed, first = [], []
    compose = ConfigLoaderImpl.load_sweep_config
    monkeypatch.setattr(
        ConfigLoaderImpl, "load_sweep_config", lambda *given: composed.append(given) or compose(*given)
    )
    words = ("method=estimate", "seed=range(5)")
    assert here.run(*words, at=lambda _trial, _stage: first.append(len(composed))) == 0
    assert first[0] == 1
    assert len(composed) == 5


def test_plain_lines_and_one_table(worst: Command) -> None:
    out = worst.out
    assert "1/4  error" in out
    assert "2/4  skipped" in out
    assert "3/4  ok" in out
    table = out[out.index("trial ") :]
    assert "precision=fp32" in table
    assert "first" in table
    assert "train adapters" in table
    assert "\x1b" not in out, "no terminal codes where there is no terminal"


def test_the_command_that_goes_on_is_the_whole_one(worst: Command) -> None:
    (line,) = [line for line in worst.out.splitlines() if line.startswith("Go on")]
    assert " -m " in line, "it was a sweep"
    assert f"results_dir={worst.results_dir}" in line
    assert "Once more" not in worst.out, "its error is tried again by the same command"


def test_the_row_is_as_contracted(readmes_sweep: Command) -> None:
    files = [*(readmes_sweep.results_dir / "trials").glob("*.parquet")]
    assert len(files) == 4
    for file in files:
        stored = pq.read_schema(file)
        assert stored.remove_metadata() == SCHEMA.remove_metadata()
        assert stored.metadata[b"schema_version"] == str(schema.SCHEMA_VERSION).encode()
    row = readmes_sweep.rows.iloc[1]
    assert row["tokens_per_sec_per_device_ci_low"] <= row["tokens_per_sec_per_device"]
    assert row["tokens_per_sec_per_device"] <= row["tokens_per_sec_per_device_ci_high"]
    assert row["param_count"] == 664_192
    assert row["device_name"].startswith("CPU (") or row["peak_reserved_bytes"] > 0
    assert row["torch_version"]
    assert len(row["losses"]) == 3 + 3
    assert str(row["started_at"].tz) == "UTC"
