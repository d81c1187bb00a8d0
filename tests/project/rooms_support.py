"""The rooms of the package, and what a file of Python imports."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import microbatch

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(microbatch.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

#: The floors, bottom up. The public faces stand on the top one.
FLOORS = {
    "_pure": 1,
    "_loops": 2,
    "_telemetry": 2,
    "_core": 3,
    "durable": 4,
    "layers": 4,
    "_io": 4,
    "engines": 4,
    "http": 6,
    "cli": 7,
    "__main__": 8,
}
FACES = 5

#: The same within the durable mode.
DURABLE_FLOORS = {"errors": 1, "_file": 2, "records": 3, "_life": 4, "_flow": 5}
DURABLE_FACES = 6


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(("microbatch", *(parts[:-1] if parts[-1] == "__init__" else parts)))


def floor_of(module: str) -> int:
    parts = module.split(".")
    return FLOORS.get(parts[1], FACES) if len(parts) > 1 else FACES


def durable_floor_of(module: str) -> int:
    parts = module.split(".")
    return DURABLE_FLOORS.get(parts[2], DURABLE_FACES) if len(parts) > 2 else DURABLE_FACES


def imports(text: str, module: str, *, package: bool = False) -> Iterator[str]:
    """Yield every module that a text imports, in full, wherever it does."""
    home = module.split(".") if package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            up = home[: len(home) - node.level + 1] if node.level else []
            source = ".".join([*up, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{source}.{alias.name}"


def imported(path: Path) -> set[str]:
    """Return the modules of ours that a file imports, and the top names of all others."""
    known = {module_of(other) for other in FILES}
    found = set()
    package = path.name == "__init__.py"
    for name in imports(path.read_text(encoding="utf-8"), module_of(path), package=package):
        if not name.startswith("microbatch"):
            found.add(name.partition(".")[0])
        elif name in known:
            found.add(name)
        else:
            found.add(name.rpartition(".")[0])
    return found
