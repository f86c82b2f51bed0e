"""The parts of card day: what conf/card.toml says, and how each ended on this machine.

In: the text of conf/card.toml, the folder of results. Out: `Part`s, and a `Diary` that is kept in the
folder. Must import what every Python has alone (`card.py` says why).
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_TOY = (
    "model=llama-tiny seq_len=32 threads=1 busy=share "
    "timing.warmup_steps=2 timing.min_steps=3 timing.max_steps=3"
)
_NOT_IN_A_TOY = ("model", "seq_len", "micro_batch_size", "replicates")
_FILE = "card.json"


@dataclass(frozen=True)
class Part:
    """One part as it runs on this machine: sweeps, or a command; `seconds` is its weight among all."""

    name: str
    about: str
    seconds: float
    sweeps: tuple[str, ...] = ()
    command: str = ""


@dataclass(frozen=True)
class Day:
    """All parts, in order; `ending_seconds` is the weight of comparing and grading at the end."""

    parts: tuple[Part, ...]
    ending_seconds: float

    @classmethod
    def read(cls, text: str, *, toy: bool) -> Day:
        """What the text of conf/card.toml says; toys of it where there is no GPU."""
        values = tomllib.loads(text)
        return cls(tuple(_part(part, toy) for part in values["part"]), values["ending_seconds"])


def _part(values: dict[str, Any], toy: bool) -> Part:
    command, sweeps = values.get("command", ""), values.get("sweeps", [])
    if toy:
        command, sweeps = values.get("toy", command), [_toy(words) for words in sweeps]
    return Part(values["name"], values["about"], values["seconds"], tuple(sweeps), command)


def _toy(words: str) -> str:
    """The sweep over a tiny model: one replicate, and two values of each axis at most."""
    kept = []
    for word in words.split():
        key, _, value = word.partition("=")
        if key not in _NOT_IN_A_TOY:
            kept.append(f"{key}={','.join(value.split(',')[:2])}")
    return " ".join([*kept, _TOY])


class Diary:
    """How each part ended (`done`, `unfinished`, `failed`), kept in a file of the folder of results.

    A part counts only for the environment (machine, libraries, code) and in the words in which it ran.
    """

    def __init__(self, folder: Path, environment: str) -> None:
        self._file = folder / _FILE
        self._environment = environment
        self._parts: dict[str, Any] = json.loads(self._file.read_text()) if self._file.is_file() else {}

    def status(self, part: Part) -> str:
        """How the part ended here, or `not begun`."""
        ended = self._parts.get(part.name)
        if ended is None or ended["as"] != self._words(part):
            return "not begun"
        return str(ended["status"])

    def note(self, part: Part, status: str) -> None:
        """Keeps how a part ended."""
        self._parts[part.name] = {"status": status, "as": self._words(part)}
        beside = self._file.with_suffix(".tmp")
        beside.write_text(json.dumps(self._parts, indent=1) + "\n")
        beside.rename(self._file)

    def _words(self, part: Part) -> dict[str, Any]:
        return {"environment": self._environment, **asdict(part), "sweeps": list(part.sweeps)}
