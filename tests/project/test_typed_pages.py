"""Type checkers accept every Python block of the README and of docs/, as its reader would have it checked.

A page's blocks share a namespace (tests/project/test_readme.py), and define names again. So each block becomes a
module that imports what it uses from the ones before, with its lines where they stand on the page.
"""

from __future__ import annotations

import ast
import builtins
import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pages_support import PAGES, ROOT, blocks_of, sides

import microbatch

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCE = Path(microbatch.__file__).parent.parent

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def module_name(page: Path, line: int, side: str = "") -> str:
    path = page.relative_to(ROOT).with_suffix("").as_posix()
    return re.sub(r"\W", "_", f"{path}_line_{line}{side}")


def bound(tree: ast.Module) -> set[str]:
    """Return the names that a module defines."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
            continue
        parts = list(ast.walk(node))
        inner = {
            name
            for part in parts
            if isinstance(part, ast.comprehension)
            for name in ast.walk(part.target)
        }
        for part in parts:
            if isinstance(part, ast.alias):
                names.add((part.asname or part.name).partition(".")[0])
            elif isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                names |= {part.id} - ({part.id} if part in inner else set())
    return names


def used(tree: ast.Module) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - set(dir(builtins))


def imports_of(tree: ast.Module) -> dict[str, str]:
    """Return each imported name with the statement that imports it."""
    found: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                name = (alias.asname or alias.name).partition(".")[0]
                found[name] = ast.unparse(
                    ast.Import([alias])
                    if isinstance(node, ast.Import)
                    else ast.ImportFrom(node.module, [alias], node.level)
                )
    return found


def modules_of(page: Path) -> Iterator[tuple[str, str]]:
    """Make a module of each block, with its imports in the line of the fence."""
    known: dict[str, str] = {}
    for block in blocks_of(page):
        if block.language == "diff":
            for side, source in zip(("_before", "_after"), sides(block.source), strict=True):
                yield module_name(page, block.line, side), "\n" * block.line + source
        elif block.language == "python":
            name, tree = module_name(page, block.line), ast.parse(block.source)
            needed = sorted((used(tree) - bound(tree)) & set(known))
            head = "; ".join(known[one] for one in needed)
            yield name, "\n" * (block.line - 1) + head + "\n" + block.source
            known |= {one: f"from {name} import {one}" for one in bound(tree)} | imports_of(tree)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All blocks of all pages as modules."""
    folder = tmp_path_factory.mktemp("pages")
    for page in PAGES:
        for name, source in modules_of(page):
            (folder / f"{name}.py").write_text(source, encoding="utf-8")
    return folder


def test_mypy_accepts_every_block(folder: Path, tmp_path: Path) -> None:
    """With --strict: what a reader copies must pass in a project that is typed throughout."""
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--config-file="]
    command += ["--ignore-missing-imports", f"--cache-dir={tmp_path}", "."]
    environment = {**os.environ, "MYPYPATH": f"{folder}:{SOURCE}"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=folder, check=False
    )
    assert done.stdout + done.stderr == "", done.stdout + done.stderr


def test_pyright_accepts_every_block(folder: Path) -> None:
    """In its standard mode: strict asks for types that third-party packages do not have."""
    settings = {
        "include": ["."],
        "extraPaths": [str(SOURCE), sysconfig.get_path("purelib")],
        "typeCheckingMode": "standard",
    }
    (folder / "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "--level=error", "-p", "."]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    report = json.loads(done.stdout)
    assert report["summary"]["filesAnalyzed"] > 50
    errors = [
        f"{Path(one['file']).name}:{one['range']['start']['line'] + 1}: {one['message']}"
        for one in report["generalDiagnostics"]
    ]
    assert errors == [], "\n".join(errors)
