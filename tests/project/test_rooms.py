"""The rooms of the package: what may import what, and what may be done where."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from rooms_support import FILES, FLOORS, PACKAGE, floor_of, imported, imports, module_of

if TYPE_CHECKING:
    from pathlib import Path

#: What acts: neither is anything of it in `_pure`, nor does anything there know what time it is.
ACTING = {
    "anyio", "asyncio", "concurrent", "contextvars", "io", "logging", "os", "pathlib", "signal", "socket", "sqlite3",
    "subprocess", "threading", "time", "trio",
}  # fmt: skip

#: Parts of the durable mode whose waiters are asyncio's own futures, since it needs asyncio.
ON_ASYNCIO = {"durable/hands.py", "durable/opening.py", "durable/outcomes.py"}


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
def test_the_loops_are_imported_in_one_place(path: Path) -> None:
    """Two event loops behind one seam; everything else is written once."""
    name = str(path.relative_to(PACKAGE))
    if not (name.startswith("_loops/") or name in ON_ASYNCIO):
        assert imported(path) & {"asyncio", "trio", "uvloop"} == set()


@pytest.mark.parametrize("path", sorted((PACKAGE / "_pure").glob("*.py")), ids=module_of)
def test_what_decides_does_not_act(path: Path) -> None:
    """No loop, no clock, no log, no I/O: what the time is comes in as an argument."""
    assert imported(path) & ACTING == set()


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_nobody_reaches_into_another_object(path: Path) -> None:
    """What others may ask has a name without an underscore; the durable mode has one exception left."""
    allowed = 1 if path.name == "hop.py" else 0
    assert path.read_text(encoding="utf-8").count("SLF001") == allowed
