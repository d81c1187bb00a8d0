"""The rooms of the package: what may import what, and what may be done where."""

from __future__ import annotations

import ast
import re
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from rooms_support import (
    FILES,
    FLOORS,
    PACKAGE,
    durable_floor_of,
    floor_of,
    imported,
    imports,
    module_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: What acts: neither is anything of it in `_pure`, nor does anything there know what time it is.
ACTING = {
    "anyio", "asyncio", "concurrent", "contextvars", "io", "logging", "os", "pathlib", "signal", "socket", "sqlite3",
    "subprocess", "threading", "time", "trio",
}  # fmt: skip

#: A statement, as they are written here.
SQL = re.compile(r"\"(SELECT|INSERT|UPDATE|DELETE|PRAGMA|BEGIN|COMMIT|CREATE) ")

#: Parts of the durable mode whose waiters are asyncio's own futures, since it needs asyncio.
ON_ASYNCIO = {"durable/_life/opening.py"}

#: Names that two things may have: those of the durable mode's own records, which are its insides, and what settles for
#: an engine (a public name) as the durable mode does on disk.
NAMED_TWICE = {"Found", "State", "settle"}

#: Modules that two packages may have: public faces of both, and the rows behind one of them.
MODULES_TWICE = {"batcher", "errors", "records"}


def test_imports_are_seen_however_they_are_written() -> None:
    """The tests below are worth what this sees."""
    text = "import a.b\nfrom .c import d\nfrom .. import e\nif x:\n    def f():\n        from g import h\n"
    found = set(imports(text, "microbatch.layers.one"))
    assert found == {"a.b", "microbatch.layers.c.d", "microbatch.e", "g.h"}
    assert set(imports("from . import i", "microbatch.layers", package=True)) == {
        "microbatch.layers.i"
    }


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_run_down(path: Path) -> None:
    """A room knows what it stands on, and nothing of what stands on it."""
    mine = floor_of(module_of(path))
    above = {
        name
        for name in imported(path)
        if name.startswith("microbatch") and floor_of(name) > mine and name != "microbatch"
    }
    assert above == set()


def test_no_package_imports_in_a_circle() -> None:
    """Two packages that need one another are one package."""
    arrows: dict[str, set[str]] = {}
    for path in FILES:
        room = module_of(path).split(".")[1:2]
        if room and room[0] in FLOORS:
            for name in imported(path):
                other = name.split(".")[1:2] if name.startswith("microbatch.") else []
                if other and other[0] in FLOORS and other != room:
                    arrows.setdefault(room[0], set()).add(other[0])
    left = dict(arrows)
    while free := [room for room in left if not left[room] & left.keys()]:
        for room in free:
            del left[room]
    assert left == {}
    assert arrows["_core"] == {"_loops", "_pure", "_telemetry"}


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_nobody_imports_an_engine(path: Path) -> None:
    """Each stands behind an extra, which may not be installed."""
    if "engines" not in path.relative_to(PACKAGE).parts:
        assert {name for name in imported(path) if name.startswith("microbatch.engines")} == set()


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_the_loops_are_imported_in_one_place(path: Path) -> None:
    """Two event loops behind one seam; everything else is written once."""
    name = str(path.relative_to(PACKAGE))
    if not (name.startswith("_loops/") or name in ON_ASYNCIO):
        assert imported(path) & {"asyncio", "trio", "uvloop"} == set()


@pytest.mark.parametrize("path", sorted((PACKAGE / "_pure").glob("*.py")), ids=module_of)
def test_what_decides_does_not_act(path: Path) -> None:
    """No loop, no clock, no log, no I/O: what the time is comes in as an argument."""
    assert imported(path) & ACTING == set()


def test_the_batchers_parts_ask_only_those_above_them_in_the_table() -> None:
    """Each part can be understood with those that it asks, and no more."""
    text = (PACKAGE.parents[1] / "ARCHITECTURE.md").read_text(encoding="utf-8")
    parts = re.findall(r"^\| `\w+` \(`(\w+)`\) \|", text, re.MULTILINE)
    assert parts[0] == "rules"
    assert parts[-1] == "engine"
    for place, part in enumerate(parts):
        asked = {name.rpartition(".")[2] for name in imported(PACKAGE / "_core" / f"{part}.py")}
        assert asked & set(parts[place + 1 :]) == set(), part


def named(text: str) -> Iterator[str]:
    """Yield the classes, functions and aliases of types that a text makes at its top."""
    for node in ast.parse(text).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.Assign) and not isinstance(node.value, ast.Call):
            yield from (
                target.id
                for target in node.targets
                if isinstance(target, ast.Name)
                and not target.id.isupper()
                and target.id[0].isupper()
            )


def twice(names: Iterator[str]) -> set[str]:
    return {name for name, count in Counter(names).items() if count > 1}


def test_names_are_seen_whatever_they_are_of() -> None:
    """The test below is worth what this sees."""
    text = "class A: ...\nasync def b(): ...\nCd = A | int\nT = TypeVar('T')\nD = 5\nif x:\n    E = 1\n"
    assert list(named(text)) == ["A", "b", "Cd"]


def test_no_two_things_have_one_name() -> None:
    """Who searches for a word finds one thing; dunder modules aside, and overloads, which are one function."""
    modules = [path for path in FILES if not path.stem.startswith("__")]
    names = (name for path in modules for name in set(named(path.read_text(encoding="utf-8"))))
    assert twice(names) <= NAMED_TWICE
    assert twice(path.stem for path in modules) <= MODULES_TWICE


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_nobody_reaches_into_another_object(path: Path) -> None:
    """What others may ask has a name without an underscore."""
    assert "SLF001" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted((PACKAGE / "durable").rglob("*.py")), ids=module_of)
def test_imports_run_down_in_the_durable_mode_too(path: Path) -> None:
    """What lies in the file knows nothing of who lives, nor that of an item's way, nor that of the faces."""
    mine = durable_floor_of(module_of(path))
    within = {name for name in imported(path) if name.startswith("microbatch.durable.")}
    assert {name for name in within if durable_floor_of(name) > mine} == set()


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_sql_stands_in_one_place(path: Path) -> None:
    """Whoever changes a table knows where to look."""
    if path.parent.name != "_file":
        assert SQL.search(path.read_text(encoding="utf-8")) is None
