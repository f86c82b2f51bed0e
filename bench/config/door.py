"""What every command does at its door: --help and --version, Ctrl-C, and a reader that has gone.

In: a command's `main` and its help text. Out: the exit code. Imports little but the standard library, so
that Ctrl-C is understood from the first moment on. `main` imports the rest.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import select
import shutil
import signal
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import bench
from bench.paths import command

_WIDEST = 100  # columns of a help text, however wide the terminal is
_CONTINUES = 8  # columns from which on an indented line continues the one before it


def enter(main: Callable[[list[str]], int], help_text: str | Callable[[], str]) -> int:
    """Calls `main` with the words of this process' command line, and returns the exit code.

    Returns:
        What `main` returns; 0 after --help and --version; 130 after Ctrl-C; 141 where nobody reads the
        output any more.
    """
    name = f"bench/{Path(sys.argv[0]).name}"
    interrupt = _Interrupt()
    signal.signal(signal.SIGINT, interrupt)
    try:
        code = main(words(name, help_text, sys.argv[1:]))
    except SystemExit as asked:
        code = asked.code if isinstance(asked.code, int) else 0
    except BaseException as error:
        if interrupt.came or isinstance(error, KeyboardInterrupt):
            with contextlib.suppress(OSError):
                print(f"\n{name}: stopped by Ctrl-C", file=sys.stderr)
            code = 128 + signal.SIGINT
        elif isinstance(error, BrokenPipeError) and any(map(_has_no_reader, (1, 2))):
            code = 128 + signal.SIGPIPE
        else:
            raise
    return code if _flushed() else 128 + signal.SIGPIPE


def words(name: str, help_text: str | Callable[[], str], arguments: list[str]) -> list[str]:
    """The arguments, where neither --help nor --version is among them.

    Raises:
        SystemExit: one of the two was given, and answered.
    """
    asks_for_help = any(argument in ("-h", "--help") for argument in arguments)
    if callable(help_text):
        help_text = help_text() if asks_for_help else ""
    width = min(shutil.get_terminal_size().columns, _WIDEST)
    parser = argparse.ArgumentParser(
        prog=name,
        usage=f"{' '.join(command(Path(name).stem))} [key=value ...]",
        description=wrapped(help_text, width),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"memory-bench {bench.__version__}")
    return parser.parse_known_args(arguments)[1]


def wrapped(text: str, width: int) -> str:
    """The text in lines of at most `width` columns, broken between words.

    Lines that begin at the margin are prose, and are filled anew. An indented line is an entry: a word, two
    spaces or more, and what it means. Lines that are indented further continue it.
    """
    lines: list[str] = []
    for line in text.splitlines():
        last = lines[-1] if lines else ""
        indent = _indent(line)
        prose = last and line and not indent and not _indent(last)
        continued = last and indent >= _CONTINUES > _indent(last) > 0
        if prose or continued:
            lines[-1] = f"{last} {line.strip()}"
        else:
            lines.append(line)
    return "\n".join(_filled(line, width) for line in lines)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _filled(line: str, width: int) -> str:
    entry = re.match(r" +\S+ {2,}", line)
    hanging = len(entry[0]) if entry else _indent(line)
    filler = textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False)
    filler.subsequent_indent = " " * hanging
    return filler.fill(line)


class _Interrupt:
    """The handler of Ctrl-C: the first one raises KeyboardInterrupt, the second one ends the process.

    `came` stays true where a library turned the KeyboardInterrupt into an exception of its own, as numpy
    and pandas do while they are imported.
    """

    def __init__(self) -> None:
        self.came = False

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        self.came = True
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        raise KeyboardInterrupt


def _flushed() -> bool:
    """Writes what is left to stdout; whether somebody could read it. If not, nothing more is written."""
    if sys.stdout is None:
        return True
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        return False
    return True


def _has_no_reader(file: int) -> bool:
    """Whether this is a pipe whose reader has gone."""
    state = select.poll()
    state.register(file, 0)
    return any(event & select.POLLERR for _, event in state.poll(0))
