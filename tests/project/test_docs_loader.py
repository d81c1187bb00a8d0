"""The Loader's reference page against the code: its settings, their defaults, its methods."""

from __future__ import annotations

import ast
import inspect

import pytest
from pages_support import REFERENCE, documented, sections

from microbatch import Loader

PAGE = REFERENCE / "loader.md"
METHODS = [name for name, _ in inspect.getmembers(Loader, callable) if not name.startswith("_")]


def test_documented_settings_and_defaults_are_the_codes() -> None:
    """Those of a Batcher stand on its page."""
    table = documented(PAGE, "Loader")
    code = dict(inspect.signature(Loader).parameters)
    settings = code.pop("settings")
    assert settings.kind is inspect.Parameter.VAR_KEYWORD
    assert list(table) == list(code)
    for name, cell in table.items():
        default = code[name].default
        shown = inspect.Parameter.empty if cell == "required" else ast.literal_eval(cell.strip("`"))
        assert shown is default, name


@pytest.mark.parametrize("name", METHODS)
def test_documented_signatures_are_the_codes(name: str) -> None:
    """Every public method has its entry, which begins with how to call it."""
    call = sections(PAGE)[name].strip().split("`")[1]
    method = getattr(Loader, name)
    waits = "await " if inspect.iscoroutinefunction(method) else ""
    arguments = ", ".join(list(inspect.signature(method).parameters)[1:])
    assert call == f"{waits}loader.{name}({arguments})"
