"""docs/reference/http.md against the code: settings, routes, statuses, fields."""

from __future__ import annotations

import ast
import inspect
from typing import Any

import anyio
import httpx
import msgspec
import pytest
from pages_support import REFERENCE, documented, parameters, rows, sections

from microbatch.http import BatchAPI, Principal
from microbatch.http._options import BatchOptions
from microbatch.http._results import BatchSummary, ItemFault, ItemRecord
from microbatch.http._statuses import STATUS

PAGE = REFERENCE / "http.md"


@pytest.mark.parametrize(
    ("title", "function"), [("BatchAPI", BatchAPI), ("collection", BatchAPI.collection)]
)
def test_documented_settings_of_an_api_are_the_codes(title: str, function: Any) -> None:
    """Names, order and defaults."""
    table, code = documented(PAGE, title), parameters(function)
    assert list(table) == list(code)
    for name, cell in table.items():
        default = code[name].default
        if cell == "required":
            assert default is inspect.Parameter.empty, name
        elif cell == "`str`":
            assert default is str, name
        else:
            assert ast.literal_eval(cell.strip("`")) == default, name


def test_every_setting_of_an_api_is_explained_in_its_docstring() -> None:
    """An editor shows the same as the page."""
    for function in (BatchAPI, BatchAPI.collection):
        text = inspect.cleandoc(function.__doc__ or "")
        for name in parameters(function):
            assert f"    {name}: " in text, name


def test_the_card_of_statuses_is_the_codes_table() -> None:
    """What a client looks up is what it gets."""
    table = rows(sections(PAGE)["Statuses of items"])[1:]
    assert {cells[0].strip("`"): int(cells[1]) for cells in table} == STATUS


def test_the_card_of_an_answer_has_every_field() -> None:
    """In the order in which they come."""
    text = sections(PAGE)["The answer to a batch"]
    records, faults = text.split("An error:")
    assert [cells[0].strip("`") for cells in rows(records)[1:]] == list(
        ItemRecord.__struct_fields__
    )
    assert [cells[0].strip("`") for cells in rows(faults)[1:]] == list(ItemFault.__struct_fields__)
    for name in BatchSummary.__struct_fields__:
        assert f"`{name}`" in faults, name


def test_the_documented_options_are_the_codes() -> None:
    """With their defaults, as they stand in JSON."""
    fields = {field.encode_name: field.default for field in msgspec.structs.fields(BatchOptions)}
    shown = {
        name: msgspec.json.decode(cell.strip("`"))
        for name, cell in documented(PAGE, "Options").items()
    }
    assert shown == fields


def test_every_documented_route_is_there_and_every_route_is_documented() -> None:
    """Of a collection that has all but a queue and an export."""

    async def authorize(request: Any) -> Principal:
        return Principal("ann")

    async def echo(items: list[Any]) -> list[Any]:
        return items

    class User(msgspec.Struct):
        name: str

    api = BatchAPI(authorize=authorize)
    api.collection("users", item_type=User, create=echo, update=echo, delete=echo, read=echo)
    table = {cells[0].strip("`") for cells in rows(sections(PAGE)["Routes"])[1:]}

    async def ask() -> Any:
        transport = httpx.ASGITransport(api)
        async with api, httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return (await client.get("/openapi.json")).json()["paths"]

    paths = anyio.run(ask)
    assert table == {f"{method.upper()} {path}" for path in paths for method in paths[path]}
