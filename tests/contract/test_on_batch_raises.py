"""What on_batch raises, or returns to be awaited, is logged, and harms nobody."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest
from support import Recorder, counted

from microbatch import Batcher, BatchRecord, ItemError, Telemetry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


async def fails(items: list[int]) -> list[int]:
    raise ItemError("no", code="down")


async def yields(items: list[int]) -> AsyncIterator[tuple[int, int | Exception]]:
    yield 1, 1
    yield 0, ItemError("no", code="bad")


class Mine(BaseException):
    """Neither an error nor anything that Python knows."""


async def cancellation() -> BaseException:
    """Return one of earlier: trio's cannot be made by hand."""
    kept: list[BaseException] = []
    with anyio.CancelScope() as scope:
        scope.cancel()
        try:
            await anyio.lowlevel.checkpoint()
        except BaseException as error:
            kept.append(error)
            raise
    return kept[0]


RAISED: dict[str, Any] = {
    "error": ZeroDivisionError,
    "BaseException": Mine,
    "GeneratorExit": GeneratorExit,
    "StopIteration": StopIteration,
    "cancelled": None,
}


@pytest.mark.anyio
@pytest.mark.parametrize("kind", RAISED)
@pytest.mark.parametrize("handler", [Recorder(), fails, yields])
async def test_what_it_raises_is_logged_and_harms_nobody(
    kind: str, handler: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """It is a window, not a part of the machine."""
    calls: list[BatchRecord] = []
    raised = RAISED[kind] or await cancellation()

    def on_batch(record: BatchRecord) -> None:
        calls.append(record)
        raise raised

    async def ends_of(telemetry: Telemetry | None) -> list[str]:
        async with Batcher(handler, name="orders", telemetry=telemetry) as batcher:
            found = [await batcher.submit_many_report([1, 2]) for _ in range(3)]
            assert counted(batcher).pending == 0
        return [repr(outcome) for report in found for outcome in report]

    expected = await ends_of(None)
    caplog.clear()
    assert await ends_of(Telemetry(on_batch=on_batch)) == expected
    assert len(calls) == 3
    (line,) = [record for record in caplog.records if "on_batch" in record.getMessage()]
    assert line.levelno == logging.ERROR
    assert line.getMessage() == "batcher 'orders': on_batch raised; the batch is as it was"
    assert line.exc_info is not None


@pytest.mark.anyio
async def test_its_errors_are_logged_once_in_ten_seconds(caplog: pytest.LogCaptureFixture) -> None:
    """A thousand batches a second must not fill the disk; how many there were is told."""

    def on_batch(record: BatchRecord) -> None:
        raise ZeroDivisionError

    async with Batcher(Recorder(), name="b", telemetry=Telemetry(on_batch=on_batch)) as batcher:
        for _ in range(5):
            await batcher.submit(1)
        await anyio.sleep(10)
        await batcher.submit(1)
        await batcher.submit(1)
        await anyio.sleep(10)
        await batcher.submit(1)
    assert [record.getMessage().partition("; ")[2] for record in caplog.records] == [
        "the batch is as it was",
        "the batch is as it was; before that, 4 times not logged",
        "the batch is as it was; before that, 1 times not logged",
    ]


@pytest.mark.anyio
async def test_an_awaitable_that_it_returns_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    """A partial or a lambda around a coroutine function cannot be seen before."""

    async def send(size: int) -> None:
        raise AssertionError

    async with Batcher(
        Recorder(), telemetry=Telemetry(on_batch=lambda record: send(record.size))
    ) as batcher:
        assert await batcher.submit(1) == 10
    (line,) = caplog.records
    assert line.exc_info is not None
    assert str(line.exc_info[1]) == (
        "what on_batch returned is a coroutine, which nobody awaits: await it first"
    )
