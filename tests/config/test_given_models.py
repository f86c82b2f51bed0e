"""Given models: what `model=PATH` and `model=HUB_ID` mean, and what is said where they mean nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.config import given_models
from bench.config.command_line import check
from bench.config.compose import CommandError, trial_from
from bench.trial.spec import from_definition

TINY = {
    "model_type": "qwen3",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 512,
}


def folder(parent: Path, name: str, config: object) -> Path:
    path = parent / name
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_a_folder_its_file_and_a_copy_elsewhere_are_one_trial(tmp_path: Path) -> None:
    stored = {"_name_or_path": "somewhere", "torch_dtype": "bfloat16", "transformers_version": "4.51.0"}
    first = folder(tmp_path, "tiny qwen", TINY | stored)
    copy = folder(tmp_path, "copy", dict(reversed(TINY.items())))
    trials = [trial_from([f"model='{path}'"]) for path in (first, first / "config.json", copy)]
    assert [trial.model.config for trial in trials] == [TINY] * 3
    assert [trial.model.label for trial in trials] == ["tiny qwen", "tiny qwen", "copy"]
    assert len({trial.trial_id for trial in trials}) == 1


def test_another_configuration_or_its_weights_are_another_trial(tmp_path: Path) -> None:
    first = folder(tmp_path, "a", TINY)
    deeper = folder(tmp_path, "b", TINY | {"num_hidden_layers": 3})
    words = (f"model={first}", f"model={deeper}", f"model.pretrained={first}", f"model.pretrained={deeper}")
    assert len({trial_from([word]).trial_id for word in words}) == len(words)
    read = trial_from([f"model={first}", "model.weights=pretrained"])
    assert read.trial_id == trial_from([f"model.pretrained={first}"]).trial_id
    assert read.model.reads_weights
    assert not trial_from([f"model={first}"]).model.reads_weights
    overridden = trial_from([f"model={first}", "model.config.num_hidden_layers=3"])
    assert overridden.trial_id == trial_from([f"model={deeper}"]).trial_id


def test_a_row_tells_the_trial_again(tmp_path: Path) -> None:
    for word in (f"model={folder(tmp_path, 'tiny', TINY)}", "model=qwen3-8b", "model=llama-tiny"):
        trial = trial_from([word])
        again = from_definition(json.loads(json.dumps(trial.definition())))
        assert again == trial
        assert again.trial_id == trial.trial_id


def test_a_hub_id_of_the_catalogue_is_its_level() -> None:
    by_hub_id, by_level = trial_from(["model=Qwen/Qwen3-8B"]), trial_from(["model=qwen3-8b"])
    assert by_hub_id == by_level
    assert by_level.model.label == "qwen3-8b"


def test_lists_mix_levels_folders_and_hub_ids(tmp_path: Path) -> None:
    tiny = folder(tmp_path, "tiny", TINY)
    command = check([f"model=llama-tiny,{tiny},Qwen/Qwen3-8B"], multirun=True, sweep_id="s")
    assert command.size == 3


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"hidden_size": 8}, "has no model_type"),
        (TINY | {"model_type": "qwne3"}, "knows no model_type=qwne3 (did it mean qwen3?)"),
        (TINY | {"model_type": "vit"}, "no language model of model_type=vit"),
        ("text", "has no model_type"),
    ],
)
def test_a_configuration_of_no_language_model_is_refused(tmp_path: Path, config: object, said: str) -> None:
    path = folder(tmp_path, "given", config)
    with pytest.raises(CommandError) as refused:
        check([f"model={path}"], multirun=False, sweep_id="s")
    assert said in str(refused.value)
    assert str(path) in str(refused.value)


def test_what_cannot_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    (tmp_path / "empty").mkdir()
    (tmp_path / "torn.json").write_text('{"model_type": ')
    for word, said in (
        (f"model={tmp_path / 'empty'}", "this folder has no config.json"),
        (f"model={tmp_path / 'torn.json'}", "torn.json cannot be read"),
        (f"model={tmp_path / 'nothing'}", "there is no such folder or file, and it is no hub id"),
        ("model.weights=pretrained", "llama-tiny has no weights to read"),
        ("model=nobody-at-all/no-such-model", "the hub did not give its config.json"),
        ("model=qwen3-8", "model=qwen3-8: no such level (did you mean qwen3-8b?)"),
    ):
        with pytest.raises(CommandError) as refused:
            check([word], multirun=False, sweep_id="s")
        assert said in str(refused.value), word


def test_a_configuration_is_changed_by_its_own_keys() -> None:
    assert (
        trial_from(["model=qwen3-8b", "+model.config.sliding_window=64"]).model.config["sliding_window"]
        == 64
    )
    with pytest.raises(CommandError) as refused:
        trial_from(["model=qwen3-8b", "model.layers=2"])
    assert "model.config.KEY=VALUE" in str(refused.value)


def test_the_installed_transformers_says_what_it_trains() -> None:
    known, trained = given_models._known_types()
    assert {"llama", "qwen3_moe", "vit", "t5", "modernbert"} <= known
    assert {"llama", "qwen3_moe", "t5", "modernbert"} <= trained
    assert "vit" not in trained
