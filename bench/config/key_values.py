"""key=value arguments of the doors without Hydra: few keys, each with a default that gives its type.

In: the command line, and the defaults. Out: a value for each key, or a `KeyValueError` that says what to
change.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from bench.config.names import closest
from bench.formatting import parse_bytes


class KeyValueError(ValueError):
    """An argument cannot be understood; the message says what to change."""


def options_as_key_values(arguments: list[str]) -> list[str]:
    """Options as key=value: `--baseline-ref NAME` and `--baseline-ref=NAME` are baseline_ref=NAME."""
    key_values, remaining = [], list(arguments)
    while remaining:
        argument = remaining.pop(0)
        if argument.startswith("--"):
            key, equals, value = argument[2:].partition("=")
            if not equals and remaining and not remaining[0].startswith("--"):
                equals, value = "=", remaining.pop(0)
            argument = key.replace("-", "_") + equals + value
        key_values.append(argument)
    return key_values


def read_key_values(arguments: list[str], defaults: dict[str, Any]) -> dict[str, Any]:
    """The defaults, with what the arguments change; paths are made absolute.

    Raises:
        KeyValueError: an argument is not key=value, its key is unknown, or its value has the wrong type.
    """
    values = dict(defaults)
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals and key in defaults:
            raise KeyValueError(f"{key} has no value: say {key}=VALUE")
        if key not in defaults:
            known = ", ".join(defaults)
            raise KeyValueError(f"{argument}: no such key{closest(key, defaults)}; the keys are {known}")
        values[key] = _typed(key, value, defaults[key])
    return values


def _typed(key: str, value: str, default: Any) -> Any:
    """`value` in the type of the key's default."""
    if isinstance(default, bool):
        if value.lower() not in ("true", "false"):
            raise KeyValueError(f"{key}={value}: must be true or false")
        return value.lower() == "true"
    if isinstance(default, int | float):
        if key.endswith("_bytes"):
            return _bytes(key, value)
        try:
            number = type(default)(value)
        except ValueError:
            kind = "a whole number" if isinstance(default, int) else "a number"
            raise KeyValueError(f"{key}={value}: must be {kind}") from None
        if number < 0:
            raise KeyValueError(f"{key}={value}: must not be negative")
        return number
    if isinstance(default, Path):
        if not value:
            raise KeyValueError(f"{key} is empty: name a folder")
        if "://" in value:
            raise KeyValueError(f"{key}={value}: must be a folder of a disk, not a URL")
        return Path(value).expanduser().absolute()
    return value


def _bytes(key: str, value: str) -> int:
    try:
        return parse_bytes(value)
    except ValueError as error:
        raise KeyValueError(f"{key}={error}") from None


def quoted(value: str) -> str:
    """`value` as a quoted string of Hydra's grammar: quotes, and backslashes before one, are escaped."""
    return "'" + re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value) + "'"
