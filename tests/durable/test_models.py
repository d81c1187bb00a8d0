"""Pydantic's models, and what has their two methods, as items and results; hooks for all other classes."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar
from uuid import UUID, uuid4

import msgspec
import pydantic
import pytest
from durable_support import Handler, batcher, until

from microbatch import Outcome
from microbatch.durable import DurableBatcher, DurableQueue, IdempotencyConflict
from microbatch.durable._file.codec import Codec

pytestmark = pytest.mark.anyio
T = TypeVar("T")


class Colour(Enum):
    RED = "red"


class Address(pydantic.BaseModel):
    street: str
    zip_code: str = pydantic.Field(alias="zip", pattern=r"\d+")


class Order(pydantic.BaseModel):
    number: int
    address: Address
    tags: set[str] = set()
    extra: dict[str, Any] = {}


class Everything(pydantic.BaseModel):
    """What a model may hold beside text and numbers."""

    model_config = pydantic.ConfigDict(strict=True)

    at: datetime = datetime(2026, 1, 2, 3, 4, 5, 6, UTC)
    naive: datetime = datetime(2026, 1, 2, 3, 4, 5, 6)  # noqa: DTZ001
    day: date = date(2026, 1, 2)
    span: timedelta = timedelta(days=1, microseconds=1)
    price: Decimal = Decimal("1.10")
    key: UUID = UUID(int=5)
    raw: bytes = b"\xff\x00"
    colour: Colour = Colour.RED
    pair: tuple[int, str] = (1, "a")
    frozen: frozenset[int] = frozenset({1, 2})
    path: Path = Path("/a/b")
    host: ipaddress.IPv4Address = ipaddress.IPv4Address("10.0.0.1")
    url: pydantic.HttpUrl = pydantic.HttpUrl("https://example.org/a")
    many: dict[int, list[Address]] = {1: [Address(street="s", zip="1")]}  # type: ignore[call-arg]


class Page(pydantic.BaseModel, Generic[T]):
    items: list[T]


class Numbers(pydantic.RootModel[list[int]]):
    pass


class Envelope(msgspec.Struct):
    """Of msgspec's own, with models in it."""

    order: Order
    others: list[Order] = []
    by_name: dict[str, Address] = {}
    maybe: Order | None = None


@dataclass
class Line:
    order: Order
    count: int = 1
    again: Line | None = None


class Point:
    """Neither: it has the two methods and nothing of pydantic's."""

    def __init__(self, x: int) -> None:
        self.x = x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and other.x == self.x

    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def model_validate(cls, value: Any) -> Self:
        if not isinstance(value["x"], int):
            raise TypeError("x must be an int")
        return cls(value["x"])

    def model_dump(self) -> dict[str, Any]:
        return {"x": self.x}


def address(street: str = "s", zip_code: str = "1") -> Address:
    return Address.model_validate({"street": street, "zip": zip_code})


def order(number: int = 1) -> Order:
    return Order(number=number, address=address(), tags={"a", "b"}, extra={"a": [1, None]})


VALUES: dict[str, tuple[Any, Any]] = {
    "model": (Order, order()),
    "everything": (Everything, Everything()),
    "generic": (Page[Order], Page[Order](items=[order()])),
    "root": (Numbers, Numbers([1, 2])),
    "list": (list[Order], [order(1), order(2)]),
    "optional": (Order | None, order()),
    "none": (Order | None, None),
    "struct": (Envelope, Envelope(order(), [order(2)], {"a": address()}, order(3))),
    "dataclass": (Line, Line(order(), 2, Line(order()))),
    "duck": (Point, Point(3)),
    "duck in a struct": (dict[str, Point], {"a": Point(3)}),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_model_reads_back_equal(name: str) -> None:
    """Wherever it stands, whatever it holds."""
    kind, value = VALUES[name]
    codec: Codec[Any] = Codec(kind, "item_type")
    payload, stored = codec.encode(value)
    assert stored == value
    assert type(stored) is type(value)
    assert codec.decode(payload) == value
    assert codec.same(payload, codec.encode(value)[0])


async def test_items_and_results_are_models(path: Path) -> None:
    """The way of a user: models in, models to the handler, models out, also after a restart."""

    async def ship(orders: list[Order]) -> list[Address | Exception]:
        assert all(type(one) is Order for one in orders)
        return [one.address for one in orders]

    async with DurableBatcher(path, ship, item_type=Order, result_type=Address) as durable:
        assert await durable.submit(order()) == address()
        ticket = await durable.enqueue(order(2), key="k")
        assert await durable.result(ticket) == address()
    queue = DurableQueue(path, item_type=Order, result_type=Address)
    async with queue:
        assert await queue.result(ticket) == address()


async def test_a_model_without_a_result_type_reads_back_as_built_in_values(path: Path) -> None:
    """As every other type does."""

    async def handler(numbers: list[int]) -> list[Any]:
        return [order(number) for number in numbers]

    async with batcher(path, handler, result_type=None) as durable:
        stored = await durable.submit(3)
    assert stored["number"] == 3
    assert stored["address"] == {"street": "s", "zip_code": "1"}


async def test_a_wrong_field_is_refused_at_enqueue_by_name(path: Path) -> None:
    """Nothing is stored; the values stay out of the message."""
    wrong = order()
    wrong.number = "secret"  # type: ignore[assignment]
    wrong.address.zip_code = "hunter"
    async with DurableQueue(path, item_type=Envelope) as queue:
        with pytest.raises(ValueError, match="Envelope does not read back as Envelope: ") as caught:
            await queue.enqueue(Envelope(order(), [wrong]))
        assert (await queue.stats()).depth == 0
    said = str(caught.value)
    assert "number: Input should be a valid integer" in said
    assert re.search(r"; address\.zip(_code)?: String should match pattern", said)
    assert "`$.others[0]`" in said
    assert "secret" not in said
    assert "hunter" not in said


async def test_a_dict_is_validated_as_a_model_too(path: Path) -> None:
    """What came in a request may be handed on as it is, by alias."""
    async with DurableQueue(path, item_type=Order) as queue:
        await queue.enqueue({"number": 1, "address": {"street": "s", "zip": "1"}})  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="address: Field required"):
            await queue.enqueue({"number": 1})  # type: ignore[arg-type]


def test_many_wrong_fields_are_counted() -> None:
    """A message of bounded length."""
    codec: Codec[Any] = Codec(Numbers, "item_type")
    with pytest.raises(
        ValueError, match=r"9: Input should be .*; and 40 more - at `\$`|; and 40 more"
    ):
        codec.encode(Numbers.model_construct(["x"] * 50))  # type: ignore[arg-type]


class Noted(pydantic.BaseModel):
    name: str
    tags: set[str] = set()
    _seen: UUID = pydantic.PrivateAttr(default_factory=uuid4)


class Plain(pydantic.BaseModel):
    name: str
    size: int = 5


async def test_equal_keys_with_equal_models_are_one_item(path: Path) -> None:
    """Private attributes, the order of a set and defaults are no difference."""
    async with DurableQueue(path, item_type=Noted, queue="noted") as noted:
        first = await noted.enqueue(Noted(name="a", tags={"a", "b", "c"}), key="k")
        assert await noted.enqueue(Noted(name="a", tags={"c", "b", "a"}), key="k") == first
        with pytest.raises(IdempotencyConflict):
            await noted.enqueue(Noted(name="b"), key="k")
    async with DurableQueue(path, item_type=dict, queue="grown") as before:
        first = await before.enqueue({"name": "a"}, key="k")
    async with DurableQueue(path, item_type=Plain, queue="grown") as after:
        assert await after.enqueue(Plain(name="a"), key="k") == first
        with pytest.raises(IdempotencyConflict):
            await after.enqueue(Plain(name="a", size=6), key="k")


class Secret(pydantic.BaseModel):
    word: pydantic.SecretStr


def test_a_secret_is_refused_and_not_replaced_by_stars() -> None:
    """The handler would log in with them."""
    codec: Codec[Any] = Codec(Secret, "item_type")
    with pytest.raises(TypeError, match=r"cannot encode Secret for the disk: .* type SecretStr "):
        codec.encode(Secret(word=pydantic.SecretStr("x")))

    def open_secret(value: Any) -> Any:
        if isinstance(value, pydantic.SecretStr):
            return value.get_secret_value()
        raise NotImplementedError

    codec = Codec(Secret, "item_type", open_secret)
    _, stored = codec.encode(Secret(word=pydantic.SecretStr("x")))
    assert stored.word.get_secret_value() == "x"


class Aliased(pydantic.BaseModel):
    one: int = pydantic.Field(validation_alias="eins")
    two: int = pydantic.Field(serialization_alias="zwei")
    both: int = pydantic.Field(alias="beide")


def test_fields_with_aliases_of_whatever_kind_read_back() -> None:
    """A name to read by may not be the name to write by."""
    value = Aliased.model_validate({"eins": 1, "two": 2, "beide": 3})
    assert Codec(Aliased, "item_type").encode(value)[1] == value


# --- hooks ------------------------------------------------------------------------------------------------------


class Money:
    """Of the user's own, which nobody knows."""

    def __init__(self, cents: int) -> None:
        self.cents = cents

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Money) and other.cents == self.cents

    __hash__ = None  # type: ignore[assignment]


@dataclass
class Bill:
    total: Money
    orders: list[Order] = field(default_factory=list)


def enc_hook(value: Any) -> Any:
    if isinstance(value, Money):
        return value.cents
    raise NotImplementedError


def dec_hook(kind: type, value: Any) -> Any:
    if kind is Money:
        return Money(value)
    raise NotImplementedError


async def test_hooks_go_to_msgspec(path: Path) -> None:
    """Beside models, for items and for results."""

    async def handler(bills: list[Bill]) -> list[Money]:
        return [Money(bill.total.cents + len(bill.orders)) for bill in bills]

    async with DurableBatcher(
        path, handler, item_type=Bill, result_type=Money, enc_hook=enc_hook, dec_hook=dec_hook
    ) as durable:
        assert await durable.submit(Bill(Money(5), [order()])) == Money(6)
        ticket = await durable.enqueue(Bill(Money(7)), key="k")
        assert await durable.enqueue(Bill(Money(7)), key="k") == ticket
        with pytest.raises(IdempotencyConflict):
            await durable.enqueue(Bill(Money(8)), key="k")


async def test_what_a_hook_raises_is_one_items_fault(path: Path) -> None:
    """As everything that a user's type does."""
    handler = Handler()
    refused: list[str] = []

    def picky(value: Any) -> Any:
        if value.cents < 0:
            raise KeyError("below 0")
        return value.cents

    def picky_back(kind: type, value: Any) -> Any:
        if value > 100:
            raise KeyError("too much")
        return Money(value)

    async def count(bills: list[Money]) -> list[int]:
        return await handler([bill.cents for bill in bills])  # type: ignore[no-any-return]

    async with DurableBatcher(
        path, count, item_type=Money, result_type=int, enc_hook=picky, dec_hook=picky_back
    ) as durable:
        for cents in (-1, 200):
            with pytest.raises((TypeError, ValueError)) as caught:
                await durable.enqueue(Money(cents))
            refused.append(str(caught.value))
        assert await durable.submit(Money(4)) == 8
    assert refused == [
        "cannot encode Money for the disk: 'below 0'",
        "Money does not read back as Money: 'too much'",
    ]


def test_what_a_hook_does_not_know_goes_the_usual_way() -> None:
    """It says so as msgspec's own hooks do."""
    codec: Codec[Any] = Codec(object, "item_type", enc_hook, dec_hook)
    assert codec.encode(Path("/a")) == (msgspec.msgpack.encode("/a"), "/a")
    with pytest.raises(TypeError, match="Encoding objects of type complex is unsupported"):
        codec.encode(1j)
    plan: Codec[Any] = Codec(complex, "item_type", lambda value: [value.real], dec_hook)
    with pytest.raises(ValueError, match="Expected `complex`, got `list`"):
        plan.encode(1j)


class Speaks(Protocol):
    def speak(self) -> str: ...


class Box(Generic[T]):
    """No model, and no class once it has its type."""


class Plan(msgspec.Struct):
    where: dict[str, list[Money]]


class Recursive(msgspec.Struct):
    inner: Recursive | None = None


@pytest.mark.parametrize("setting", ["item_type", "result_type"])
@pytest.mark.parametrize(
    ("kind", "name"),
    [(Money, "Money"), (list[Money], "Money"), (Plan, "Money"), (Bill, "Money"), (Path, "Path"), (complex, "complex"), (Speaks, "Speaks"), (Box[int], "Box")],
)  # fmt: skip
def test_a_type_that_cannot_be_read_back_is_refused_by_name(
    path: Path, setting: str, kind: Any, name: str
) -> None:
    """In the constructor, not with each item."""
    types: Any = {"item_type": int, "result_type": int} | {setting: kind}
    with pytest.raises(TypeError) as caught:
        DurableQueue(path, **types)
    assert str(caught.value) == (
        f"{setting} must be a type that msgspec can decode, got {kind!r}: nothing makes a {name} of what "
        "was stored; give it model_validate and model_dump, or give dec_hook"
    )


def test_types_that_need_nothing_are_taken() -> None:
    """The check must not refuse what worked."""
    for kind in (object, Any, Recursive, Line, dict, list[int], "int".__class__, msgspec.Raw):
        Codec(kind, "item_type")
    assert Codec(object, "item_type").encode(5)[1] == 5


@pytest.mark.parametrize("setting", ["enc_hook", "dec_hook"])
def test_a_hook_must_be_a_function(path: Path, setting: str) -> None:
    """By name, at once."""
    wrong: Any = {setting: 5}
    with pytest.raises(TypeError, match=rf"^{setting} must be a function or None, got 5$"):
        DurableQueue(path, item_type=int, **wrong)
    with pytest.raises(TypeError, match=rf"^{setting} must be a function or None, got 5$"):
        DurableBatcher(path, Handler(), item_type=int, **wrong)


async def test_a_model_that_no_longer_validates_is_a_dead_letter(path: Path) -> None:
    """The type changed under the items; what is shown is what was stored."""
    async with DurableQueue(path, item_type=dict) as old:
        await old.enqueue({"name": "a", "size": "big"})
    handler = Handler()
    async with batcher(path, handler, item_type=Plain) as durable:
        (dead,) = [letter async for letter in _dead(durable)]
    assert "size: Input should be a valid integer" in dead.error.message
    assert dead.item == {"name": "a", "size": "big"}
    assert handler.batches == []


async def _dead(durable: Any) -> Any:
    await until(durable.dead_letters)
    for letter in await durable.dead_letters():
        yield letter


def test_what_is_stored_is_readable_by_others(path: Path) -> None:
    """MessagePack with field names: no class is named in it, nothing of Python's."""
    payload, _ = Codec(Order, "item_type").encode(order())
    stored = msgspec.msgpack.decode(payload)
    assert stored["address"] == {"street": "s", "zip_code": "1"}
    assert sorted(stored["tags"]) == ["a", "b"]


def test_an_outcome_shows_models_as_json_does() -> None:
    """By alias, secrets covered: this leaves the house."""
    shown = Outcome(0, True, {"a": [order()], "p": Secret(word=pydantic.SecretStr("x"))}).as_dict()
    assert shown["value"]["a"][0]["address"] == {"street": "s", "zip": "1"}
    assert shown["value"]["p"] == {"word": "**********"}
    assert msgspec.json.encode(Outcome(0, True, Everything()).as_dict())
    assert Outcome(0, True, Point(3)).as_dict()["value"] == {"x": 3}
