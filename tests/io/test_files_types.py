"""What a row may be: pydantic's models, alone and within others, and what can never be a row."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Self

import msgspec
import pydantic
import pytest

from microbatch import ItemError, Outcome
from microbatch.files import read_rows, write_rows
from microbatch.streaming import map_batches

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.anyio, pytest.mark.real_time, pytest.mark.timeout(180)]


class User(pydantic.BaseModel):
    """With an alias, as they come from elsewhere."""

    name: str
    age: int
    active: bool = True
    score: float | None = None
    joined: dt.date | None = pydantic.Field(default=None, alias="joinedOn")
    price: Annotated[Decimal, pydantic.Field(ge=0)] = Decimal(1)


USERS = [
    User(name="Ada", age=36, score=1.5, joinedOn=dt.date(2020, 1, 2), price=Decimal("0.10")),
    User(name='Bo, the "second"', age=7, active=False),
    User(name="", age=0),
]


@pytest.fixture(params=["asyncio"])
def backend_name(request: pytest.FixtureRequest) -> str:
    """What a row becomes does not depend on the loop."""
    return str(request.param)


async def collect(path: Path, *arguments: Any, **options: Any) -> list[Outcome[Any]]:
    return [outcome async for outcome in read_rows(path, *arguments, **options)]


def values(outcomes: list[Outcome[Any]]) -> list[Any]:
    return [outcome.value for outcome in outcomes]


def problems(outcomes: list[Outcome[Any]]) -> list[str]:
    return [str(outcome.error) for outcome in outcomes if outcome.error is not None]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "ndjson", "jsonl.gz"])
async def test_models_come_back_as_they_were(suffix: str, tmp_path: Path) -> None:
    """Written by their aliases, by which they are read; an empty cell is what its field allows."""
    path = tmp_path / f"users.{suffix}"
    assert await write_rows(path, USERS) == 3
    assert values(await collect(path, User)) == USERS


@pytest.mark.parametrize("suffix", ["json", "ndjson"])
async def test_a_strict_model_is_read_as_json_and_not_as_python(
    suffix: str, tmp_path: Path
) -> None:
    """In JSON a date is a string, for a strict model too."""

    class Strict(pydantic.BaseModel, strict=True):
        on: dt.date
        at: dt.datetime

    row = Strict(on=dt.date(2020, 1, 2), at=dt.datetime(2020, 1, 2, 3, tzinfo=dt.UTC))
    path = tmp_path / f"rows.{suffix}"
    await write_rows(path, [row])
    assert values(await collect(path, Strict)) == [row]


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        ("csv", "name,age,price\nAda,36,\nBo,seven,1\nCy,x,-1\nDi,4,\n"),
        (
            "json",
            (
                '[{"name": "Ada", "age": 36},\n{"name": "Bo", "age": "seven"},\n'
                '{"name": "Cy", "age": "x", "price": -1},\n{"name": "Di", "age": 4}]'
            ),
        ),
    ],
)
async def test_a_row_that_the_model_refuses_is_a_bad_row(
    suffix: str, text: str, tmp_path: Path
) -> None:
    """With the first reason and its field, as for a Struct; the others are counted."""
    path = tmp_path / f"users.{suffix}"
    path.write_text(text)
    outcomes = await collect(path, User)
    assert values(outcomes) == [User(name="Ada", age=36), None, None, User(name="Di", age=4)]
    reason = "Input should be a valid integer, unable to parse string as an integer - at `$.age`"
    line = 3 if suffix == "csv" else 2
    assert problems(outcomes) == [
        f"line {line}: {reason}",
        f"line {line + 1}: {reason} (and 1 more)",
    ]
    error = outcomes[1].error
    assert isinstance(error, ItemError)
    assert error.field == "age"
    json.dumps(outcomes[1].as_dict())


async def test_a_model_may_stand_in_another_type(tmp_path: Path) -> None:
    """msgspec asks what it does not know; what fails there is the row's fault."""

    class Group(msgspec.Struct):
        users: list[User]

    path = tmp_path / "groups.ndjson"
    groups = [Group(USERS), Group([])]
    await write_rows(path, groups)
    with path.open("a") as file:
        file.write('{"users": [{"name": "Ada"}]}\n')
    outcomes = await collect(path, Group)
    assert values(outcomes) == [*groups, None]
    assert "Field required" in problems(outcomes)[0]


async def test_anything_that_validates_will_do(tmp_path: Path) -> None:
    """A class with ``model_validate`` and nothing else of pydantic's."""

    class Point:
        def __init__(self, x: int) -> None:
            self.x = x

        @classmethod
        def model_validate(cls, value: Any) -> Self:
            return cls(int(value["x"]))

    for suffix, text in {"csv": "x,y\n1,\nz,\n", "ndjson": '{"x": 1}\n{"x": "z"}\n'}.items():
        path = tmp_path / f"points.{suffix}"
        path.write_text(text)
        outcomes = await collect(path, Point)
        assert outcomes[0].value.x == 1
        assert "invalid literal for int()" in problems(outcomes)[0]


@pytest.mark.parametrize("suffix", ["csv", "json", "ndjson"])
@pytest.mark.parametrize("raised", [KeyError("odd"), RuntimeError("odd"), TypeError("odd")])
async def test_whatever_a_type_raises_costs_its_own_row_alone(
    suffix: str, raised: Exception, tmp_path: Path
) -> None:
    """A validator of one's own may look something up that is not there."""

    class Row(msgspec.Struct):
        a: str

        def __post_init__(self) -> None:
            if self.a == "bad":
                raise raised

    path = tmp_path / f"rows.{suffix}"
    await write_rows(path, [{"a": "1"}, {"a": "bad"}, {"a": "3"}])
    outcomes = await collect(path, Row)
    assert values(outcomes) == [Row("1"), None, Row("3")]
    assert "odd" in problems(outcomes)[0]
    if isinstance(raised, KeyError):
        assert "KeyError: 'odd'" in problems(outcomes)[0]


class Plain:
    """Nothing that msgspec could check or make."""


class Pair(NamedTuple):
    """Made of a list, and never of named cells."""

    x: int


@pytest.mark.parametrize("suffix", ["csv", "json", "ndjson"])
async def test_a_class_that_no_row_can_become_is_refused(suffix: str) -> None:
    """Else every row would be bad, each for the same reason."""
    with pytest.raises(TypeError, match=r"type must be a Struct, .* got <class '.*Plain'>"):
        read_rows(f"rows.{suffix}", Plain)


@pytest.mark.parametrize("type_", [int, str, list[str], Pair])
async def test_a_type_without_named_fields_is_refused_for_csv(type_: Any, tmp_path: Path) -> None:
    """Rows of CSV are mappings; in JSON it is a type like any."""
    with pytest.raises(TypeError, match="type must be what a row with named cells can become, got"):
        read_rows("rows.csv", type_)
    read_rows("rows.json", type_)


async def test_a_union_of_structs_is_a_type_for_csv(tmp_path: Path) -> None:
    """Told apart by the column that is their tag."""

    class Cat(msgspec.Struct, tag="cat"):
        lives: int

    @dataclass
    class Dog:
        kind: str

    path = tmp_path / "rows.csv"
    path.write_text("type,lives\ncat,9\n")
    assert values(await collect(path, Cat | None)) == [Cat(9)]
    path.write_text("kind\nbig\n")
    assert values(await collect(path, Dog)) == [Dog("big")]


async def test_empty_cells_are_what_a_models_fields_allow(tmp_path: Path) -> None:
    """None, the empty string, or the default; without one it is missing; by every name of a column."""

    class Row(pydantic.BaseModel, populate_by_name=True):
        text: Annotated[str, pydantic.Field(max_length=3)]
        maybe: Annotated[int, pydantic.Field(gt=0)] | None
        number: int = 7
        either: Annotated[int | str, pydantic.Field()] = 1
        anything: Any = 1
        named: int | None = pydantic.Field(default=1, validation_alias="Name")

    path = tmp_path / "rows.csv"
    path.write_text("text,maybe,number,either,anything,Name\n,,,,,\n")
    expected = Row(text="", maybe=None, number=7, either="", anything="", named=None)
    assert values(await collect(path, Row)) == [expected]
    path.write_text("text,maybe,number,either,anything,named\n,,,,,\n")
    assert values(await collect(path, Row)) == [expected]


async def test_a_stream_hands_models_on(tmp_path: Path) -> None:
    """From the file to the handler."""
    path = tmp_path / "users.csv"
    await write_rows(path, USERS)

    async def ages(users: list[User]) -> list[int]:
        return [user.age for user in users]

    async with map_batches(read_rows(path, User), ages) as outcomes:
        assert [outcome.value async for outcome in outcomes] == [36, 7, 0]
