"""What type checkers must infer of the durable mode. Checked by test_typing.py."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, NewType, assert_type

from microbatch import Retry, Telemetry
from microbatch.durable import DeadLetter, DurableBatcher, DurableQueue, Ticket
from microbatch.layers import bisecting, by_key, per_item

if TYPE_CHECKING:
    import sqlite3

    import aiosqlite

OrderId = NewType("OrderId", int)


class Order:
    """An item."""

    number: int


class Parcel:
    """A result."""

    number: int


async def ship(orders: list[Order]) -> list[Parcel]:
    return [Parcel() for _ in orders]


async def some_fail(orders: list[Order]) -> list[Parcel | Exception]:
    return [Parcel() for _ in orders]


async def nothing(orders: list[Order]) -> None: ...


async def any_sequence(orders: list[Order]) -> Sequence[Parcel | Exception]:
    return ()


def plain(orders: list[Order]) -> tuple[int, ...]:
    return tuple(order.number for order in orders)


async def generator(orders: list[Order]) -> AsyncIterator[tuple[int, Parcel | Exception]]:
    for index, _ in enumerate(orders):
        yield index, Parcel()


async def fetch(order: Order) -> bytes:
    return b""


async def find(orders: list[OrderId]) -> list[Parcel]:
    return []


async def words(items: list[int | str]) -> list[int | None]:
    return [None for _ in items]


async def settle(
    connection: aiosqlite.Connection, orders: list[Order], parcels: list[Parcel]
) -> None: ...


async def batchers() -> None:
    durable = DurableBatcher("q.db", ship, item_type=Order, result_type=Parcel, on_settle=settle)
    assert_type(durable, DurableBatcher[Order, Parcel])
    assert_type(await durable.submit(Order(), key="a"), Parcel)
    ticket = await durable.enqueue(Order())
    assert_type(ticket, Ticket)
    assert_type(await durable.result(ticket), Parcel)
    assert_type(await durable.dead_letters(), list[DeadLetter[Order | Any]])
    async with durable as entered:
        assert_type(entered, DurableBatcher[Order, Parcel])


async def kinds() -> None:
    assert_type(DurableBatcher("q.db", ship, item_type=Order), DurableBatcher[Order, Parcel])
    assert_type(DurableBatcher("q.db", some_fail, item_type=Order), DurableBatcher[Order, Parcel])
    assert_type(
        DurableBatcher("q.db", some_fail, item_type=Order, result_type=Parcel, max_batch_size=5),
        DurableBatcher[Order, Parcel],
    )
    assert_type(DurableBatcher("q.db", nothing, item_type=Order), DurableBatcher[Order, None])
    assert_type(
        DurableBatcher("q.db", any_sequence, item_type=Order, retry=Retry(on=OSError)),
        DurableBatcher[Order, Parcel],
    )
    assert_type(DurableBatcher("q.db", plain, item_type=Order), DurableBatcher[Order, int])
    assert_type(DurableBatcher("q.db", generator, item_type=Order), DurableBatcher[Order, Parcel])


class Model:
    """In the manner of pydantic."""

    @classmethod
    def model_validate(cls, value: object) -> Model:
        return cls()

    def model_dump(self) -> dict[str, object]:
        return {}


async def models(items: list[Model]) -> list[Model | Exception]:
    return list(items)


def enc_hook(value: object) -> object:
    return value


def dec_hook(kind: type, value: object) -> object:
    return value


async def types_of_ones_own() -> None:
    durable = DurableBatcher(
        "q.db",
        models,
        item_type=Model,
        result_type=Model,
        enc_hook=enc_hook,
        dec_hook=dec_hook,
        telemetry=Telemetry(on_batch=print),
    )
    assert_type(durable, DurableBatcher[Model, Model])
    assert_type(await durable.submit(Model()), Model)
    assert_type(DurableQueue("q.db", item_type=Model, dec_hook=dec_hook), DurableQueue[Model, Any])


async def layered() -> None:
    assert_type(
        await DurableBatcher("q.db", bisecting(ship), item_type=Order).submit(Order()), Parcel
    )
    assert_type(
        await DurableBatcher("q.db", per_item(fetch), item_type=Order).submit(Order()), bytes
    )
    assert_type(
        await DurableBatcher(
            "q.db", by_key(find, row_key=lambda parcel: parcel.number), item_type=OrderId
        ).submit(OrderId(1)),
        Parcel,
    )


async def odd_types() -> None:
    """Types that are no classes are item and result types too."""
    assert_type(
        await DurableBatcher("q.db", words, item_type=int | str, result_type=int | None).submit(1),
        int | None,
    )
    DurableBatcher("q.db", words, item_type=Annotated[int, 3] | str)
    queue: DurableQueue[Literal["a"], Any] = DurableQueue("q.db", item_type=Literal["a"])
    assert_type(await queue.enqueue("a"), Ticket)


async def queues(connection: sqlite3.Connection, other: aiosqlite.Connection) -> None:
    queue = DurableQueue("q.db", item_type=Order, result_type=Parcel, keep_done=5)
    assert_type(queue, DurableQueue[Order, Parcel])
    assert_type(await queue.submit(Order()), Parcel)
    assert_type(queue.enqueue_in(connection, Order()), Ticket)
    assert_type(queue.enqueue_in(other, Order()), Awaitable[Ticket])
    assert_type(DurableQueue("q.db", item_type=Order), DurableQueue[Order, Any])
    assert_type(DurableQueue("q.db", item_type=dict[str, int]), DurableQueue[dict[str, int], Any])
