"""conf/ and the command line: every level composes, every mistake is found before anything starts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from bench.analysis.grading import accuracy_grid
from bench.config import compose, names
from bench.config.command_line import check, without_effect
from bench.config.compose import CONF, CommandError, trial_from
from bench.trial.platform import CPU, CUDA
from bench.trial.skip_rules import skip_reason
from tests.conftest import make_trial

LEVELS = sorted(path for path in CONF.glob("*/*.yaml") if path.parent.name not in ("gpu", "experiment"))
EXPERIMENTS = sorted(path.stem for path in CONF.glob("experiment/*.yaml"))


@pytest.mark.parametrize("level", LEVELS, ids=lambda path: f"{path.parent.name}={path.stem}")
def test_every_level_composes_into_a_trial_that_carries_its_name(level: Path) -> None:
    trial = make_trial(f"{level.parent.name}={level.stem}")
    assert getattr(trial, level.parent.name).name == level.stem


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_is_a_trial_of_any_size(name: str) -> None:
    """The words of the command line come after those of the experiment."""
    trial = make_trial(f"+experiment={name}", "model=llama-tiny", "lora.targets=q_proj", "seq_len=16")
    assert (trial.model.name, trial.loop.name, trial.lora.targets) == ("llama-tiny", "trainer", "q_proj")
    assert (trial.optimizer.name, trial.max_grad_norm) == ("adamw_fused", 1.0), "the Trainer's defaults"
    assert skip_reason(trial, CUDA, 1) is None


def test_every_level_says_what_it_is() -> None:
    assert [level for level in LEVELS if not re.match(r"# \w.*\w", level.read_text())] == []


# Words that Hydra reads in ways of its own, and words that it refuses, alone and among right ones.
WORDS = [
    (),
    ("workload=decode", "precision=int8"),  # its dtype follows from the workload
    ("precision=nf4", "workload.name=decode"),
    ("lora.rank=8", "lora=on"),
    ("seed=${micro_batch_size}", "micro_batch_size=3"),
    ("seed=1", "seed=2"),
    ("threads=null", "model.pretrained='a b'", 'lora.targets="q_proj+v_proj"'),
    ("timing={min_steps: 3}", "optimizer.lr=1e-3", "lora='on'"),
    ("+seed=3",),
    ("++seed=3", "lora=on"),
    ("+strange=3",),
    ("~timing.min_steps",),
    ("lora.rank=[1,2]",),
    ("lora=on", "lora=off"),
    ("lora=true",),
    ("lora=",),
    ("lora=../optimizer/sgd",),
    ("lora@model=on",),
    ("precision=fp61", "seed=1"),
    ("seed=1", "rank=3"),
    ("lora.rnak=3", "lora=on"),
    ("seed=1,2", "lora=on"),
    ("lora=on,off",),
    ("seed=[1",),
    ("gpu=t4",),
    ("hydra/launcher=joblib",),
    ("hydra.mode=MULTIRUN",),
    ("optimizer.lr=${nothing}",),
    ("model={layers: 3}",),
]
CHOSEN = [(f"{level.parent.name}={level.stem}", f"{level.parent.name}.name=other") for level in LEVELS]
GRADED = [*accuracy_grid.grid()[::24], *accuracy_grid.sample(2, seed=3)]


def test_composing_once_gives_what_hydra_gives_for_each_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def answers(lines: list[tuple[str, ...]]) -> list[str]:
        found = []
        for line in lines:
            try:
                found.append(OmegaConf.to_yaml(compose.composed(list(line)), resolve=False))
            except Exception as error:  # not of one kind: what Hydra stumbles over
                found.append(f"refused: {type(error).__name__} {error}")
        return found

    with initialize_config_dir(str(CONF), version_base="1.3"):
        lines = [*WORDS, *CHOSEN[::24], *GRADED]
        quick = answers(lines)
        assert compose._from_levels(["lora=on", "seed=1"]) is not None
        monkeypatch.setattr(compose, "_from_levels", lambda _overrides: None)
        for line, one, other in zip(lines, quick, answers(lines), strict=True):
            assert one == other, line
    assert 9 < sum(answer.startswith("refused") for answer in quick) < len(WORDS)


def test_a_config_composed_once_is_the_trial_of_hydras() -> None:
    lines = [list(line) for line in (GRADED[0], GRADED[-1], *WORDS[1:6])]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        trials = [compose.trial_of(hydra_compose("config", overrides=line)) for line in lines]
    assert list(map(trial_from, lines)) == trials


def test_levels_of_an_axis_have_the_same_keys() -> None:
    for axis in {path.parent for path in LEVELS}:
        keys = {frozenset(yaml.safe_load(path.read_text())) for path in axis.glob("*.yaml")}
        kinds = 2 if axis.name == "model" else 1  # by numbers, or by a transformers configuration
        assert len(keys) == kinds, f"{axis.name}: a key that one level lacks cannot be swept across levels"


def checked(*arguments: str, multirun: bool = True) -> int | None:
    return check(list(arguments), multirun=multirun, sweep_id="s").size


@pytest.mark.parametrize(
    ("arguments", "size"),
    [
        ((), 1),
        (("precision=fp16,int8", "lora=on,off"), 4),
        (("lora.rank=range(1,5)", "lora=on"), 4),
        (("precision=glob(*pure)",), 2),
        (("precision=fp16,int8", "replicates=3"), 6),
    ],
)
def test_size_of_a_sweep(arguments: tuple[str, ...], size: int) -> None:
    assert checked(*arguments) == size


@pytest.mark.parametrize(
    ("arguments", "idle"),
    [
        (("lora.rank=8", "seed=1"), ["lora.rank=8 changes nothing without lora=on"]),
        (("lora=off", "lora.rank=4,8"), ["lora.rank=4,8 changes nothing without lora=on"]),
        (("lora=off,on", "lora.rank=8"), []),
        (
            ("gpu=rtx-4090",),
            ["gpu=rtx-4090 changes nothing when a trial is measured: device= names what it runs on"],
        ),
        (("gpu=rtx-4090", "method=measure,simulate"), []),
    ],
)
def test_words_that_change_no_trial_are_named(arguments: tuple[str, ...], idle: list[str]) -> None:
    command = check(list(arguments), multirun=True, sweep_id="s")
    assert without_effect(list(arguments), command.trials) == idle


def test_names_of_other_tools_are_answered_with_ours() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose.composed([])
    for theirs, ours in names.ELSEWHERE.items():
        levels = re.findall(r"[\w.]+=\w+", ours)
        for level in levels:
            assert trial_from([level, "lora=on"]), level
        assert levels or OmegaConf.select(config, ours) is not None, ours
        with pytest.raises(CommandError, match=re.escape(f"(here it is {ours})")):
            checked(theirs if "=" in theirs else f"{theirs}=4")


def test_targets_may_be_a_list_as_peft_takes_it() -> None:
    given = ("lora=on", "lora.targets=[q_proj,v_proj]")
    assert trial_from(list(given)) == trial_from(["lora=on", "lora.targets=q_proj+v_proj"])


def test_a_sweep_over_one_value_is_a_sweep() -> None:
    command = check(["precision=choice(fp32)"], multirun=True, sweep_id="s")
    assert command.size == 1
    assert "hydra.mode=MULTIRUN" in command.arguments


def test_replicates_are_interleaved() -> None:
    command = check(["precision=fp16,int8", "replicates=2"], multirun=True, sweep_id="s")
    assert command.arguments[0] == "replicate=0,1", "the first override varies slowest"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("presicion=fp16", "presicion: no such axis or key (did you mean precision?)"),
        ("precision=fp61", "precision=fp61: no such level (did you mean fp16?)"),
        ("precision=fp16,fp61", "precision=fp61: no such level"),
        ("micro_batch_size=abc", "micro_batch_size: value 'abc' of type 'str' could not be converted"),
        ("micro_batch_size=1,2,abc", "micro_batch_size: value 'abc'"),
        ("lora.rank=1.5", "lora.rank: value '1.5'"),
        ("lora.rank=0", "lora.rank=0: must be at least 1"),
        ("+precison=fp16", "precison: no such axis or key"),
        ("+lora.rnak=3", "lora.rnak"),
        ("seq_len=99999999999999999999", "seq_len=99999999999999999999: must be at most 2^62"),
        ("optimizer.lr=1e400", "optimizer.lr=inf: must be greater than 0, and finite"),
        ("model.hidden_size=130", "model.hidden_size=130: must be a multiple of model.heads=4"),
        ("timeout_seconds=1e400", "timeout_seconds=inf: must be greater than 0, and at most"),
        ("precision.name=int8", "precision.name: a level's name says what it is"),
        ("method=guess", "method=guess: choose one of"),
        ("lora=[on", "cannot read the command line"),
        ("replicates=0", "replicates=0: must be from 1"),
        ("replicates=1,2", "replicates cannot be swept"),
        ("timeout_seconds=0", "timeout_seconds=0: must be greater than 0"),
        ("results_dir=", "results_dir is empty"),
        ("budget_seconds=0", "budget_seconds=0: must be greater than 0"),
        ("budget_seconds=nan", "budget_seconds=nan: must be greater than 0"),
        ("budget_seconds=5,6", "budget_seconds cannot be swept"),
        ("order=best", "order=best: choose one of given, informative"),
        ("memory_limit_bytes=24XB", "memory_limit_bytes=24XB: must be bytes, as 24GB"),
        ("seed=interval(1,2)", "needs another Hydra sweeper"),
        ("precision=glob(x*)", "matches none of"),
    ],
)
def test_a_mistake_is_one_clear_message(argument: str, message: str) -> None:
    with pytest.raises(CommandError) as caught:
        checked(argument)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["/tmp/über", "/tmp/a b", "/tmp/(c), d'e\"f=[g]{h}", "~/x", "a\\b'"])
def test_any_path_is_a_results_dir(path: str) -> None:
    command = check([f"results_dir={path}"], multirun=False, sweep_id="s")
    assert str(command.results_dir) == str(Path(path).expanduser().absolute())
    again = check(command.arguments[:1], multirun=False, sweep_id="s")
    assert again.results_dir == command.results_dir, "as Hydra reads it"


def test_a_path_may_be_a_checkpoint_and_several_are_a_sweep(tmp_path: Path) -> None:
    paths = [tmp_path / "über (1)", tmp_path / "b c"]
    for path in paths:
        path.mkdir()
        (path / "config.json").write_text('{"model_type": "llama"}')
    for key in ("model.pretrained", "model"):
        assert checked(f"{key}={paths[0]},{paths[1]}") == 2
        assert trial_from([f"{key}='{paths[0]}'"]).model.pretrained == str(paths[0])


def test_bytes_take_units_and_are_the_same_trial() -> None:
    with_unit = trial_from(["memory_limit_bytes=24GB"])
    assert with_unit.memory_limit_bytes == 24 * 10**9
    assert with_unit.trial_id == trial_from(["memory_limit_bytes=24000000000"]).trial_id


def test_a_target_of_no_model_is_a_mistake_and_one_of_another_model_is_skipped() -> None:
    with pytest.raises(CommandError, match=r"lora.targets=q_prj: no such module \(did you mean q_proj\?\)"):
        checked("lora=on", "lora.targets=q_proj+q_prj")
    assert checked("model=gpt2,llama-tiny", "lora=on", "lora.targets=q_proj") == 2
    gpt2 = trial_from(["model=gpt2", "lora=on", "lora.targets=q_proj"])
    assert skip_reason(gpt2, CPU, 0) == "lora.targets: gpt2 has no module called q_proj"
    assert skip_reason(trial_from(["model=gpt2", "lora=off"]), CPU, 0) is None


def test_several_values_without_m_say_so() -> None:
    with pytest.raises(CommandError, match="several values need -m"):
        checked("precision=fp16,int8", multirun=False)


def test_combinations_of_valid_values_are_not_mistakes() -> None:
    assert checked("precision=nf4,fp32", "lora=on,off", "offload=params,off", "fsdp=off,no_shard") == 16


@pytest.mark.parametrize(
    "bad", ["seed=1,2,-1", "lora.rank=4,8,0", "lora.rank=4,1.5", "precision.param_dtype=float32,7"]
)
def test_a_mistake_among_numbers_is_found(bad: str) -> None:
    with pytest.raises(CommandError, match=bad.partition("=")[0]):
        checked(bad)


def test_numbers_beside_levels() -> None:
    assert checked("precision=int8,nf4", "seed=range(0,30)", "optimizer.lr=0.1,0.01") == 120
