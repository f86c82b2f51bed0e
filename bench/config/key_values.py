"""key=value words of the doors that are not Hydra's: few keys, each with a default that gives its type."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any


class KeyValueError(ValueError):
    """A word cannot be understood; the message says what to change."""


def options_as_key_values(arguments: list[str]) -> list[str]:
    """Options as key=value words: `--baseline-ref NAME` and `--baseline-ref=NAME` are baseline_ref=NAME."""
    words, left = [], list(arguments)
    while left:
        word = left.pop(0)
        if word.startswith("--"):
            key, equals, value = word[2:].partition("=")
            if not equals and left and not left[0].startswith("--"):
                equals, value = "=", left.pop(0)
            word = key.replace("-", "_") + equals + value
        words.append(word)
    return words


def read_key_values(arguments: list[str], defaults: dict[str, Any]) -> dict[str, Any]:
    """The defaults, with what the words change; paths are made absolute.

    Raises:
        WordError: a word is not key=value, its key is unknown, or its value has the wrong type.
    """
    found = dict(defaults)
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals and key in defaults:
            raise KeyValueError(f"{key} has no value: say {key}=VALUE")
        if key not in defaults:
            close = difflib.get_close_matches(key, defaults, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise KeyValueError(f"{argument}: no such key{hint}; the keys are {', '.join(defaults)}")
        found[key] = _typed(key, value, defaults[key])
    return found


def _typed(key: str, value: str, default: Any) -> Any:
    if isinstance(default, bool):
        if value.lower() not in ("true", "false"):
            raise KeyValueError(f"{key}={value}: must be true or false")
        return value.lower() == "true"
    if isinstance(default, int | float):
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
