"""How a stream calls its handler, and what becomes of a batch's items."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from itertools import repeat
from typing import TYPE_CHECKING, Any

import anyio

from microbatch._core.batcher import Batcher
from microbatch._core.bulk import bulk
from microbatch._loops.calling import run_in_thread
from microbatch._pure.copying import copy_exception
from microbatch._pure.exceptions import MicrobatchError
from microbatch._pure.handler import handler_kind, name_of, results_of
from microbatch._pure.report import BatchReport, Outcome, outcome_of
from microbatch.layers._passing import crash_of, is_asked_for
from microbatch.layers._withheld import without_batcher

from .sources import are_values, successes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


def handling(handler: Any) -> Callable[[list[Any], Any], Awaitable[list[Any]]]:
    """Return what handles a batch and gives a result or an outcome for each item."""
    if isinstance(handler, Batcher):

        async def submit(items: list[Any], reason: Any) -> list[Any]:
            try:
                return list(await _submitted(handler, items, at_once=reason == "wait"))
            except Exception as error:  # noqa: BLE001 - it is closed, or the like
                return [copy_exception(error) for _ in items]

        return submit
    name = name_of(handler)
    call = _in_own_thread(handler) if handler_kind(handler) == "thread" else bulk(handler)

    async def handle(items: list[Any], reason: Any) -> list[Any]:
        count = len(items)
        with without_batcher(items, reason) as early:
            try:
                results = await call(items)
            except Exception as error:  # noqa: BLE001 - the handler's: it fails its items
                results = [copy_exception(error) for _ in range(count)]
            except anyio.get_cancelled_exc_class() as error:
                if is_asked_for():
                    raise
                results = [crash_of(name, error) for _ in range(count)]
        for index, result in early.items():
            results[index] = result
        return results

    return handle


async def _submitted(batcher: Any, items: list[Any], *, at_once: bool) -> BatchReport[Any]:
    """Submit items, and let them wait for no company that they have waited for already."""
    if not at_once:
        return await batcher.submit_many_report(items)  # type: ignore[no-any-return]
    report: BatchReport[Any] | Exception
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_flush, batcher)
        try:
            report = await batcher.submit_many_report(items)
        except Exception as error:  # noqa: BLE001 - raised below, where no group wraps it
            report = error
        tasks.cancel_scope.cancel()  # others' items may take much longer
    if isinstance(report, Exception):
        raise report
    return report


async def _flush(batcher: Any) -> None:
    with contextlib.suppress(MicrobatchError):  # what is wrong with the batcher is submit's to say
        await batcher.flush()


def _in_own_thread(handler: Any) -> Callable[[list[Any]], Awaitable[list[Any]]]:
    """Call a plain function in a thread that is waited for even if nobody wants its results."""

    async def call(items: list[Any]) -> list[Any]:
        count = len(items)
        limiter = anyio.CapacityLimiter(1)
        # In a tuple: trio takes a function that returns a coroutine for a mistake.
        work = lambda: (handler(items),)  # noqa: E731
        (returned,) = await run_in_thread(work, limiter=limiter)
        if inspect.isawaitable(returned):
            returned = await returned
        return results_of(returned, count)

    return call


def unwrap(items: list[Any]) -> tuple[list[Any], dict[int, Outcome[Any]], list[Any] | None]:
    """Return what the handler gets, which items failed before, and the ids that they came with."""
    if not any(issubclass(kind, Outcome) for kind in set(map(type, items))):
        return list(items), {}, None
    failed: dict[int, Outcome[Any]] = {}
    values: list[Any] = []
    ids: list[Any] = []
    for position, item in enumerate(items):
        if not isinstance(item, Outcome):
            values.append(item)
            ids.append(None)
        elif item.ok:
            values.append(item.value)
            ids.append(item.id)
        else:
            failed[position] = item
            ids.append(item.id)
    return values, failed, ids


def outcomes_of(
    start: int,
    results: list[Any],
    failed: dict[int, Outcome[Any]],
    ids: list[Any] | None,
) -> tuple[list[Outcome[Any]], list[Outcome[Any]]]:
    """Return a batch's outcomes, in its order and indexed from ``start``; and those without value."""
    if failed:
        found = iter(results)
        count = len(results) + len(failed)
        results = [failed[i] if i in failed else next(found) for i in range(count)]
    if are_values(results):
        return successes(start, results, ids), []
    outcomes: list[Outcome[Any]] = []
    for index, (result, own_id) in enumerate(zip(results, ids or repeat(None)), start):  # noqa: B905
        if isinstance(result, Outcome):
            own_id = result.id if ids is None else own_id  # noqa: PLW2901
            outcomes.append(dataclasses.replace(result, index=index, id=own_id))
        else:
            outcomes.append(outcome_of(index, result, id=own_id))
    return outcomes, [outcome for outcome in outcomes if not outcome.ok]
