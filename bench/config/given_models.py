"""Models that are given: a folder or a config.json, or a hub id, as levels of the axis `model`.

In: a word of the command line, as `model=Qwen/Qwen3-8B`. Out: a level in Hydra's store, whose `config` is
what the config.json holds, or a `GivenModelError` that says what is wrong. Nothing looks at weights.
Must not import transformers, which takes seconds: what it can train is read from its lists of names.
"""

from __future__ import annotations

import ast
import difflib
import json
import re
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from bench.paths import SHIPPED

LEVELS = SHIPPED / "conf" / "model"
_CONFIG = "config.json"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_PUBLISHED = re.compile(r"^pretrained: ([\w.-]+/[\w.-]+)$", re.MULTILINE)  # in a level of the catalogue
_HUB_SECONDS = 10  # to wait for an answer
# What a config.json holds that says nothing about the architecture, or only how its weights were stored.
_NOT_ARCHITECTURE = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "quantization_config")
_LANGUAGE_MODELS = (
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
)


class GivenModelError(ValueError):
    """The configuration cannot be read, or is of no language model; the message says what to do."""


def is_given(level: str) -> bool:
    """Whether what follows `model=` is no level of conf/model/, but a path or a hub id."""
    return not (LEVELS / f"{level}.yaml").is_file() and ("/" in level or Path(level).exists())


def register(levels: Iterable[str]) -> None:
    """Makes each given model a level that Hydra finds by the word as it was given.

    Raises:
        GivenModelError: a configuration cannot be read, or is of no language model.
    """
    for level in filter(is_given, levels):
        group, _, name = f"model/{level}".replace("//", "/").rpartition("/")
        ConfigStore.instance().store(name, _level(level), group=group, package="model")


def completed(model: dict[str, Any]) -> dict[str, Any]:
    """The keys of the axis `model`, with the configuration that `pretrained` names, if it names one.

    Raises:
        GivenModelError: that configuration cannot be read, or nothing says where to read weights from.
    """
    source, weights = model.get("pretrained"), model.get("weights")
    if weights == "pretrained" and not source:
        raise GivenModelError(
            f"model.weights=pretrained: {model.get('name')} has no weights to read; name a folder or hub "
            "id that has: model=DIR_OR_HUB_ID"
        )
    if not source or (model.get("config") and model.get("name") == _named(str(source))):
        return model
    return {**_level(str(source)), "weights": "pretrained" if weights is None else weights}


def _level(source: str) -> dict[str, Any]:
    """The level of a given model: its name, its configuration, and where that came from."""
    if _is_hub_id(source) and source in _by_hub_id():
        level: Any = OmegaConf.to_container(OmegaConf.load(LEVELS / f"{_by_hub_id()[source]}.yaml"))
        return dict(level)
    path = _config_file(source)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise GivenModelError(f"model={source}: {path.name} cannot be read: {error}") from None
    _check(source, config)
    architecture = {key: value for key, value in config.items() if key not in _NOT_ARCHITECTURE}
    return {"name": _named(source), "config": architecture, "pretrained": source, "weights": "random"}


def _named(source: str) -> str:
    """A name that a person recognises: the catalogue's, the folder's, or the hub id's without its owner."""
    if _is_hub_id(source):
        return _by_hub_id().get(source) or source.rpartition("/")[2]
    path = Path(source).expanduser().absolute()
    return path.parent.name if path.name == _CONFIG else path.stem


def _is_hub_id(source: str) -> bool:
    return _HUB_ID.fullmatch(source) is not None and not Path(source).exists()


def _config_file(source: str) -> Path:
    """The config.json that a folder, a file or a hub id means.

    Raises:
        GivenModelError: there is none.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        if not (path / _CONFIG).is_file():
            raise GivenModelError(f"model={source}: this folder has no {_CONFIG}")
        return path / _CONFIG
    if not _is_hub_id(source):
        raise GivenModelError(f"model={source}: there is no such folder or file, and it is no hub id")
    return _from_hub(source)


def _from_hub(source: str) -> Path:
    """The hub's config.json, of its cache on this machine if it is there.

    Raises:
        GivenModelError: the hub cannot be reached, or does not give the file.
    """
    import huggingface_hub as hub  # imported where it is needed: it takes a third of a second
    from huggingface_hub.utils._http import get_session

    cached = hub.try_to_load_from_cache(source, _CONFIG)
    if isinstance(cached, str):
        return Path(cached)
    url = hub.hf_hub_url(source, _CONFIG)
    try:  # asked once, since a download asks for half a minute whether there is a network
        get_session().head(url, timeout=_HUB_SECONDS)
        return Path(hub.hf_hub_download(source, _CONFIG))
    except Exception as error:  # each cause is an exception of another library
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise GivenModelError(
            f"model={source}: there is no such folder, and the hub did not give its {_CONFIG} "
            f"({reason[:120].rstrip('. ')}); without a network, give a folder that holds one"
        ) from None


def _check(source: str, config: Any) -> None:
    """Raises GivenModelError unless the installed transformers trains a language model of this type."""
    kind = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(kind, str):
        raise GivenModelError(f"model={source}: its {_CONFIG} has no model_type, so it is of no model")
    known, trained = _known_types()
    if known and kind not in known:
        close = difflib.get_close_matches(kind, known, n=1)
        hint = f" (did it mean {close[0]}?)" if close else ""
        raise GivenModelError(
            f"model={source}: the installed transformers knows no model_type={kind}{hint}"
        )
    if trained and kind not in trained:
        raise GivenModelError(
            f"model={source}: transformers has no language model of model_type={kind}: "
            "nothing that trains on tokens alone"
        )


@cache
def _known_types() -> tuple[frozenset[str], frozenset[str]]:
    """The model types that the installed transformers knows, and those of its language models.

    Empty where the lists are not found as literals: then a worker finds out what cannot be built.
    """
    package = find_spec("transformers")
    assert package is not None and package.submodule_search_locations
    folder = Path(package.submodule_search_locations[0], "models", "auto")
    names: dict[str, set[str]] = {}
    for file in ("auto_mappings.py", "configuration_auto.py", "modeling_auto.py"):
        try:
            tree = ast.parse((folder / file).read_text(encoding="utf-8"))
        except (OSError, SyntaxError):
            continue
        for node in tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                names.setdefault(node.targets[0].id, set()).update(_first_of_pairs(node.value))
            elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                function = node.value.func  # NAMES.update([...])
                if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
                    names.setdefault(function.value.id, set()).update(_first_of_pairs(node.value))
    trained = {kind for name in _LANGUAGE_MODELS for kind in names.get(name, ())}
    return frozenset(names.get("CONFIG_MAPPING_NAMES", ())) | frozenset(trained), frozenset(trained)


def _first_of_pairs(node: ast.AST) -> set[str]:
    """The first of each pair of names in a literal, as in OrderedDict([("llama", "LlamaConfig"), ...])."""
    return {
        child.elts[0].value
        for child in ast.walk(node)
        if isinstance(child, ast.Tuple)
        and len(child.elts) == 2
        and isinstance(child.elts[0], ast.Constant)
        and isinstance(child.elts[0].value, str)
    }


@cache
def _by_hub_id() -> dict[str, str]:
    """The catalogue's levels by the hub ids of what they describe: no network is needed for these."""
    found = (
        (path.stem, _PUBLISHED.search(path.read_text(encoding="utf-8"))) for path in LEVELS.glob("*.yaml")
    )
    return {match[1]: level for level, match in found if match}
