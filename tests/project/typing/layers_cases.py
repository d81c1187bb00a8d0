"""What type checkers must infer of layers, streams and files. Checked by test_typing.py."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import TYPE_CHECKING, Any, assert_type

from microbatch import Batcher, Outcome
from microbatch.files import read_rows, write_rows
from microbatch.layers import (
    atomic,
    bisecting,
    by_key,
    in_process,
    per_item,
    rate_limited,
    routed,
    validated,
)
from microbatch.streaming import Progress, map_batches

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence


class Row:
    """An item."""

    key: int


async def lengths(items: list[str]) -> list[int]:
    return [len(item) for item in items]


async def some_fail(items: list[str]) -> list[int | Exception]:
    return [len(item) if item else ValueError() for item in items]


async def nothing(items: list[Row]) -> None: ...


def plain(items: list[str]) -> Sequence[bytes]:
    return [item.encode() for item in items]


def plain_nothing(items: list[Row]) -> None: ...


async def find(items: list[int]) -> dict[int, Row]:
    return {item: Row() for item in items}


async def select(items: list[Row]) -> list[tuple[int, str]]:
    return [(item.key, "") for item in items]


async def rows(items: list[int]) -> list[Row]:
    return [Row() for _ in items]


def key_of(row: Row) -> int:
    return row.key


def made_up(key: int) -> Row:
    return Row()


async def fetch(item: str) -> bytes:
    return item.encode()


def check(item: str) -> None: ...


def begin() -> AbstractAsyncContextManager[None]:
    return nullcontext()


def weight(item: str) -> float:
    return len(item)


async def results() -> None:
    assert_type(await bisecting(lengths)(["a"]), list[int | Exception])
    assert_type(await bisecting(some_fail, isolate_on=ValueError)(["a"]), list[int | Exception])
    assert_type(await bisecting(nothing)([Row()]), list[Exception | None])
    assert_type(await bisecting(plain)(["a"]), list[bytes | Exception])
    assert_type(await bisecting(plain_nothing)([Row()]), list[Exception | None])
    assert_type(await rate_limited(lengths, 10, burst=5, cost=weight)(["a"]), list[int | Exception])
    assert_type(await atomic(some_fail, transaction=begin)(["a"]), list[int | Exception])
    assert_type(await validated(plain, check, mode="reject")(["a"]), list[bytes | Exception])
    assert_type(await per_item(fetch)(["a"]), list[bytes | Exception])
    assert_type(await by_key(find)([1]), list[Row | Exception])
    assert_type(
        await by_key(select, key=lambda row: row.key, row_key=lambda found: found[0])([Row()]),
        list[tuple[int, str] | Exception],
    )
    assert_type(await routed({"a": lengths, "b": lengths}, by=str)(["a"]), list[int | Exception])
    async with in_process(plain, workers=2) as handler:
        assert_type(await handler(["a"]), list[bytes | Exception])
    assert_type(await in_process(plain_nothing)([Row()]), list[Exception | None])


async def batchers() -> None:
    assert_type(await Batcher(bisecting(lengths)).submit("a"), int)
    assert_type(await Batcher(bisecting(nothing)).submit(Row()), None)
    assert_type(await Batcher(validated(rate_limited(plain, 1), check)).submit("a"), bytes)
    assert_type(await Batcher(per_item(fetch)).submit("a"), bytes)
    assert_type(await Batcher(by_key(find)).submit(1), Row)
    assert_type(await Batcher(by_key(rows, row_key=lambda row: row.key)).submit(1), Row)
    assert_type(await Batcher(by_key(rows, row_key=key_of), max_batch_size=5).submit(1), Row)
    assert_type(await Batcher(bisecting(by_key(rows, row_key=key_of))).submit(1), Row)
    assert_type(
        await Batcher(by_key(select, key=key_of, row_key=lambda row: row[0])).submit(Row()),
        tuple[int, str],
    )
    assert_type(await Batcher(by_key(find, missing=None)).submit(1), Row | None)
    assert_type(await Batcher(by_key(rows, row_key=key_of, missing=None)).submit(1), Row | None)
    assert_type(await Batcher(by_key(find, missing=made_up)).submit(1), Row)
    assert_type(await by_key(find, missing=str)([1]), list[Row | str | Exception])
    assert_type(await Batcher(routed({"a": lengths}, by=str)).submit("a"), int)
    assert_type(await Batcher(in_process(plain)).submit("a"), bytes)
    assert_type(await Batcher(atomic(bisecting(some_fail))).submit_many(["a"]), list[int])


async def numbers() -> AsyncIterator[str]:
    yield ""


def good(outcomes: list[Outcome[str]]) -> Iterator[Outcome[str]]:
    yield from outcomes


async def streams(batcher: Batcher[str, int]) -> None:
    async with map_batches(["a"], lengths) as outcomes:
        assert_type(outcomes.progress, Progress)
        async for outcome in outcomes:
            assert_type(outcome, Outcome[int])
    async with map_batches(numbers(), some_fail, ordered=False) as others:
        assert_type([outcome async for outcome in others], list[Outcome[int]])
    async with map_batches(iter([Row()]), nothing) as nones:
        assert_type([outcome async for outcome in nones], list[Outcome[None]])
    async with map_batches(["a"], plain) as encoded:
        assert_type([outcome async for outcome in encoded], list[Outcome[bytes]])
    async with map_batches(["a"], batcher, max_batch_size=10) as fed:
        assert_type([outcome async for outcome in fed], list[Outcome[int]])
    async with map_batches(["a"], validated(lengths, check)) as checked:
        assert_type([outcome async for outcome in checked], list[Outcome[int]])
    async with map_batches([1], by_key(rows, row_key=lambda row: row.key)) as found:
        assert_type([outcome async for outcome in found], list[Outcome[Row]])
    async with map_batches(good([]), lengths) as passed:
        assert_type([outcome async for outcome in passed], list[Outcome[int]])
    async with map_batches(read_rows("rows.csv", Row), nothing) as written:
        assert_type([outcome async for outcome in written], list[Outcome[None]])


async def files() -> None:
    assert_type(read_rows("rows.csv", Row), AsyncGenerator[Outcome[Row], None])
    assert_type(read_rows("rows.csv", format="csv"), AsyncGenerator[Outcome[Any], None])
    assert_type(await write_rows("rows.csv", [{"a": 1}]), int)
    async with map_batches(["a"], lengths) as outcomes:
        await write_rows("rows.ndjson", outcomes)
