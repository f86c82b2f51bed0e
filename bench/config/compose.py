"""From Hydra's config to a frozen `Trial`, and the options of its job.

In: overrides, or a composed DictConfig. Out: `Trial` and `Job`, checked, or a `CommandError` that says what
to change. Outside of this room only `sweep/` and the door `run.py` know Hydra.
"""

from __future__ import annotations

import copy
import math
import re
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bench import paths
from bench.config import given_devices, given_models
from bench.config.job_options import Job
from bench.config.names import nearest
from bench.formatting import parse_bytes
from bench.paths import RESULTS, SHIPPED
from bench.trial.adaptable import MATRICES, unknown_targets
from bench.trial.spec import Trial

T = TypeVar("T")

CONF = SHIPPED / "conf"
_JOB_MINUTES = 10  # for a job to start, over a slow file system, and to end


class CommandError(ValueError):
    """The command line cannot be carried out; the message says what to change."""


# OmegaConf collapses s3://x to s3:/x where it converts text to a Path, so results_dir is merged as this and
# set from the text itself.
_NO_RESULTS_DIR = {"results_dir": "."}


def register_resolvers() -> None:
    """Registers what `${NAME:ARGUMENT}` means in conf/.

    `${results:}` is where results lie unless one says otherwise. `${beside:DIR}` is the folder of logs for
    results in DIR, which may be a URL. `${unquantised:WORKLOAD}` is the dtype of unquantised weights.
    `${job_minutes:SECONDS}` says for how many minutes a cluster must lend a node to a trial that may take
    SECONDS.
    """
    OmegaConf.register_new_resolver("results", lambda: str(RESULTS), replace=True)
    OmegaConf.register_new_resolver(
        "beside", lambda text: str(paths.local_dir(_folder(text))), replace=True
    )
    OmegaConf.register_new_resolver(
        "unquantised", lambda workload: "float32" if workload == "train" else "bfloat16", replace=True
    )
    OmegaConf.register_new_resolver(
        "job_minutes", lambda trial_seconds: math.ceil(trial_seconds / 60) + _JOB_MINUTES, replace=True
    )


def parse(config: DictConfig) -> tuple[Trial, Job]:
    """The whole config as what to execute, and where and how.

    Raises:
        CommandError: a value has the wrong type or is out of range.
    """
    return trial_of(config), job_of(config)


def trial_of(config: DictConfig) -> Trial:
    """The config as a Trial.

    Raises:
        CommandError: a value has the wrong type or is out of range.
    """
    names = {field.name for field in fields(Trial)}
    known = names | {field.name for field in fields(Job)} | {"hydra"}
    unknown = [str(name) for name in config if name not in known]
    if unknown:
        raise CommandError(
            f"{unknown[0]}: no such axis or key{nearest(unknown[0], sorted(names))}; "
            f"see --help for all of them"
        )
    chosen: dict[str, Any] = {str(name): config[name] for name in config if name in names}
    limit = chosen.get("memory_limit_bytes")
    if isinstance(limit, str):
        try:
            chosen["memory_limit_bytes"] = parse_bytes(limit)
        except ValueError as error:
            raise CommandError(f"memory_limit_bytes={error}") from None
    try:
        if OmegaConf.is_list(chosen["lora"].targets):  # [q_proj,v_proj], as peft takes them
            chosen["lora"] = OmegaConf.merge(chosen["lora"], {"targets": "+".join(chosen["lora"].targets)})
        chosen["gpu"] = given_devices.name_of(chosen.get("gpu"))
        model: Any = OmegaConf.to_container(chosen["model"], resolve=True)
        trial = _as_dataclass(Trial, chosen | {"model": given_models.completed(model)})
    except given_models.GivenModelError as error:
        raise CommandError(str(error)) from None
    for target in unknown_targets(trial):
        modules = MATRICES[trial.model.family]
        has = f"{trial.model.name} has {', '.join(modules)}"
        raise CommandError(f"lora.targets={target}: no such module{nearest(target, modules)}; {has}")
    return trial


def trial_from(overrides: list[str]) -> Trial:
    """The trial that `python bench/run.py OVERRIDES` would execute.

    Raises:
        CommandError: an override is not understood, or a value has the wrong type or is out of range.
    """
    return _trial_from(tuple(overrides))


@cache
def _trial_from(overrides: tuple[str, ...]) -> Trial:
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return trial_of(composed(list(overrides)))


def job_of(config: DictConfig) -> Job:
    """The config's values that do not define a trial.

    Raises:
        CommandError: a value has the wrong type or is out of range.
    """
    names = {field.name for field in fields(Job)}
    chosen = {name: config[name] for name in config if name in names}
    job = _as_dataclass(Job, chosen | _NO_RESULTS_DIR)
    if not config["results_dir"]:
        raise CommandError("results_dir is empty: name a folder, or leave it out for results/")
    return Job(**{**vars(job), "results_dir": _folder(str(config["results_dir"]))})


def _folder(text: str) -> Path:
    """results_dir as an absolute path, or as a place in a bucket.

    Raises:
        CommandError: it is a URL that nothing here can write to.
    """
    try:
        folder = paths.results_place(text)
    except (ImportError, ValueError) as error:
        raise CommandError(
            f"results_dir={text}: {error} (see README: pip install -e '.[remote]')"
        ) from None
    return folder if paths.is_remote(folder) else folder.expanduser().absolute()


def _as_dataclass(kind: type[T], values: dict[str, Any]) -> T:
    """`values` as one of our frozen dataclasses.

    Raises:
        CommandError: a value has the wrong type or is out of range.
    """
    schema: Any = OmegaConf.structured(kind)
    for node in (schema, *(schema._get_node(name) for name in schema)):
        OmegaConf.set_readonly(node, False)  # frozen dataclasses make read-only nodes
    try:
        return OmegaConf.to_object(OmegaConf.merge(schema, values))  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise CommandError(_type_message(error)) from None
    except ValueError as error:
        raise CommandError(str(error)) from None


def _type_message(error: OmegaConfBaseException) -> str:
    key = error.full_key or error.key
    text = str(error).splitlines()[0]
    return f"{key}: {text[:1].lower()}{text[1:]}"


def composed(overrides: list[str]) -> DictConfig:
    """conf/ composed with these overrides; to be called within initialize_config_dir.

    Raises:
        CommandError: the overrides cannot be composed.
    """
    try:
        for axis, given in (("model", given_models), ("gpu", given_devices)):
            given.register(level_of(word) for word in overrides if word.startswith(f"{axis}="))
        config = _from_levels(overrides)
        return compose("config", overrides=overrides) if config is None else config
    except given_models.GivenModelError as error:
        raise CommandError(str(error)) from None
    except (HydraException, OmegaConfBaseException) as error:
        if number := re.search(r"override 'model\.(\w+)'", str(error)):
            raise CommandError(
                f"model.{number[1]}: this model is given by its transformers configuration; say "
                "model.config.KEY=VALUE, or +model.config.KEY=VALUE for a key that it does not have yet"
            ) from None
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise CommandError(" ".join(lines[:2])) from None


def level_of(word: str) -> str:
    """The level in AXIS=LEVEL, without quotes."""
    return word.partition("=")[2].strip("'\"")


def _from_levels(overrides: list[str]) -> DictConfig | None:
    """conf/ with these overrides, set on a copy of the config that was composed once, as Hydra sets them
    (`ConfigLoaderImpl._apply_overrides_to_config`): it takes a tenth of the time.

    None where an override is anything but key=value, or is wrong: then Hydra composes, and says what is
    wrong.
    """
    try:
        changes = [_read_override(word) for word in overrides]
        if any(o.type != OverrideType.CHANGE or o.package or o.is_sweep_override() for o in changes):
            return None
        keys = [change.key_or_group for change in changes]
        axes = [key for key in keys if (CONF / key).is_dir()]
        config = copy.deepcopy(_without_overrides())
        if len(set(axes)) < len(axes) or not all(key in config for key in axes):
            return None
        for axis in axes:  # levels first, wherever they stand in the command line
            word = overrides[keys.index(axis)]
            OmegaConf.update(config, axis, _level(word), merge=False)
        for key, change in zip(keys, changes, strict=True):
            if key not in axes:
                OmegaConf.update(config, key, change.value(), merge=True)
    except Exception:
        return None
    return config


@cache
def _without_overrides() -> DictConfig:
    return compose("config")


@cache
def _level(word: str) -> Any:
    """The keys that the level of AXIS=LEVEL sets.

    Raises:
        ValueError: what follows the equals sign is no plain name of a level.
        OSError: there is no such level.
    """
    axis, _, level = word.partition("=")
    if not re.fullmatch(r"[a-z0-9][\w.-]*", level):
        raise ValueError(word)
    return OmegaConf.to_container(OmegaConf.load(CONF / axis / f"{level}.yaml"), resolve=False)


@cache
def _read_override(word: str) -> Override:
    return OverridesParser.create().parse_override(word)
