"""docs/reference/files-and-streams.md against the code: signatures, defaults, formats, limits."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from typing import Any

import pytest
from pages_support import REFERENCE, documented, prose, rows, sections

from microbatch import files, streaming
from microbatch._io import finding, reading, writing
from microbatch._io.sources import SECONDS_TO_CLOSE

PAGE = REFERENCE / "files-and-streams.md"
FUNCTIONS = {
    "read_rows": files.read_rows,
    "write_rows": files.write_rows,
    "map_batches": streaming.map_batches,
}


@pytest.mark.parametrize("name", [*files.__all__, *streaming.__all__])
def test_every_public_name_has_an_entry(name: str) -> None:
    """What can be imported is described."""
    assert name in sections(PAGE)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_documented_arguments_and_defaults_are_the_codes(name: str) -> None:
    """In the table and in the line that shows the call."""
    code = inspect.signature(FUNCTIONS[name]).parameters
    defaults = {
        name: "required" if p.default is p.empty else f"`{p.default!r}`".replace("'", '"')
        for name, p in code.items()
    }
    assert documented(PAGE, name) == defaults
    call = " ".join(sections(PAGE)[name].strip().split("`")[1].split())
    shown = re.fullmatch(rf"(?:await )?{name}\((.*)\)", call)
    assert shown is not None
    assert call.startswith("await ") == inspect.iscoroutinefunction(FUNCTIONS[name])
    arguments: Any = ast.parse(f"def f({shown[1]}): ...").body[0]
    kinds = {p.arg: p for p in [*arguments.args.args, *arguments.args.kwonlyargs]}
    assert list(kinds) == list(code)
    only = [p.arg for p in arguments.args.kwonlyargs]
    assert only == [name for name, p in code.items() if p.kind is p.KEYWORD_ONLY]
    values = [*arguments.args.defaults, *arguments.args.kw_defaults]
    given = [p.default for p in code.values() if p.default is not p.empty]
    assert [ast.literal_eval(value) for value in values] == given


def test_documented_options_are_the_ones_of_the_overloads() -> None:
    """What a type checker accepts is what the page names."""
    named = list(streaming.Options.__annotations__)
    assert named == [name for name in documented(PAGE, "map_batches") if name not in {"source", "handler"}]  # fmt: skip


def test_documented_fields_of_progress_are_the_codes() -> None:
    """And its properties stand below them."""
    table = documented(PAGE, "Progress")
    fields = {
        field.name: f"`{field.default!r}`" for field in dataclasses.fields(streaming.Progress)
    }
    assert table == fields
    properties = {
        name for name, value in vars(streaming.Progress).items() if isinstance(value, property)
    }
    assert properties <= set(re.findall(r"`(\w+)`", sections(PAGE)["Progress"]))


def test_documented_formats_are_the_ones_that_are_known() -> None:
    """In the order in which an error names them."""
    names = [row[0].strip('`"') for row in rows(sections(PAGE)["Formats"])[1:]]
    known = ", ".join([*names, *(f"{name}.gz" for name in names)])
    with pytest.raises(ValueError, match=f"known are {known}$"):
        files.read_rows("rows.xml")


def test_documented_limits_are_the_codes() -> None:
    """A limit that the page has wrong is found out with the largest file."""
    figures = {row[0]: row[1] for row in rows(sections(PAGE)["Limits"])[1:]}
    assert figures["a row"].startswith(f"{finding.ROW_LENGTH_MAX:,} characters")
    assert figures["read at a time"].startswith(f"{reading.BLOCK_BYTES:,} bytes")
    assert figures["written at a time"] == f"{writing.ROWS_AT_A_TIME:,} rows"
    text = " ".join(prose(PAGE).split())
    assert f"its first {finding.SHOWN_OF_LONG_ROWS:,} characters" in text
    assert f"given up after {SECONDS_TO_CLOSE:.0f} seconds" in text
