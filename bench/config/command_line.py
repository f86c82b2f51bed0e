"""The command line of `bench/run.py`: checked as a whole before anything starts, and as Hydra gets it.

In: the overrides as given. Out: a `Command`, or a `CommandError` for the first mistake. A sweep is checked
value by value: each value of each swept axis is composed once, beside the first values of the other axes.
That finds every single value that is misspelt or has the wrong type; a combination of valid values is never
an error.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, OverrideType
from hydra.errors import HydraException
from omegaconf import OmegaConf

from bench.config import given_devices, given_models
from bench.config.compose import (
    CONF,
    CommandError,
    composed,
    level_of,
    parse,
    register_resolvers,
)
from bench.config.job_options import NOT_SWEPT, Job
from bench.config.key_values import quoted
from bench.config.names import nearest
from bench.config.reproducing import LAUNCHER
from bench.trial.spec import Trial

_LAUNCHERS = (LAUNCHER, "hydra.launcher")
LOCAL_LAUNCHERS = ("basic", "joblib")  # their jobs run on this machine, under this terminal
_FILLED_IN = ("sweep_id=", "sweep_size=", "sweep_ends_at=")
_HYDRAS_OWN = (LAUNCHER, "hydra/sweeper", "hydra.launcher", "hydra.sweeper", "hydra.verbose", "hydra.mode")


@dataclass(frozen=True)
class Command:
    """A checked command line: Hydra's arguments, how many trials they make, where rows will go.

    `trials` holds a trial for each value of each axis, beside the first values of the other axes.
    """

    arguments: list[str]
    sweep_id: str
    size: int | None
    results_dir: Path
    dry_run: bool
    launcher: str
    order: str = "given"
    budget_seconds: float | None = None
    trials: tuple[Trial, ...] = ()


def choices(arguments: list[str]) -> list[list[str]]:
    """The values of each override, each as an override of its own: key=a,b is [key=a, key=b].

    Raises:
        CommandError: the line cannot be read, or a name in it is unknown.
    """
    register_resolvers()
    overrides = _parse(with_quoted_paths(arguments))
    values = [_values(override) for override in overrides]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        _check_names(overrides, values)
    return values


def check(arguments: list[str], *, multirun: bool, sweep_id: str) -> Command:
    """Reads the overrides as Hydra will, and finds every mistake before any trial starts.

    Args:
        arguments: overrides as given (key=value, key=a,b).
        multirun: whether -m was given.
        sweep_id: the id that rows of this command will carry.

    Raises:
        CommandError: with one message for the first mistake found.
    """
    try:
        return _checked(with_quoted_paths(arguments), multirun, sweep_id)
    except CommandError:
        raise
    except Exception as error:  # for some words Hydra and OmegaConf raise whatever failed inside them
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CommandError(f"cannot read the command line: {reason}") from None


def with_quoted_paths(arguments: list[str]) -> list[str]:
    """The arguments, with paths quoted: Hydra's grammar knows few of the characters that paths may have."""
    return [_with_quoted_path(word) for word in arguments]


def _with_quoted_path(word: str) -> str:
    key, equals, value = word.partition("=")
    if not equals or not value or value[0] in "'\"" or value == "null":
        return word
    if key == "results_dir":  # it cannot be swept, so a comma is a character like any other
        return f"{key}={quoted(value)}"
    if key == "model.pretrained" or (key in ("model", "gpu") and "/" in value):
        if re.match(r"\w+\(", value):  # a function of Hydra's grammar, as glob(*)
            return word
        return f"{key}={','.join(map(quoted, value.split(',')))}"
    return word


def _checked(arguments: list[str], multirun: bool, sweep_id: str) -> Command:
    overrides = _parse(arguments)
    other_sweeper = any(override.key_or_group == "hydra/sweeper" for override in overrides)
    if other_sweeper:  # what only that sweeper understands is checked by each job as it comes
        overrides = [o for o in overrides if not o.is_sweep_override() or o.is_discrete_sweep()]
    choices = [_values(override) for override in overrides]
    if not multirun:
        for override in overrides:
            if override.is_sweep_override():
                raise CommandError(f"{override.input_line}: several values need -m (a sweep)")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        _check_names(overrides, choices)
        first = [values[0] for values in choices]
        config = composed(first)
        trial, job = parse(config)
        trials = [trial]
        for index, values in enumerate(choices):
            for value in values[1:]:
                trials.append(parse(composed([*first[:index], value, *first[index + 1 :]]))[0])
    command = _command(arguments, overrides, choices, job, sweep_id, other_sweeper)
    return replace(command, trials=tuple(trials))


def _command(
    arguments: list[str],
    overrides: list[Override],
    choices: list[list[str]],
    job: Job,
    sweep_id: str,
    other_sweeper: bool,
) -> Command:
    """The command of a line whose values were all checked.

    Raises:
        CommandError: a key that has one value for the whole sweep has several, or two keys contradict.
    """
    for override, values in zip(overrides, choices, strict=True):
        if override.key_or_group in NOT_SWEPT and len(values) > 1:
            raise CommandError(f"{override.key_or_group} cannot be swept")
    size = None if other_sweeper else math.prod((job.replicates, *map(len, choices)))
    ends_at = "null" if job.budget_seconds is None else f"{time.time() + job.budget_seconds:.1f}"
    values_filled_in = (sweep_id, "null" if size is None else size, ends_at)
    added = [f"{key}{value}" for key, value in zip(_FILLED_IN, values_filled_in, strict=True)]
    given = [a for a in arguments if not a.startswith(_FILLED_IN)]
    if job.replicates > 1 and other_sweeper:
        raise CommandError(
            f"replicates={job.replicates}: needs Hydra's own sweeper, without hydra/sweeper="
        )
    if job.order != "given" and other_sweeper:
        raise CommandError(f"order={job.order}: needs Hydra's own sweeper, without hydra/sweeper=")
    if job.replicates > 1:
        # The first override varies slowest: every trial once, then every trial again.
        numbers = ",".join(str(number) for number in range(job.replicates))
        given = [f"replicate={numbers}", *given]
    if size != 1 or any(override.is_sweep_override() for override in overrides):
        added.append("hydra.mode=MULTIRUN")
    launcher, given, launcher_words = _with_launcher(given, job)
    if job.budget_seconds is not None and launcher not in LOCAL_LAUNCHERS:
        key = f"budget_seconds={job.budget_seconds:g}"
        raise CommandError(f"{key}: only for trials on this machine, without hydra/launcher={launcher}")
    words, folder = [*given, *added, *launcher_words], job.results_dir
    return Command(words, sweep_id, size, folder, job.dry_run, launcher, job.order, job.budget_seconds)


def _with_launcher(given: list[str], job: Job) -> tuple[str, list[str], list[str]]:
    """The launcher's name, the given words (for a dry run without those of a launcher), and words to add.

    Raises:
        CommandError: both jobs= and a launcher are given; a launcher has its own limit of jobs.
    """
    named = [word.partition("=")[2] for word in given if word.startswith(f"{LAUNCHER}=")]
    if job.dry_run:  # runs nothing, so its jobs go one after the other, in this process
        return "basic", [word for word in given if not word.lstrip("+").startswith(_LAUNCHERS)], []
    if job.jobs == 1:
        return (named or ["basic"])[-1], given, []
    if named:
        raise CommandError(f"jobs={job.jobs}: hydra/launcher={named[-1]} has its own limit of jobs")
    return "joblib", given, [f"{LAUNCHER}=joblib", f"hydra.launcher.n_jobs={job.jobs}"]


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
    """Checks the names of axes, levels and keys.

    Raises:
        CommandError: a name is unknown; with a suggestion if one is close.
    """
    known = sorted(_keys(OmegaConf.to_container(composed([]), resolve=False)))
    for override, values in zip(overrides, choices, strict=True):
        key = override.key_or_group
        _check_hydra(key, str(override.input_line))
        if override.type != OverrideType.CHANGE or key.startswith("hydra"):
            continue  # +key, ++key and ~key are Hydra's own business, and so is hydra itself
        if key.endswith(".name") and key.removesuffix(".name") in _axes():
            raise CommandError(f"{key}: a level's name says what it is; choose with {key[:-5]}=LEVEL")
        if key in _axes():
            for value in values:
                level = level_of(value)
                if level not in _levels(key) and not _is_given(key, level):
                    raise CommandError(
                        f"{key}={level}: no such level{nearest(level, _levels(key), key)}; "
                        f"the levels are {', '.join(_levels(key))}"
                    )
        elif key not in known and not key.startswith("model.config."):
            raise CommandError(
                f"{key}: no such axis or key{nearest(key, [*_axes(), *known])}; see --help for all of them"
            )


def _is_given(axis: str, level: str) -> bool:
    """Whether a level is none of conf/, but a path or a name that the axis takes besides."""
    if axis == "gpu":
        return given_devices.is_given(level)
    return axis == "model" and given_models.is_given(level)


def _check_hydra(key: str, word: str) -> None:
    """Checks that an override of Hydra's own keys chooses values, never code: people run the command lines
    that they find in the rows of others.

    Raises:
        CommandError: the key is not among those that may be set.
    """
    allowed = key.startswith(_HYDRAS_OWN) or not re.match(r"hydra\b", key)
    if "_target_" in word or not allowed:
        raise CommandError(
            f"{word}: of Hydra's own keys only {', '.join(_HYDRAS_OWN)} can be set, and no _target_"
        )


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    """All keys below `node`, with dots."""
    for key, value in node.items():
        yield prefix + str(key)
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{key}.")


def without_effect(arguments: list[str], trials: Sequence[Trial]) -> list[str]:
    """A sentence for each word that changes no trial."""
    idle = {}
    if all(trial.lora.name == "off" for trial in trials):
        idle["lora"] = "without lora=on"
    if all(trial.method == "measure" for trial in trials):
        idle["gpu"] = "when a trial is measured: device= names what it runs on"
    starts = {word: re.split("[.=]", word)[0] for word in arguments if not word.startswith("lora=")}
    return [f"{word} changes nothing {idle[start]}" for word, start in starts.items() if start in idle]
