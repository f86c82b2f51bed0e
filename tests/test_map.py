"""CONTRIBUTING.md's map: its arrows are the imports, its files exist, the contract of imports is kept."""

from __future__ import annotations

import re
from collections import Counter

import grimp
import networkx as nx
import pytest
from importlinter import cli as importlinter

from bench.config import console
from tests.conftest import ROOT

PAGE = (ROOT / "CONTRIBUTING.md").read_text()
EVERYBODY_S = ("formatting", "paths")  # what any room may import; not drawn
Arrow = tuple[str, str]


def section(title: str) -> str:
    _, found, rest = PAGE.partition(f"\n## {title}\n")
    assert found, f"CONTRIBUTING.md has no section {title!r}"
    return rest.partition("\n## ")[0]


def drawn() -> set[Arrow]:
    """The arrows of the Mermaid block: `a --> b & c` is two."""
    (block,) = re.findall(r"```mermaid\nflowchart \w+\n(.*?)```", PAGE, re.DOTALL)
    arrows: list[Arrow] = []
    for line in block.splitlines():
        start, _, ends = line.strip().partition(" --> ")
        arrows += [(start, end) for end in ends.split(" & ")]
    assert len(arrows) == len(set(arrows))
    return set(arrows)


def room_of(module: str) -> str:
    """`bench.trial.spec` is in `trial`; the modules beside the rooms are doors."""
    name = module.split(".")[1]
    return name if (ROOT / "bench" / name).is_dir() else "doors"


def imported() -> set[Arrow]:
    """Every arrow from room to room that some import makes."""
    graph = grimp.build_graph("bench", cache_dir=None)
    modules = {m for m in graph.modules if m != "bench" and m.split(".")[1] not in EVERYBODY_S}
    arrows = {
        (room_of(module), room_of(other))
        for module in modules
        for other in graph.find_modules_directly_imported_by(module) & modules
    }
    return {(start, end) for start, end in arrows if start != end}


def test_the_map_s_arrows_are_the_imports() -> None:
    """Of the imports those are drawn that no longer path of arrows implies: the transitive reduction."""
    assert drawn() == set(nx.transitive_reduction(nx.DiGraph(sorted(imported()))).edges)


def test_every_room_has_its_line() -> None:
    rooms = {path.parent.name for path in (ROOT / "bench").glob("*/__init__.py")}
    assert set(re.findall(r"^\| `bench/(\w+)/` \|", section("The map"), re.MULTILINE)) == rooms
    assert {room for arrow in drawn() for room in arrow} == rooms | {"doors"}


SECTIONS = ("The map", "The path of one trial", "Where would I put ...", "Adding a technique")
FILE = re.compile(r"`((?:bench|conf|tests|analysis|results)/[\w./-]*|[\w-]+\.toml)`")


@pytest.mark.parametrize("title", SECTIONS)
def test_every_file_that_the_page_names_exists(title: str) -> None:
    named = set(FILE.findall(section(title)))
    wanted = {name for name in named if not re.search(r"[A-Z]{4}", name)}  # bench/NAME.py is an example
    assert wanted
    assert [name for name in sorted(wanted) if not (ROOT / name).exists()] == []


def test_the_contract_of_imports_is_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setattr(importlinter, "_configure_logging", lambda _verbose: None)  # pytest has its own
    status = importlinter.lint_imports(no_cache=True, no_logo=True)
    assert status == importlinter.EXIT_STATUS_SUCCESS, capsys.readouterr().out


def test_the_console_command_knows_every_door() -> None:
    shared = {"__init__", "formatting", "paths"}
    assert {path.stem for path in (ROOT / "bench").glob("*.py")} - shared == console.DOORS.keys()


def test_no_room_and_no_file_grows_beyond_what_one_can_take_in() -> None:
    """Who needs more splits the room, or the file, by purpose."""
    files = list((ROOT / "bench").rglob("*.py"))
    rooms = Counter(path.parent.relative_to(ROOT).as_posix() for path in files)
    assert {room: count for room, count in rooms.items() if count > 12} == {}
    long = {path.name: count for path in files if (count := len(path.read_text().splitlines())) > 300}
    assert long == {}
