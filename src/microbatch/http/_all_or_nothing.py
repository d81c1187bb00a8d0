"""Atomic batches: the handlers are called directly, in one transaction, apart from the shared batchers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from microbatch._core import info
from microbatch._core.batcher import Batcher
from microbatch._core.bulk import bulk
from microbatch._pure.copying import copy_exception
from microbatch._pure.exceptions import (
    BatchAborted,
    BatcherClosed,
    BatcherFull,
    HandlerTimeout,
    Skipped,
)
from microbatch._pure.handler import handler_kind
from microbatch.layers import atomic
from microbatch.layers._withheld import without_batcher

from ._problem import Problem
from ._running import calls_of, not_begun

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ._operations import Operation
    from ._options import BatchOptions
    from ._settings import APISettings


class _Whole:
    """One atomic batch, on its way."""

    __slots__ = ("calls", "key", "operations", "transaction")

    def __init__(
        self,
        operations: Sequence[Operation],
        calls: list[list[Operation]],
        transaction: Callable[[], Any],
        key: str | None,
    ) -> None:
        self.operations = operations
        self.calls = calls
        self.transaction = transaction
        self.key = key


def transaction_of(operations: Sequence[Operation]) -> Callable[[], Any]:
    """Return the factory of transactions that all collections of a batch have, which is of one item at least.

    Raises:
        Problem: 422 if they have none, or not the same, or an operation has no bulk handler of its own.
    """
    factories: list[Callable[[], Any]] = []
    for one in operations:
        if one.collection is None or one.kind is None:
            continue  # it has failed, and so has the batch
        factory = one.collection.settings.atomic
        handler = one.collection.settings.handlers.get(one.kind)
        if factory is None or handler is None:
            raise _not_available(f"collection {one.collection.name} has no transactions")
        if isinstance(handler, Batcher) or handler_kind(handler) == "generator":
            raise _not_available(f"{one.collection.name}.{one.kind} cannot join a transaction")
        if factories and factory != factories[0]:
            raise _not_available("its collections have no transaction in common")
        factories.append(factory)
    if not factories:
        raise _not_available("it names no collection that has transactions")
    return factories[0]


def _not_available(why: str) -> Problem:
    return Problem(422, f"this batch cannot be atomic: {why}", type="atomic-not-available")


def atomic_batcher(settings: APISettings) -> Batcher[Any, Any]:
    """Make what runs atomic batches: each is one item, and a call of its own.

    So they have all that a batcher gives to a handler: a time limit, bounds on how many run and wait, an end
    that is waited for; and whatever a handler raises is caught.
    """
    return Batcher(
        _run_wholes,
        max_batch_size=1,
        max_concurrency=4,
        weigh=lambda whole: len(whole.operations),
        max_pending_weight=10 * settings.max_items,
        on_full="reject",
        handler_timeout=settings.timeout,
        name="http.atomic",
    )


async def run_atomic(
    batcher: Batcher[Any, Any],
    operations: Sequence[Operation],
    options: BatchOptions,
    key: str | None,
) -> None:
    """Run operations in one transaction, and put what became of each into it.

    Args:
        batcher: That of `atomic_batcher`.
        operations: All of the request. If one has an error none is tried.
        options: ``ordered`` counts.
        key: The request's idempotency key, or None.

    Raises:
        Problem: 422 if there is no such transaction; 503 without room; 504 if it took longer than
            ``timeout``, and was rolled back.
    """
    transaction = transaction_of(operations)
    failed = next((one for one in operations if one.error is not None), None)
    if failed is not None:
        assert failed.error is not None  # noqa: S101 - that is how it was found
        for one in operations:
            one.error = one.error or BatchAborted(failed.index, failed.error)
        return
    calls = calls_of(operations, ordered=options.ordered)
    try:
        results = await batcher.submit(_Whole(operations, calls, transaction, key))
    except (BatcherFull, BatcherClosed) as error:
        if isinstance(error, BatcherClosed) and error.started:
            results = [error] * len(operations)
        else:
            raise not_begun(error) from None
    except HandlerTimeout:
        raise Problem(504, "it took too long, and was rolled back", type="timeout") from None
    except Exception as error:  # noqa: BLE001 - the transaction's own, or the handler crashed
        results = [error] * len(operations)
    for one, result in zip(operations, results, strict=True):
        if isinstance(result, Exception):
            one.error = result
        else:
            one.result = result


async def _run_wholes(wholes: list[_Whole]) -> list[Any]:
    """Run the one batch that there is in this call."""
    (whole,) = wholes
    with without_batcher([one.item for one in whole.operations], "idle"):
        run = info.running()
        assert run is not None  # noqa: S101 - it was just entered
        if whole.key is not None:
            run.keys = [f"{whole.key}:{one.index}" for one in whole.operations]
        together: Any = atomic(_caller(whole), transaction=whole.transaction)
        return [await together([one.item for one in whole.operations])]


def _caller(whole: _Whole) -> Any:
    """Return the bulk handler of a whole batch: call after call, until one has a failure."""

    async def everything(items: list[Any]) -> list[Any]:
        results: list[Any] = [None] * len(items)
        for call in whole.calls:
            collection, kind = call[0].collection, call[0].kind
            assert collection is not None  # noqa: S101 - else it had failed before
            handler = bulk(collection.settings.handlers[kind or ""])
            indices = [one.index for one in call]
            try:
                with info.narrowed(indices):
                    found = await handler([items[index] for index in indices])
            except Exception as error:  # noqa: BLE001 - it is what became of these
                found = [copy_exception(error) for _ in indices]
            for index, result in zip(indices, found, strict=True):
                results[index] = result
            if any(isinstance(one, Exception) and not isinstance(one, Skipped) for one in found):
                break  # all of it is undone, so the rest need not be tried
        return results

    return everything
