"""The help text of `bench/run.py`: every axis, level and key, read from the comments in conf/.

In: the files of conf/. Out: text, 80 columns wide. Imports neither Hydra nor YAML: --help answers at once.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import fields

from bench.paths import SHIPPED
from bench.trial.spec import Trial

_CONF = SHIPPED / "conf"
_WIDTH = 79
_INDENT = 20  # where explanations begin
_FILLED_IN = "# Filled in by"  # what follows it in config.yaml is not for people
_HEADER = """\
Measures what a memory-saving technique saves and costs. One command is one
trial; -m sweeps comma-separated values. Every trial leaves one parquet row.

Examples
  python bench/run.py precision=bf16 checkpointing=on
  python bench/run.py -m precision=fp16,int8 lora=on,off
  python bench/run.py -m model=llama-1b lora=on lora.rank=4,16,64 replicates=3

Exit codes: 0 when every trial is ok, oom or skipped; 1 when one is error or
timeout; 2 when the command line is wrong; 130 after Ctrl-C."""


def text() -> str:
    """What `python bench/run.py --help` prints."""
    parts = [_HEADER, "\nAxes (axis=level, with -m also axis=level,level)"]
    for axis in axes():
        parts += ["", f"{axis}", *_levels(axis)]
    parts += ["", "Experiments (+experiment=NAME: the levels and keys of one trial)", ""]
    for file in sorted((_CONF / "experiment").glob("*.yaml")):
        parts.append(_explained(file.stem, _first_sentence(file.read_text().splitlines()[1:])))
    parts += ["", "Keys (key=value, with -m also key=value,value)", "", *_keys()]
    return "\n".join(parts)


def axes() -> list[str]:
    """The folders of conf/ that are axes of a trial, in the trial's order."""
    return [field.name for field in fields(Trial) if (_CONF / field.name).is_dir()]


def _levels(axis: str) -> Iterator[str]:
    """A line or two for each level, then the keys that the axis has beside its levels."""
    keys: dict[str, None] = {}
    for file in sorted((_CONF / axis).glob("*.yaml")):
        lines = file.read_text().splitlines()
        yield _explained(file.stem, _first_sentence(lines))
        keys |= dict.fromkeys(re.findall(r"^(\w+):", "\n".join(lines), re.MULTILINE))
    del keys["name"]
    if keys:
        names = ", ".join(f"{axis}.{key}" for key in keys)
        yield textwrap.fill(f"also: {names}", _WIDTH, initial_indent="  ", subsequent_indent="    ")


def _first_sentence(lines: list[str]) -> str:
    """The first sentence of the comment with which a file begins."""
    comment = []
    for line in lines:
        if not line.startswith("#"):
            break
        comment.append(line.removeprefix("#").strip())
    return re.split(r"(?<=\w\w)\. |(?<=\))\. |\.$", " ".join(comment))[0]


def _keys() -> Iterator[str]:
    """A line for each key of config.yaml, with its default and its comment."""
    whole = (_CONF / "config.yaml").read_text()
    section = ""
    for line in whole[whole.index("\nmethod:") : whole.index(_FILLED_IN)].splitlines():
        match = re.fullmatch(r"(\s*)(\w+):\s*([^#]*?)\s*(?:#\s*(.*))?", line)
        if match is None:
            continue
        nested, key, default, comment = match.groups()
        if not default:
            section = f"{key}."
            continue
        shown = "results" if key == "results_dir" else default
        yield _explained(f"{section if nested else ''}{key}={shown}", comment or "")


def _explained(word: str, explanation: str) -> str:
    """A word, and beside it what it means."""
    start = f"  {word:<{_INDENT - 4}}  "
    if not explanation:
        return start.rstrip()
    first, rest = (start, "") if len(start) <= _INDENT else (" " * _INDENT, start.rstrip() + "\n")
    return rest + textwrap.fill(
        explanation,
        _WIDTH,
        initial_indent=first,
        subsequent_indent=" " * _INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )
