"""The rooms of the tests: where a test stands, how long its file may be, and into what it may reach.

ruff looks for private attributes everywhere but in the mirrors (SLF001). It does not tell whose they are, nor does it
see a private name that is imported, or that stands in a string.
"""

from __future__ import annotations

import ast
import importlib
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from rooms_support import FLOORS, PACKAGE, imports

if TYPE_CHECKING:
    from collections.abc import Iterator

TESTS = Path(__file__).parents[1]
FILES = sorted(TESTS.rglob("*.py"))

#: Each package and the room of its unit tests.
MIRRORS = {
    package: package.lstrip("_")
    for package in FLOORS
    if (PACKAGE / package / "__init__.py").exists()
}
ROOMS = {*MIRRORS.values(), "contract", "project"}

#: Private names outside of the mirrors, all of them of others: event loops have no public way to these.
OF_OTHERS = {
    "contract/fuzz_run.py": {"_ALLOW_DETERMINISTIC_SCHEDULING", "_core", "_r", "_run"},  # trio
    "contract/test_lost_loops.py": {"_log_destroy_pending"},  # asyncio, as in the next ones
    "durable/test_around.py": {"_log_destroy_pending"},
    "durable/test_reader_ends.py": {"_log_destroy_pending"},
    "io/test_files_pipes.py": {"_current_frames"},  # sys
    "support.py": {"_run"},  # asyncio
}

PRIVATE = re.compile(r"_(?!_)\w+")
BY_STRING = {"getattr", "setattr", "hasattr", "delattr", "attrgetter"}


def name_of(path: Path) -> str:
    return path.relative_to(TESTS).as_posix()


#: os._exit, and what notebooks ask an object for.
OF_PROTOCOLS = {"_exit", "_repr_html_"}


def private_names(text: str) -> Iterator[str]:
    """Yield each private name that a text asks another object for, or imports, or spells in a string for that."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute):
            own = isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"}
            own |= isinstance(node.value, ast.Call) and ast.unparse(node.value) == "super()"
            names = [] if own else [node.attr]
        elif isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names if alias.name not in FLOORS]
        else:
            names = [word.split(".")[-1] for word in spelled(node)]
        yield from (name for name in names if PRIVATE.fullmatch(name) and name not in OF_PROTOCOLS)


def spelled(node: ast.AST) -> list[str]:
    """Return the strings of a call that gets or sets what a string names."""
    if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in BY_STRING:
        words = [word.value for word in node.args if isinstance(word, ast.Constant)]
        return [word for word in words if isinstance(word, str)]
    return []


def names_in(folder: Path) -> set[str]:
    """Return every private name that stands in the files of a folder, in whatever place."""
    return {
        name
        for path in folder.rglob("*.py")
        for name in re.findall(r"\b_(?!_)\w+", path.read_text(encoding="utf-8"))
    }


def reached(text: str) -> set[str]:
    """Return the packages of ours of which a text imports, or replaces, what is inside."""
    named = [word for node in ast.walk(ast.parse(text)) for word in spelled(node)]
    return {
        package
        for name in (*imports(text, "tests"), *named)
        for package in FLOORS
        if re.match(rf"microbatch\.{package}\.", name) and not is_public(name)
    }


def is_public(name: str) -> bool:
    """Tell whether a name of a package is one of those that the package shows."""
    package, _, rest = name.rpartition(".")
    if package.count(".") > 1 or "._" in package:
        return False
    return rest in importlib.import_module(package).__all__


def test_private_names_are_seen_however_they_are_reached() -> None:
    """The tests below are worth what this sees."""
    text = (
        "from a import _b\nfrom microbatch._core import c\nx._d.__e__\nself._f, super()._g\nx()._h\n"
        "getattr(x, '_i')\nm.setattr('microbatch.j._k', 1)\nm.setattr(x, '_l', 1)\nprint('_m')\n"
    )
    assert set(private_names(text)) == {"_b", "_d", "_h", "_i", "_k", "_l"}


def test_what_is_inside_of_a_package_is_told_from_what_it_shows() -> None:
    """The tests below are worth what this tells."""
    text = (
        "from microbatch import Batcher\nfrom microbatch.layers import atomic\nimport microbatch.durable\n"
        "from microbatch._core.fifo import Fifo\nfrom microbatch._pure import checks\n"
    )
    assert reached(text) == {"_core", "_pure"}
    assert reached("from microbatch.layers._by_key import x") == {"layers"}
    assert reached("monkeypatch.setattr('microbatch._loops.waiting.x', 1)") == {"_loops"}
    assert reached("def f():\n    from microbatch.durable.store import x") == {"durable"}


def test_each_package_has_a_mirror_and_each_room_is_one() -> None:
    """Who changes a package finds its tests; nobody has to ask where a new test goes."""
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert packages == set(MIRRORS)
    assert {path.parent.name for path in FILES if path.parent.parent == TESTS} == ROOMS


def test_a_test_stands_in_a_room() -> None:
    """At the top stands what several rooms share, and no test."""
    top = {path.stem for path in FILES if path.parent == TESTS}
    assert {stem for stem in top if not stem.endswith("support")} == {"conftest"}
    folders = {path.parent for path in FILES} - {TESTS}
    assert folders == {*(TESTS / room for room in ROOMS), TESTS / "project/typing"}


def test_no_file_of_tests_is_over_500_lines_long() -> None:
    """A file with two ideas is two files."""
    lines = {name_of(path): path.read_text(encoding="utf-8").count("\n") for path in FILES}
    assert {name: count for name, count in lines.items() if count > 500} == {}


@pytest.mark.parametrize(
    "name", [".ci/run", "ARCHITECTURE.md", "CONTRIBUTING.md", "pyproject.toml"]
)
def test_every_place_of_tests_that_is_named_exists(name: str) -> None:
    """CI that runs a file which was renamed breaks late, and a page that names one leads nowhere."""
    text = (TESTS.parent / name).read_text(encoding="utf-8")
    named = set(re.findall(r"(?<!/)\btests/[\w/]+(?:\.py)?", text))
    assert named
    assert {place for place in named if not (TESTS.parent / place).exists()} == set()


def test_ruff_looks_for_private_attributes_everywhere_but_in_the_mirrors() -> None:
    """A folder that is left out by mistake may look into everything."""
    settings = tomllib.loads((TESTS.parent / "pyproject.toml").read_text(encoding="utf-8"))
    ignores = settings["tool"]["ruff"]["lint"]["per-file-ignores"]
    left_out = [place for place, rules in ignores.items() if "SLF001" in rules]
    (mirrors,) = (place for place in left_out if place.startswith("tests/"))
    rooms = [package.lstrip("_") for package in FLOORS if not package.startswith("__")]
    assert mirrors == f"tests/{{{','.join(rooms)}}}/**"
    assert set(MIRRORS.values()) <= set(rooms)


def test_private_names_are_those_of_the_mirrored_package() -> None:
    """Whoever changes a package knows which tests look inside of it: those of its mirror."""
    own = {room: names_in(PACKAGE / package) for package, room in MIRRORS.items()}
    found = {}
    for path in FILES:
        used = set(private_names(path.read_text(encoding="utf-8")))
        if used := used - own.get(path.parent.name, set()):
            found[name_of(path)] = used
    assert found == OF_OTHERS


def test_tests_reach_inside_of_what_they_mirror_and_of_what_that_stands_on() -> None:
    """Contract tests, and what all share, know the public names alone: they hold whatever the insides become."""
    below = {
        room: {package, *(other for other in FLOORS if FLOORS[other] < FLOORS[package])}
        for package, room in MIRRORS.items()
    }
    below["project"] = set(
        FLOORS
    )  # pages are compared with the code, so these may name what is inside
    found = {}
    for path in FILES:
        room = path.relative_to(TESTS).parts[0]
        if inside := reached(path.read_text(encoding="utf-8")) - below.get(room, set()):
            found[name_of(path)] = inside
    assert found == {}
