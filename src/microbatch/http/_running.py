"""A batch is run: sorted into calls, which go through the shared batchers one after another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from microbatch._pure.exceptions import (
    BatchAborted,
    BatcherClosed,
    BatcherFull,
    Skipped,
)

from ._collection import KeyedItem
from ._problem import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from microbatch._pure.report import BatchReport

    from ._collection import Collection
    from ._operations import Operation
    from ._options import BatchOptions

#: In which order kinds are done that have no order of their own: what is changed may have to be made first.
_KINDS = ("create", "update", "delete", "read")

#: Seconds after which one that found no room may try again: more than one batch takes.
FULL_RETRY_AFTER = 1.0


def calls_of(operations: Sequence[Operation], *, ordered: bool) -> list[list[Operation]]:
    """Sort operations into calls: each of one collection and one kind.

    Args:
        operations: In the order of the request. Those that failed already are among them.
        ordered: Whether the calls have to keep that order: then they are runs of equal kind as given. Else
            there is one call for each kind, in the order create, update, delete. Operations that name one id
            twice keep their order all the same.
    """
    if ordered or _names_twice(operations):
        runs: list[list[Operation]] = []
        for one in operations:
            last = runs[-1][-1] if runs else None
            if last is not None and (last.collection, last.kind) == (one.collection, one.kind):
                runs[-1].append(one)
            else:
                runs.append([one])
        return runs
    groups: dict[tuple[Collection | None, str | None], list[Operation]] = {}
    for one in operations:
        groups.setdefault((one.collection, one.kind), []).append(one)
    return sorted(groups.values(), key=lambda group: _turn_of(group[0].kind))


def _turn_of(kind: str | None) -> int:
    """Return when a kind is done; what is of none has failed already, which is known first."""
    return -1 if kind is None else _KINDS.index(kind)


def _names_twice(operations: Iterable[Operation]) -> bool:
    seen: set[Any] = set()
    for one in operations:
        if one.id is None:
            continue
        try:
            name: Any = (one.collection, one.id)
            known = name in seen
        except TypeError:  # an id that cannot be hashed
            name = (one.collection, msgspec.json.encode(one.id, enc_hook=repr))
            known = name in seen
        if known:
            return True
        seen.add(name)
    return False


async def run_batch(
    operations: Sequence[Operation], options: BatchOptions, key: str | None
) -> None:
    """Run operations, and put what became of each into it. No item's failure is raised.

    Args:
        operations: All of the request; those with an error are not tried.
        options: ``ordered`` and ``stop_on_error`` count.
        key: The request's idempotency key, or None.

    Raises:
        Problem: 503 if none of them was even begun, for want of room or because the batcher is closed.
    """
    tried = [one for one in operations if one.error is None]
    stopped: Operation | None = None
    if options.stop_on_error and not (options.ordered or _names_twice(operations)):
        # Without an order nothing has begun when these are found to be wrong.
        stopped = next((one for one in operations if one.error is not None), None)
    for call in calls_of(operations, ordered=options.ordered):
        begins = call
        if options.stop_on_error:
            begins = []
            for one in call:
                if stopped is None and one.error is not None:
                    stopped = one
                if stopped is None:
                    begins.append(one)
                elif one.error is None:
                    one.error = _abort_by(stopped)
        await run_call([one for one in begins if one.error is None], key)
        if options.stop_on_error and stopped is None:
            stopped = next((one for one in begins if _failed(one)), None)
    refuse_unbegun(tried)


def refuse_unbegun(tried: Sequence[Operation]) -> None:
    """Refuse a request of which nothing was even begun.

    Raises:
        Problem: 503.
    """
    if tried and all(_not_begun(one.error) for one in tried):
        raise not_begun(tried[0].error)


def _failed(one: Operation) -> bool:
    return one.error is not None and not isinstance(one.error, Skipped)


def _abort_by(failed: Operation) -> BatchAborted:
    assert failed.error is not None  # noqa: S101 - that is why it stops others
    return BatchAborted(failed.index, failed.error)


def _not_begun(error: Exception | None) -> bool:
    return isinstance(error, BatcherFull) or (
        isinstance(error, BatcherClosed) and not error.started
    )


def not_begun(error: Exception | None) -> Problem:
    """Return the problem of a request that found no room, or a batcher that was closed."""
    if isinstance(error, BatcherFull):
        return Problem(503, "there is no room now", type="full", retry_after=FULL_RETRY_AFTER)
    return Problem(503, "the server is closing", type="closed", retry_after=FULL_RETRY_AFTER)


async def run_call(operations: Sequence[Operation], key: str | None) -> None:
    """Send operations of one collection and kind to their batcher together, and wait for all outcomes."""
    if not operations:
        return
    collection, kind = operations[0].collection, operations[0].kind
    assert collection is not None  # noqa: S101 - else they had failed
    assert kind is not None  # noqa: S101 - the same
    items: list[Any] = [one.item for one in operations]
    if key is not None and kind in collection.own:
        items = [KeyedItem(one.item, f"{key}:{one.index}") for one in operations]
    batcher = collection.batchers[kind]
    if len(items) == 1:
        try:
            operations[0].succeed(await batcher.submit(items[0]))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this item's
            operations[0].error = error
        return
    try:
        report = await batcher.submit_many_report(items)
    except BatcherClosed as error:
        for one in operations:
            one.error = error
        return
    take_outcomes(operations, report)


def take_outcomes(operations: Sequence[Operation], report: BatchReport[Any]) -> None:
    """Put what became of each item into its operation."""
    for one, outcome in zip(operations, report, strict=True):
        if outcome.error is None:
            one.succeed(outcome.value)
        else:
            one.error = outcome.error
