"""`atomic`: all or nothing for the callers, and with a transaction for the database."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, overload

from microbatch._core.bulk import bulk
from microbatch._core.info import batcher_name
from microbatch._pure import checks
from microbatch._pure.copying import copy_exception
from microbatch._pure.exceptions import BatchAborted, RateLimited, Skipped
from microbatch._pure.handler import is_only

from ._passing import BulkHandler, Handler, R, SilentHandler, T, named_after
from ._withheld import withheld

Transaction = Callable[[], AbstractAsyncContextManager[object]]


@overload
def atomic(
    handler: SilentHandler[T], *, transaction: Transaction | None = None
) -> BulkHandler[T, None]: ...
@overload
def atomic(
    handler: Handler[T, R], *, transaction: Transaction | None = None
) -> BulkHandler[T, R]: ...
def atomic(handler: Any, *, transaction: Transaction | None = None) -> BulkHandler[Any, Any]:
    """Fail the whole batch when one of its items fails.

    The failed items keep their own errors and the others get ``BatchAborted``, which names the
    first failed one. ``Skipped`` is no failure: a batch with skipped items is kept. Where items
    were refused with ``RateLimited`` and none failed, all get that, so that they wait and go again
    together. Nobody's outcome is out before the batch is decided and its transaction has ended.

    Args:
        handler: An async or plain bulk handler.
        transaction: Called without arguments for each batch; the async context manager that it
            returns is entered around the call. It is left normally when no item failed, else with
            the ``BatchAborted`` or ``RateLimited``, or with what the handler raised, which is its
            sign to roll back.
            Without one, what the handler has written stays written.

    Raises:
        TypeError: If the handler is a generator function or ``transaction`` cannot be called.
    """
    call = bulk(handler)
    checks.function("transaction", transaction)
    enter: Transaction = contextlib.nullcontext if transaction is None else transaction

    @named_after(handler)
    async def all_or_nothing(items: list[Any]) -> list[Any]:
        if not items:
            return []
        abort: BatchAborted | RateLimited | None = None
        results: list[Any] = []
        raised: Exception | None = None
        try:
            async with enter():
                try:
                    with withheld() as early:
                        results = await call(items)
                except Exception as error:
                    raised = error
                    raise
                for index, result in early.items():
                    results[index] = result
                abort = _abort_of(results)
                _roll_back(abort)
        except BaseException as error:
            # A transaction with a task group inside raises both in groups.
            if raised is not None and error is not raised and is_only(error, raised):
                raise raised from raised.__cause__
            if abort is None or not is_only(error, abort):
                raise
        if abort is None:
            return results
        return [
            result if isinstance(result, Exception) else copy_exception(abort.with_traceback(None))
            for result in results
        ]

    return all_or_nothing


def _abort_of(results: list[Any]) -> BatchAborted | RateLimited | None:
    """Return what becomes of the good items; None if they are kept."""
    refusal: RateLimited | None = None
    for index, result in enumerate(results):
        if isinstance(result, RateLimited):
            refusal = refusal or result
        elif isinstance(result, Exception) and not isinstance(result, Skipped):
            return BatchAborted(index, result, batcher_name())
    return refusal


def _roll_back(abort: BatchAborted | RateLimited | None) -> None:
    """Tell the transaction around that it must not be kept."""
    if abort is not None:
        raise abort
