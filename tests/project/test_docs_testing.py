"""docs/reference/testing.md against the code, and the examples of docs/how-to/testing.md as pytest runs them."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from pages_support import DOCS, REFERENCE, blocks_of, documented, rows, sections
from support import ENVIRONMENT

from microbatch import testing
from microbatch._loops import virtual

if TYPE_CHECKING:
    from pathlib import Path

PAGE = REFERENCE / "testing.md"
HOW_TO = DOCS / "how-to/testing.md"


def test_every_public_name_has_an_entry() -> None:
    """What can be imported is described, and what is described can be imported."""
    assert set(sections(PAGE)) - {"Testing"} == set(testing.__all__)


@pytest.mark.parametrize("name", testing.__all__)
def test_the_documented_call_is_the_codes(name: str) -> None:
    """With its defaults."""
    signature = inspect.signature(getattr(testing, name))
    names = ", ".join(str(p).replace("'", '"') for p in unannotated(signature).parameters.values())
    assert (
        f"`{name}({names})`" in sections(PAGE)[name] or f"`with {name}():`" in sections(PAGE)[name]
    )


def unannotated(signature: inspect.Signature) -> inspect.Signature:
    parameters = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return signature.replace(parameters=parameters)


def test_the_documented_backends_are_the_ones_that_are_taken() -> None:
    """And what each gives is what stands beside it."""
    for backend, gives, _ in rows(sections(PAGE)["virtual_time"])[1:]:
        (key,) = testing.virtual_time(backend.strip('`"'))
        assert gives.startswith(f'`{{"{key}": ...}}`')


def test_the_documented_attributes_are_the_codes() -> None:
    """What a record has."""

    @testing.recorded
    def handler(items: list[int]) -> None: ...

    assert set(documented(PAGE, "recorded")) == set(vars(handler)) - {"__wrapped__"}


def test_the_documented_patience_is_the_codes() -> None:
    """In the page and in the docstring."""
    for text in (sections(PAGE)["virtual_time"], testing.virtual_time.__doc__ or ""):
        assert re.search(rf"ends after {virtual.PATIENCE:g} seconds", " ".join(text.split()))


SETTINGS = """\
[pytest]
addopts = -p no:cacheprovider
asyncio_mode = strict
asyncio_default_fixture_loop_scope = function
filterwarnings =
    error
    ignore:Using `httpx` with `starlette.testclient`
"""


def test_pytest_runs_the_how_tos_blocks(tmp_path: Path) -> None:
    """With anyio's plugin, pytest-asyncio and pytest-trio: what a reader copies is what ran."""
    for plugin in ("pytest_asyncio", "pytest_trio"):
        if importlib.util.find_spec(plugin) is None:
            pytest.skip(f"{plugin} is not installed here")
    text = "\n".join(b.source for b in blocks_of(HOW_TO) if b.language == "python")
    tree = ast.parse(text)
    imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    functions = [n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    hooks = [function for function in functions if function.name.startswith("pytest_")]
    tests = {function.name for function in functions if function.name.startswith("test_")}
    assert len(hooks) == 1
    (tmp_path / "conftest.py").write_text(ast.unparse([*imports, *hooks]), encoding="utf-8")  # type: ignore[arg-type]
    (tmp_path / "test_page.py").write_text(text, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text(SETTINGS, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-rA", "-q", "--timeout=60", str(tmp_path)]
    environment = {k: v for k, v in ENVIRONMENT.items() if not k.startswith("PYTEST_")}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.findall(r"^PASSED test_page\.py::(\w+)(.*)$", done.stdout, re.MULTILINE)
    assert {name for name, _ in passed} == tests
    variants = {variant.strip("[]") for _, variant in passed}
    assert {"asyncio", "trio"} <= {one.split("-")[0] for one in variants}
    assert f"{len(passed)} passed in" in done.stdout  # none was skipped or failed
