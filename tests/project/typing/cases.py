"""What type checkers must infer: the result of ``submit`` follows the handler's. Checked by test_typing.py."""

from __future__ import annotations

from contextvars import Context
from typing import TYPE_CHECKING, assert_type

from microbatch import (
    AdaptiveSize,
    Batcher,
    BatcherStats,
    BatchInfo,
    BatchReport,
    Outcome,
    Pending,
    Retry,
    batch_info,
    batched,
    current_batch,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence


class Row:
    """An item."""


async def lengths(items: list[str]) -> list[int]:
    return [len(item) for item in items]


async def some_fail(items: list[str]) -> list[int | Exception]:
    return [len(item) if item else ValueError() for item in items]


async def any_sequence(items: list[str]) -> Sequence[bytes]:
    return tuple(item.encode() for item in items)


async def nothing(items: list[Row]) -> None: ...


def plain(items: list[str]) -> list[float]:
    return [1.0 for _ in items]


def plain_nothing(items: list[Row]) -> None: ...


async def generator(items: list[str]) -> AsyncIterator[tuple[int, int]]:
    for index, item in enumerate(items):
        yield index, len(item)


async def failing_generator(items: list[str]) -> AsyncIterator[tuple[int, int | Exception]]:
    for index, item in enumerate(items):
        yield index, len(item) if item else ValueError()


class Service:
    """Handlers are methods, too."""

    async def many(self, items: list[str]) -> list[int]:
        return [len(item) for item in items]

    def plain(self, items: list[str]) -> list[int]:
        return [len(item) for item in items]

    async def __call__(self, items: list[Row]) -> list[str]:
        return ["" for _ in items]


async def functions() -> None:
    batcher = Batcher(lengths, max_batch_size=10)
    assert_type(batcher, Batcher[str, int])
    assert_type(await batcher.submit("a"), int)
    assert_type(await batcher.submit("a", priority=1), int)
    assert_type(batcher.submit_nowait("a"), Pending[int])
    assert_type(await batcher.submit_nowait("a"), int)
    assert_type(await batcher.submit_many(["a"]), list[int])
    assert_type(await batcher.submit_many(iter("ab")), list[int])
    report = await batcher.submit_many_report(["a"])
    assert_type(report, BatchReport[int])
    assert_type(report[0], Outcome[int])
    assert_type(report[0].value, int | None)
    assert_type(report[0].unwrap(), int)
    assert_type(report.values(), list[int])
    assert_type(batcher.submit_from_thread("a", 1.0), int)
    assert_type(batcher.stats(), BatcherStats)
    assert_type(await batcher.flush(), None)
    assert_type(await batcher.aclose(drain_timeout=1.0), None)
    async with batcher as entered:
        assert_type(entered, Batcher[str, int])


async def kinds() -> None:
    assert_type(await Batcher(some_fail).submit("a"), int)
    assert_type(await Batcher(any_sequence).submit("a"), bytes)
    assert_type(await Batcher(plain).submit("a"), float)
    assert_type(await Batcher(generator).submit("a"), int)
    assert_type(await Batcher(failing_generator).submit("a"), int)
    service = Service()
    assert_type(await Batcher(service.many).submit("a"), int)
    assert_type(await Batcher(service.plain).submit("a"), int)
    assert_type(await Batcher(service).submit(Row()), str)


async def none() -> None:
    assert_type(Batcher(nothing), Batcher[Row, None])
    assert_type(Batcher(plain_nothing), Batcher[Row, None])
    assert_type(Batcher(nothing).submit_nowait(Row()), Pending[None])
    assert_type(await Batcher(nothing).submit_many([Row()]), list[None])


def settings() -> None:
    Batcher(
        lengths,
        max_batch_size=AdaptiveSize(1, 10),
        max_wait=1,
        max_pending=None,
        on_full="reject",
        weigh=len,
        max_batch_weight=100,
        partition=lambda item: item[0],
        coalesce=lambda item: item.lower(),
        retry=Retry(on=ConnectionError),
        handler_timeout=5,
        name="typed",
    )
    Retry(on=(ConnectionError, TimeoutError), attempts=2)
    Retry(on=lambda error: isinstance(error, OSError))


def inside() -> None:
    batch = current_batch()
    assert_type(batch, BatchInfo | None)
    if batch is not None:
        assert_type(batch.size, int)
        assert_type(batch.contexts, tuple[Context, ...] | None)
        batch.resolve(0, "result")
    assert_type(batch_info(), BatchInfo)
    assert_type(batch_info().size, int)


@batched(max_batch_size=10)
async def lookup(items: list[str]) -> list[int]:
    return [len(item) for item in items]


@batched()
async def write(items: list[Row]) -> None: ...


@batched()
def compute(items: list[str]) -> list[int | Exception]:
    return [len(item) for item in items]


@batched()
async def stream(items: list[str]) -> AsyncIterator[tuple[int, bytes]]:
    for index, item in enumerate(items):
        yield index, item.encode()


class Repository:
    """Each instance has a batcher of its own."""

    @batched(max_wait=0.01)
    async def get(self, items: list[int]) -> list[str]:
        return [str(item) for item in items]

    @batched()
    async def put(self, items: list[str]) -> None: ...

    @batched()
    def compute(self, items: list[int]) -> list[float]:
        return [1.0 for _ in items]


async def decorated() -> None:
    assert_type(await lookup("a"), int)
    assert_type(await lookup("a", priority=2), int)
    assert_type(lookup.batcher, Batcher[str, int])
    assert_type(await lookup.batcher.submit_many(["a"]), list[int])
    assert_type(await write.batcher.submit_many([Row()]), list[None])
    assert_type(await compute("a"), int)
    assert_type(await stream("a"), bytes)
    async with lookup:
        pass
    await lookup.aclose()
    repository = Repository()
    assert_type(await repository.get(1), str)
    assert_type(repository.get.batcher, Batcher[int, str])
    assert_type(repository.put.batcher, Batcher[str, None])
    assert_type(await repository.compute(1), float)
    await repository.get.aclose()
