"""The layers' public names: pinned, and held against docs/reference/layers.md and the how-to's table."""

from __future__ import annotations

import ast
import inspect
import re
from typing import Any

import pytest
from pages_support import DOCS, REFERENCE, documented, entries_of, prose, rows, sections

from microbatch import layers

PAGE = REFERENCE / "layers.md"
LAYERS = [name for name in layers.__all__ if not inspect.isclass(getattr(layers, name))]
REQUIRED = inspect.Parameter.empty


def parameters(name: str) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(getattr(layers, name)).parameters)


def called(name: str, call: str) -> list[tuple[str, bool, Any]]:
    """Return name, whether it is keyword-only, and default of each argument of a call as a page shows it."""
    arguments = ast.parse(call.replace(f"{name}(", "def f(", 1) + ": ...").body[0].args  # type: ignore[attr-defined]
    given = [REQUIRED] * (len(arguments.args) - len(arguments.defaults)) + arguments.defaults
    both = zip(
        [*arguments.args, *arguments.kwonlyargs], [*given, *arguments.kw_defaults], strict=True
    )
    return [
        (
            argument.arg,
            argument in arguments.kwonlyargs,
            REQUIRED if default in {None, REQUIRED} else ast.unparse(default),
        )
        for argument, default in both
    ]


def in_code(name: str) -> list[tuple[str, bool, Any]]:
    def shown(default: Any) -> Any:
        if default is REQUIRED or not inspect.isclass(default):
            return default if default is REQUIRED else repr(default)
        return default.__name__

    return [
        (p.name, p.kind is inspect.Parameter.KEYWORD_ONLY, shown(p.default))
        for p in parameters(name).values()
    ]


@pytest.mark.parametrize("name", LAYERS)
def test_documented_signatures_are_the_codes(name: str) -> None:
    """Names, order, what is keyword-only, defaults."""
    call = sections(PAGE)[name].strip().split("`")[1]
    assert called(name, call) == in_code(name)


@pytest.mark.parametrize("name", LAYERS)
def test_every_setting_has_a_row_with_its_default(name: str) -> None:
    """All that a layer takes but the handler, or what stands in its place."""
    _, *settings = parameters(name).values()
    shown = documented(PAGE, name)
    assert list(shown) == [setting.name for setting in settings]
    for setting in settings:
        cell = shown[setting.name].strip("`")
        if setting.default is REQUIRED:
            assert cell == "required"
        elif inspect.isclass(setting.default):
            assert cell == setting.default.__name__
        else:
            assert ast.literal_eval(cell) == setting.default


@pytest.mark.parametrize("name", LAYERS)
def test_every_error_of_the_docstring_is_on_the_page(name: str) -> None:
    """Who catches errors looks them up here."""
    raised = entries_of(getattr(layers, name), "Raises:")
    assert "TypeError" in raised
    assert {error for error in raised if f"`{error}`" not in sections(PAGE)[name]} <= {"TypeError"}
    assert "`TypeError`" in prose(PAGE).partition("## ")[0]


def test_every_public_name_has_an_entry_and_no_other() -> None:
    """What can be imported is described."""
    assert set(sections(PAGE)) - {"microbatch.layers"} == set(layers.__all__)


def test_the_how_tos_table_shows_the_same_calls() -> None:
    """A short form of the signatures: the same names, in order, with the same defaults."""
    table = rows(prose(DOCS / "how-to/layers.md"))[1:]
    assert {row[0].strip("`").partition("(")[0] for row in table} == set(LAYERS)
    for call, _ in table:
        name, _, arguments = call.strip("`").partition("(")
        told = re.findall(r"(\w+)=", arguments)
        settings = [p.name for p in parameters(name).values() if p.default is not REQUIRED]
        assert set(told) - {"by"} == set(settings), name
