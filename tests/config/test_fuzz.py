# ruff: noqa: SIM905
"""Command lines that nobody would write: each is carried out or refused in one line, never a traceback.

`FUZZ=10000 pytest tests/config/test_fuzz.py` tries as many; fewer suffice every day.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.config.command_line import check
from bench.config.compose import CommandError, job_of, trial_of
from bench.config.key_values import KeyValueError, options_as_key_values, read_key_values
from bench.trial.axes import Model
from tests.conftest import make_trial

EXAMPLES = int(os.environ.get("FUZZ", "60"))
many = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=EXAMPLES < 1000,
)

AXES = "model precision lora checkpointing fsdp offload optimizer workload kv_cache loss loop".split()
KEYS = """
    micro_batch_size seq_len seed threads device method formula whole replicates timeout_seconds results_dir
    memory_limit_bytes resume dry_run jobs busy replicate lora.rank lora.targets lora.dropout
    fsdp.world_size optimizer.lr optimizer.eps model.hidden_size model.heads model.pretrained model.family
    timing precision.param_dtype timing.budget_seconds timing.max_steps workload.decode_tokens hydra.job.num
    hydra hydra/launcher hydra.launcher.n_jobs hydra.sweep.dir hydra.callbacks.x._target_
""".split()
PLAIN = """
    null true nan inf -inf -0 1e999 -1 2 0x10 ~ ??? ${oc.env:HOME} ${x} ${ } [ [1,2] {a:1} a,b = a=b
    choice(1,2) range(1,5) range(5) interval(0,1) glob(*) sort(1,2) shuffle(1) tag(x,1) int(x) ../../etc
    {_target_:os.system} ' " \\
""".split()
ODD = (*PLAIN, "", " ", "9" * 40, "a" * 5000, "\x00", "\n", "\u202e", "\U0001f999", "\ud800")
values = st.one_of(
    st.sampled_from(ODD),
    st.text(max_size=12),
    st.integers().map(str),
    st.floats().map(str),
    st.lists(st.sampled_from(ODD), min_size=2, max_size=3).map(",".join),
    st.recursive(st.sampled_from(ODD), lambda inner: st.lists(inner, max_size=3).map(str), max_leaves=6),
)
keys = st.one_of(st.sampled_from([*AXES, *KEYS]), st.text(max_size=8))
words = st.one_of(
    st.tuples(st.sampled_from(("", "+", "++", "~")), keys, st.just("="), values).map("".join),
    st.text(max_size=20),
)


@many
@given(st.lists(words, max_size=3), st.booleans())
def test_command_lines(line: list[str], multirun: bool) -> None:
    try:
        check(line, multirun=multirun, sweep_id="s")
    except CommandError as error:
        assert str(error)
        assert "Traceback" not in str(error)


@many
@given(st.lists(st.one_of(words, st.text(max_size=12).map("--".__add__)), max_size=4))
def test_words_of_the_other_doors(line: list[str]) -> None:
    from pathlib import Path

    try:
        read_key_values(
            options_as_key_values(line),
            {"results_dir": Path(), "margin": 0.05, "gpus": 1, "on": False, "x": ""},
        )
    except KeyValueError as error:
        assert str(error)


@pytest.mark.parametrize(
    "word",
    [
        "hydra.launcher._target_=os.system",
        "+hydra.callbacks.x._target_=os.system",
        "+hydra.callbacks.x={_target_:os.system}",
        "hydra.searchpath=[/tmp]",
        "hydra/job_logging=custom",
        "+model._target_=os.system",
        "hydra.job_logging.formatters={a:{'()':os.system}}",
    ],
)
def test_a_command_line_from_others_runs_no_code_of_theirs(word: str) -> None:
    with pytest.raises(CommandError):
        check([word], multirun=True, sweep_id="s")


def test_a_level_or_label_leads_nowhere_else() -> None:
    hostile = "../../../etc/passwd"
    for model in (Model(hostile, config={"model_type": "llama"}), Model("llama", pretrained=hostile)):
        assert model.label == "passwd"
    with pytest.raises(CommandError):
        make_trial(f"model.pretrained={hostile}")


def test_configs_from_others_are_data() -> None:
    from omegaconf import OmegaConf

    hostile: dict[str, Any] = {"model": {"_target_": "os.system", "command": "touch /tmp/hostile"}}
    for read in (trial_of, job_of):
        with pytest.raises((CommandError, KeyError)):
            read(OmegaConf.create(hostile))
