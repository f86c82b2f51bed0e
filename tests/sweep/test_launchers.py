"""What the door tells Hydra's launchers, without any of their schedulers."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from bench.config.compose import CommandError
from bench.config.key_values import quoted
from bench.sweep.launchers import registry
from tests.conftest import door

WORDS = {"submitit_slurm": "slurm", "submitit_local": "slurm", "slurm": "slurm", "ray": "ray"}


@pytest.mark.parametrize(("launcher", "extra"), WORDS.items())
def test_a_launcher_that_is_not_installed_says_how_to_install_it(
    launcher: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_importable", lambda _module: False)
    with pytest.raises(CommandError) as raised:
        registry.require(["precision=fp16", f"hydra/launcher={launcher}"])
    assert str(raised.value) == f"hydra/launcher={launcher}: needs pip install -e '.[{extra}]'"
    registry.require(["precision=fp16", "hydra/launcher=basic"])


@pytest.mark.skipif(registry._importable("submitit"), reason="the extra slurm is installed")
def test_the_command_says_it_in_one_line(tmp_path: Path) -> None:
    done = door("-m", "precision=fp16,int8", "hydra/launcher=submitit_slurm", f"results_dir={tmp_path}/r")
    assert done.returncode == 2
    assert done.stderr == "bench/run.py: hydra/launcher=submitit_slurm: needs pip install -e '.[slurm]'\n"
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("path", ["/a b", "/it's", "/a,b", "/a\\'b", "/x=y", "/{a: b}", "/ends\\"])
def test_any_path_goes_through_hydras_grammar_whole(path: str) -> None:
    (read,) = OverridesParser.create().parse_overrides([f"results_dir={quoted(path)}"])
    assert not read.is_sweep_override()
    assert str(read.value()) == path
