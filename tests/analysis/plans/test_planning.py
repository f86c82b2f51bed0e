"""The planning door, for real, and what it is made of."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from bench import plan
from bench.analysis.plans import combinations, planning
from bench.analysis.plans.largest_micro_batch import with_micro_batch
from bench.machine import gpu_catalogue
from bench.methods.simulate import simulate
from bench.processes import simulation_pool
from bench.processes.simulation_pool import Simulator
from bench.timing.data_sheet import BANDWIDTH_SHARE, REACHED, DataSheet
from bench.trial.columns import Columns, NotSimulated, Operation, Simulation
from bench.trial.platform import CUDA
from bench.trial.spec import Trial
from bench.trial.vocabulary import PHASES
from tests.conftest import door, make_trial


@dataclass(frozen=True)
class Planned:
    """What `python bench/plan.py` printed, and its exit code."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    with Simulator() as warm:
        yield warm


@pytest.fixture
def planned(
    simulator: Simulator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Planned]:
    """The door's own `main` in this process, with processes that simulate already."""
    monkeypatch.setattr(simulation_pool, "Simulator", lambda: nullcontext(simulator))

    def run(*words: str) -> Planned:
        capsys.readouterr()
        return Planned(plan.main(list(words)), *capsys.readouterr())

    return run


def predict(trials: list[Trial]) -> list[Simulation]:
    found = []
    for trial in trials:
        found.append(simulate(trial, CUDA))
    return found


SMALL = ("model=llama-20m", "model.layers=2")
PLAN = (*SMALL, "gpu=t4", "precision=fp16,fp16_pure", "lora=off", "checkpointing=on")


def test_the_door_says_what_fits_and_what_to_pick(planned: Callable[..., Planned]) -> None:
    done = planned(*PLAN)
    assert done.returncode == 0, done.stderr
    assert "model=llama-20m model.layers=2 lora=off checkpointing=on on t4, 14.75 GiB" in done.stdout
    assert "Pick (predicted fastest of those that fit): precision=fp16" in done.stdout
    assert "Traceback" not in done.stderr


def test_a_plan_for_programs_and_for_issues_says_the_same(planned: Callable[..., Planned]) -> None:
    [told] = json.loads(planned(*PLAN, "format=json").stdout)
    assert (told["gpu"], told["margin"]) == ("t4", 0.05)
    pages = planned(*PLAN, "format=markdown").stdout
    assert pages.startswith(f"### {' '.join(told['arguments'])} on t4, 14.75 GiB\n")
    assert "### " not in pages[4:], "the page of a plan is one section"
    for one in told["combinations"]:
        peak, rate = one["peak_bytes"], one["tokens_per_sec_per_device"]
        assert f"| `{' '.join(one['arguments'])}` | {peak / 2**30:.2f} | yes | " in pages
        low, high = (one[f"tokens_per_sec_per_device_{end}"] for end in ("low", "high"))
        assert low < rate < high
        assert sum(filter(None, one["bytes"].values())) <= peak <= one["room_bytes"]
        assert one["largest_micro_batch"] >= one["fastest_micro_batch"] >= 1
    assert told["answer"][0] in pages


@pytest.mark.slow
def test_the_process_ends_with_its_pool() -> None:
    done = door(*PLAN, script="plan.py")
    assert done.returncode == 0, done.stderr
    assert "Pick (predicted fastest of those that fit): precision=fp16" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_where_nothing_fits_it_says_what_would(planned: Callable[..., Planned]) -> None:
    words = ("model=llama-1b", "gpu=t4", "precision=fp32", "lora=off", "checkpointing=on")
    done = planned(*words)
    assert done.returncode == 1
    assert "Nothing fits." in done.stdout
    assert "With gpus=" in done.stdout


@pytest.mark.slow
def test_a_configuration_file_is_a_model(tmp_path: Path, planned: Callable[..., Planned]) -> None:
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 1000,
        "max_position_embeddings": 512,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    words = ("gpu=t4", "precision=fp32", "lora=off", "checkpointing=off", "optimizer=sgd", "seq_len=64")
    done = planned(f"model={tmp_path}", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"model={tmp_path}" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("gpu=rtx-9999",), "gpu=rtx-9999: not in conf/gpu/"),
        (("gpu=t4", "modle=llama-7b"), "did you mean model?"),
        (("gpu=t4", "model=llama-8b"), "no such level"),
        (("gpu=t4", "margin=2"), "margin=2.0: must be at least 0 and less than 1"),
        (("gpu=t4", "gpus=0"), "gpus=0: must be at least 1"),
        (("gpu=t4", "gpus=2", "workload=decode"), "gpus=2: inference is planned for one card"),
        (("gpu=t4", "device=cpu"), "device: a plan is simulated, for the card that gpu= names"),
        (("gpu=auto",), "gpu=auto"),
        (("gpu=t4", "seq_len=x"), "seq_len"),
        (("gpu=t4", "format=xml"), "format=xml: must be one of text, json, markdown"),
    ],
)
def test_a_wrong_word_ends_it_with_one_line(
    words: tuple[str, ...], said: str, planned: Callable[..., Planned]
) -> None:
    done = planned(*words)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_wrong_word_ends_the_process_without_its_traceback() -> None:
    done = door("gpu=t4", "modle=llama-7b", script="plan.py")
    assert done.returncode == 2
    assert done.stdout == ""
    assert (
        done.stderr
        == "bench/plan.py: modle: no such axis or key (did you mean model?); see --help for all of them\n"
    )


def test_a_card_without_bfloat16_is_offered_float16() -> None:
    words = {
        word
        for words in combinations.combinations([], 1, gpu_catalogue.catalogue()["t4"])
        for word in words
    }
    assert "precision=fp16_pure" in words
    assert "precision=bf16_pure" not in words


def test_a_model_that_cannot_be_read_is_one_line(tmp_path: Path, planned: Callable[..., Planned]) -> None:
    done = planned("gpu=t4", f"model={tmp_path}/none", "precision=fp32", "lora=off")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("bench/plan.py: ")
    assert "Traceback" not in done.stderr


class SomeFail:
    """Simulates nothing: what is checkpointed fails, and larger micro-batches take more."""

    def __enter__(self) -> SomeFail:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def pause(self) -> None:
        pass

    def __call__(self, trials: list[Trial]) -> list[Simulation | NotSimulated]:
        return [self.of(trial) for trial in trials]

    def of(self, trial: Trial) -> Simulation | NotSimulated:
        if trial.checkpointing.name == "on":
            return NotSimulated("RuntimeError: this model has no blocks")
        names = ("parameter", "gradient", "optimizer", "activation", "temporary")
        columns: dict[str, Any] = {f"{name}_bytes": trial.micro_batch_size * 2**28 for name in names}
        peaks = {f"{phase}_tracked_peak_bytes": 5 * 2**28 * trial.micro_batch_size for phase in PHASES}
        peak = 5 * 2**28 * trial.micro_batch_size * max(1, trial.seq_len // 1024)
        seconds = trial.micro_batch_size / REACHED  # beside a gap of a microsecond
        moved = int(seconds * gpu_catalogue.catalogue()["t4"].bandwidth_bytes_per_sec * BANDWIDTH_SHARE)
        work = Counter([Operation("aten::copy_", "float16", (), 0, moved, "forward")])
        return Simulation(cast(Columns, columns | peaks | {"peak_allocated_bytes": peak}), work)


@pytest.fixture
def some_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation_pool, "Simulator", SomeFail)
    monkeypatch.setattr(planning, "initial_guess", lambda *_: 1)


def test_a_combination_that_fails_is_one_line_and_the_others_are_ranked(
    some_fail: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    words = ["gpu=t4", "model=llama-160m", "precision=fp16_pure", "lora=off"]
    assert plan.main([*words, "tokens=3.6e6", "price_per_hour=0.5"]) == 0
    out, err = capsys.readouterr()
    said = " ".join(out.split())
    assert "checkpointing=on: RuntimeError: this model has no blocks" in said
    assert "Pick (predicted fastest of those that fit): checkpointing=off micro_batch_size=10" in said
    assert "One sequence at a time may have" in said
    # 1,024 tokens a second and sequence, whatever the micro-batch, is an hour for 3.6 million
    assert "3,600,000 tokens take 0.977 hours" in said
    assert "and cost 0.488" in said
    assert err == ""
    assert max(map(len, out.splitlines())) <= 80
    assert "checkpointing=off" in out.split(), "no word is broken"


def test_where_every_combination_fails_the_reason_is_said_once(
    some_fail: None, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["gpu=t4", "model=llama-160m", "precision=fp16_pure,fp32", "lora=off", "checkpointing=on"]
    assert plan.main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("RuntimeError: this model has no blocks") == 1


def test_advice_asks_first_whether_the_most_generous_option_fits() -> None:
    card = gpu_catalogue.catalogue()["t4"]
    trial = make_trial("model=llama-160m", "method=simulate")
    asked: list[int] = []

    def none_fits(trials: list[Trial]) -> list[Simulation]:
        asked.extend(trial.world_size for trial in trials)
        return [Simulation({"peak_allocated_bytes": 2**50}) for _ in trials]

    wider = [(n, planning._sharded(trial, n)) for n in (2, 4, 8)]
    assert planning._first_that_fits(wider, card, 0.05, none_fits) is None
    assert asked == [8]


def test_what_cannot_exist_says_why(planned: Callable[..., Planned]) -> None:
    words = ("gpu=t4", "model=gpt2", "seq_len=4096", "precision=fp32", "lora=off", "checkpointing=off")
    done = planned(*words)
    assert done.returncode == 1
    assert "gpt2 has 1024 learned positions" in done.stdout


def test_the_largest_micro_batch_fits_and_the_next_does_not() -> None:
    card = gpu_catalogue.catalogue()["t4"]
    trial = make_trial("method=simulate", *SMALL, "precision=fp16_pure", "seq_len=1024")
    (answer,), _ = planning.answers({("x",): trial}, card, 0.05, predict, DataSheet(card))
    assert answer.fits
    assert answer.largest > 1
    fitting, next_one = predict([with_micro_batch(trial, answer.largest + extra) for extra in (0, 1)])
    assert fitting.peak_bytes <= answer.room < next_one.peak_bytes


def test_combinations_leave_alone_what_was_chosen() -> None:
    card = gpu_catalogue.catalogue()["a100-80gb"]
    chosen = combinations.combinations(["precision", "checkpointing"], 1, card)
    words = {word for combined in chosen for word in combined}
    assert words == {"lora=off", "lora=on"}
    shards = [
        combined for combined in combinations.combinations([], 8, card) if "fsdp=full_shard" in combined
    ]
    assert shards and all("fsdp.world_size=8" in combined for combined in shards)


def test_the_seed_s_first_claim_float32_training_does_not_fit_24_gb() -> None:
    trial = make_trial("model=llama-7b", "method=simulate", "micro_batch_size=1", "checkpointing=on")
    (simulation,) = predict([trial])
    assert simulation.peak_bytes > 4 * gpu_catalogue.catalogue()["rtx-3090"].memory_bytes


def test_the_door_says_how_many_sequences_a_card_infers_at_once(planned: Callable[..., Planned]) -> None:
    words = ("workload=decode", "workload.decode_tokens=8", *SMALL, "gpu=t4", "seq_len=512")
    done = planned(*words, "precision=fp16_pure,int8", "kv_cache=static")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "at 519 tokens" in done.stdout
    assert "precision=int8" in done.stdout and "precision=fp16_pure" in done.stdout
    assert "offload=params and disk are left out" in done.stdout


@pytest.mark.slow
def test_where_no_precision_fits_a_card_that_would_is_named(planned: Callable[..., Planned]) -> None:
    words = ("workload=prefill", "model=llama-7b", "gpu=t4", "precision=fp32", "kv_cache=dynamic")
    done = planned(*words)
    assert done.returncode == 1, done.stdout + done.stderr
    # 4 bytes of 6.7 billion weights are 25.1 GiB: more than a 24 GB card, less than one of 32
    assert "With gpu=rtx-5090 it fits." in done.stdout or "With gpu=v100-32gb it fits." in done.stdout
