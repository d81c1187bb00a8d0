"""atomic: all of a batch or nothing."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from layers_support import echo, told

from microbatch.errors import BatchAborted, Skipped
from microbatch.layers import atomic

pytestmark = pytest.mark.anyio


async def fails_odd(items: list[int]) -> list[Any]:
    return [ValueError(item) if item % 2 else item for item in items]


async def test_one_failed_item_fails_the_batch_and_is_named_to_the_others() -> None:
    """Failed items keep their own errors; the others get BatchAborted, each its own."""
    results = await atomic(fails_odd)([0, 2, 3, 4, 5])
    assert told(results) == [
        "BatchAborted",
        "BatchAborted",
        "ValueError",
        "BatchAborted",
        "ValueError",
    ]
    aborted = results[0]
    assert isinstance(aborted, BatchAborted)
    assert aborted.index == 2
    assert aborted.reason is results[2]
    assert str(aborted) == "the batch was aborted because its item 2 failed: ValueError: 3"
    assert len({id(result) for result in results}) == 5


async def test_a_batch_whose_items_are_fine_or_skipped_is_kept() -> None:
    """Skipped is told apart from failed: a duplicate must not undo the others."""

    async def upsert(items: list[int]) -> list[Any]:
        return [Skipped("duplicate") if item == 1 else item for item in items]

    assert told(await atomic(upsert)([0, 1, 2])) == [0, "Skipped", 2]


class Transaction:
    """Notes how it was entered and left."""

    def __init__(self) -> None:
        self.log: list[str] = []

    @contextlib.asynccontextmanager
    async def __call__(self) -> Any:
        self.log.append("begin")
        try:
            yield
        except Exception as error:
            self.log.append(f"rollback: {type(error).__name__}")
            raise
        self.log.append("commit")


async def test_the_transaction_is_rolled_back_or_committed_around_the_call() -> None:
    """By the BatchAborted, by what the handler raised, or left normally."""
    transaction = Transaction()
    handler = atomic(fails_odd, transaction=transaction)
    assert await handler([0, 2]) == [0, 2]
    await handler([0, 1])

    async def raises(items: list[int]) -> list[int]:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await atomic(raises, transaction=transaction)([1])
    assert transaction.log == [
        "begin",
        "commit",
        "begin",
        "rollback: BatchAborted",
        "begin",
        "rollback: ConnectionError",
    ]


async def test_a_transaction_that_swallows_the_abort_changes_nothing() -> None:
    """The outcomes are decided by the items."""
    handler = atomic(fails_odd, transaction=lambda: contextlib.AsyncExitStack())  # noqa: PLW0108
    assert told(await handler([0, 1])) == ["BatchAborted", "ValueError"]

    @contextlib.asynccontextmanager
    async def swallows() -> Any:
        with contextlib.suppress(Exception):
            yield

    assert told(await atomic(fails_odd, transaction=swallows)([0, 1])) == [
        "BatchAborted",
        "ValueError",
    ]


async def test_a_commit_that_fails_fails_every_item() -> None:
    """Nothing is told before the transaction has ended."""

    @contextlib.asynccontextmanager
    async def refuses() -> Any:
        yield
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        await atomic(fails_odd, transaction=refuses)([0, 2])


async def test_a_handlers_own_batch_aborted_goes_through() -> None:
    """It is not the layer's."""
    own = BatchAborted(0, ValueError())

    async def raises(items: list[int]) -> list[int]:
        raise own

    with pytest.raises(BatchAborted) as caught:
        await atomic(raises)([1])
    assert caught.value is own


def test_atomic_refuses_a_transaction_that_is_no_function() -> None:
    """An open transaction object in its place is an easy mistake."""
    with pytest.raises(TypeError, match="transaction must be a function or None, got 3"):
        atomic(echo, transaction=3)  # type: ignore[call-overload]
