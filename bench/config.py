"""Hydra's config to a typed Trial, and the command line checked whole before anything starts.

This is the last place that knows Hydra or OmegaConf. A sweep is checked value by value: each value of
each swept axis is composed once beside the others' first values. Whatever single value is misspelt or
ill-typed is found that way; a combination of valid values is never an error.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bench.machine import ROOT
from bench.trial import Trial

CONF = ROOT / "conf"
_MOST_REPLICATES = 1000
_LONGEST_SECONDS = 21 * 24 * 3600  # beyond it the system call that waits takes no number


class CommandError(ValueError):
    """The command line cannot be carried out; the message says what to change."""


@dataclass(frozen=True)
class Job:
    """What the door itself needs to know; everything else is the Trial."""

    results_dir: Path
    timeout_seconds: float
    replicates: int
    replicate: int
    sweep_id: str | None
    sweep_size: int | None


@dataclass(frozen=True)
class Command:
    """A checked command line: Hydra's arguments, how many trials they make, where rows will go."""

    arguments: list[str]
    sweep_id: str
    size: int | None
    results_dir: Path


def register_resolvers() -> None:
    """`${repo:}` in conf/ is the repository, whatever the current directory."""
    OmegaConf.register_new_resolver("repo", lambda: str(ROOT), replace=True)
    OmegaConf.register_new_resolver(
        "unquantised", lambda workload: "float32" if workload == "train" else "bfloat16", replace=True
    )


def trial_of(config: DictConfig) -> Trial:
    """The config as a Trial.

    Raises:
        CommandError: a value has the wrong type or is out of range.
    """
    schema = OmegaConf.structured(Trial)
    for node in (schema, *(schema._get_node(name) for name in schema)):
        OmegaConf.set_readonly(node, False)  # frozen dataclasses make read-only nodes
    names = {field.name for field in fields(Trial)}
    strange = [str(n) for n in config if n not in names | {field.name for field in fields(Job)} | {"hydra"}]
    if strange:
        raise CommandError(
            f"{strange[0]}: no such axis or key{_nearest(strange[0], sorted(names))}; "
            f"see --help for all of them"
        )
    chosen = {name: config[name] for name in config if name in names}
    try:
        return OmegaConf.to_object(OmegaConf.merge(schema, chosen))  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise CommandError(_type_message(error)) from None
    except ValueError as error:
        raise CommandError(str(error)) from None


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
        return trial_of(_compose(list(overrides)))


def choices(arguments: list[str]) -> list[list[str]]:
    """Each override of the command line as its values, one word each: key=a,b is [key=a, key=b].

    Raises:
        CommandError: the line cannot be read, or a name in it is unknown.
    """
    register_resolvers()
    overrides = _parse(arguments)
    values = [_values(override) for override in overrides]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        _check_names(overrides, values)
    return values


def job_of(config: DictConfig) -> Job:
    """The config's values that do not define a trial.

    Raises:
        CommandError: a value has the wrong type or is out of range.
    """
    names = {field.name for field in fields(Job)}
    try:
        job: Job = OmegaConf.to_object(  # type: ignore[assignment]
            OmegaConf.merge(_job_schema(), {name: config[name] for name in config if name in names})
        )
    except OmegaConfBaseException as error:
        raise CommandError(_type_message(error)) from None
    if not 1 <= job.replicates <= _MOST_REPLICATES:
        raise CommandError(f"replicates={job.replicates}: must be from 1 to {_MOST_REPLICATES}")
    if not config["results_dir"]:
        raise CommandError("results_dir is empty: name a folder, or leave it out for results/")
    if "://" in str(config["results_dir"]):
        raise CommandError(f"results_dir={config['results_dir']}: a command writes to a disk, not to a URL")
    if not 0 < job.timeout_seconds <= _LONGEST_SECONDS:
        raise CommandError(
            f"timeout_seconds={job.timeout_seconds:g}: must be greater than 0, and at most "
            f"{_LONGEST_SECONDS} (three weeks)"
        )
    return Job(**{**vars(job), "results_dir": job.results_dir.expanduser().absolute()})


def _job_schema() -> DictConfig:
    schema: DictConfig = OmegaConf.structured(Job)
    OmegaConf.set_readonly(schema, False)
    return schema


def _type_message(error: OmegaConfBaseException) -> str:
    key = error.full_key or error.key
    text = str(error).splitlines()[0]
    return f"{key}: {text[:1].lower()}{text[1:]}"


def check(arguments: list[str], *, multirun: bool, sweep_id: str) -> Command:
    """Reads the overrides as Hydra will, and finds every mistake before any trial starts.

    Args:
        arguments: overrides as given (key=value, key=a,b).
        multirun: whether -m was given.
        sweep_id: the id that rows of this command will carry.

    Raises:
        CommandError: with one message for the first mistake found.
    """
    overrides = _parse(arguments)
    foreign = any(override.key_or_group == "hydra/sweeper" for override in overrides)
    if foreign:  # what only that sweeper understands is checked by its jobs as they come
        overrides = [o for o in overrides if not o.is_sweep_override() or o.is_discrete_sweep()]
    choices = [_values(override) for override in overrides]
    if not multirun:
        for override in overrides:
            if override.is_sweep_override():
                raise CommandError(f"{override.input_line}: several values need -m (a sweep)")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        _check_names(overrides, choices)
        first = [values[0] for values in choices]
        config = _compose(first)
        job = job_of(config)
        trial_of(config)
        for index, values in enumerate(choices):
            for value in values[1:]:
                varied = _compose([*first[:index], value, *first[index + 1 :]])
                trial_of(varied)
                job_of(varied)
    return _command(arguments, overrides, choices, job, sweep_id, foreign)


def _command(
    arguments: list[str],
    overrides: list[Override],
    choices: list[list[str]],
    job: Job,
    sweep_id: str,
    foreign: bool,
) -> Command:
    for override, values in zip(overrides, choices, strict=True):
        if override.key_or_group in ("replicates", "results_dir") and len(values) > 1:
            raise CommandError(f"{override.key_or_group} cannot be swept")
    size = None if foreign else math.prod((job.replicates, *map(len, choices)))
    added = [f"sweep_id={sweep_id}", f"sweep_size={'null' if size is None else size}"]
    given = [a for a in arguments if not a.startswith(("sweep_id=", "sweep_size="))]
    if job.replicates > 1 and foreign:
        raise CommandError(
            f"replicates={job.replicates}: needs Hydra's own sweeper, without hydra/sweeper="
        )
    if job.replicates > 1:
        # The first override varies slowest: every trial once, then every trial again.
        numbers = ",".join(str(number) for number in range(job.replicates))
        given = [f"replicate={numbers}", *given]
    if size != 1 or any(override.is_sweep_override() for override in overrides):
        added.append("hydra.mode=MULTIRUN")
    return Command([*given, *added], sweep_id, size, job.results_dir)


def _parse(arguments: list[str]) -> list[Override]:
    try:
        return list(OverridesParser.create().parse_overrides(arguments))
    except HydraException as error:
        first = str(error).splitlines()[0]
        raise CommandError(f"cannot read the command line: {first}") from None


def _values(override: Override) -> list[str]:
    """The override once for each value it sweeps over, each as its own command line word."""
    word = str(override.input_line)
    if not override.is_sweep_override():
        return [word]
    if not override.is_discrete_sweep():
        raise CommandError(f"{word}: this kind of sweep needs another Hydra sweeper")
    swept = override.value()
    if not isinstance(swept, Glob):
        values = list(override.sweep_string_iterator())
    else:
        levels = _levels(override.key_or_group)
        values = swept.filter(levels)
        if not values:
            raise CommandError(f"{word}: matches none of {', '.join(levels)}")
    return [f"{word.partition('=')[0]}={value}" for value in values]


def _levels(axis: str) -> list[str]:
    return sorted(path.stem for path in (CONF / axis).glob("*.yaml"))


def _axes() -> list[str]:
    groups = {path.name for path in CONF.iterdir() if path.is_dir()}
    return sorted(groups & {field.name for field in fields(Trial)})


def _check_names(overrides: list[Override], choices: list[list[str]]) -> None:
    """Axes, levels and keys, with a suggestion where one is nearly right."""
    known = sorted(_keys(OmegaConf.to_container(_compose([]), resolve=False)))
    for override, values in zip(overrides, choices, strict=True):
        key = override.key_or_group
        if override.type != OverrideType.CHANGE or key.startswith("hydra"):
            continue  # +key, ++key and ~key are Hydra's own business, and so is hydra itself
        if key.endswith(".name") and key.removesuffix(".name") in _axes():
            raise CommandError(f"{key}: a level's name says what it is; choose with {key[:-5]}=LEVEL")
        if key in _axes():
            for value in values:
                level = value.partition("=")[2].strip("'\"")
                if level not in _levels(key):
                    raise CommandError(
                        f"{key}={level}: no such level{_nearest(level, _levels(key))}; "
                        f"the levels are {', '.join(_levels(key))}"
                    )
        elif key not in known:
            raise CommandError(
                f"{key}: no such axis or key{_nearest(key, [*_axes(), *known])}; see --help for all of them"
            )


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        yield prefix + str(key)
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{key}.")


def _nearest(word: str, words: list[str]) -> str:
    close = difflib.get_close_matches(word, words, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _compose(overrides: list[str]) -> DictConfig:
    try:
        return compose("config", overrides=overrides)
    except (HydraException, OmegaConfBaseException) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise CommandError(" ".join(lines[:2])) from None
