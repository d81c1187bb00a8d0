"""Requests for many items: where they run is decided before they begin, and each item is answered for."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, cast

import anyio

from ._all_or_nothing import run_atomic, transaction_of
from ._checking import allow, validate_items
from ._documents import of_batch
from ._envelopes import Unpacking, envelope_of
from ._operations import Operation
from ._options import preferences_of
from ._problem import Problem
from ._reply import HTTPReply
from ._results import BatchAnswer, ItemTelling, first_failure, refuse_if_any, summary_of
from ._routing import Route
from ._running import run_batch, run_call
from ._smooth import is_smooth, run_smooth, whole_operations, whole_reader
from ._statuses import atomic_status, batch_status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ._collection import Collection
    from ._envelopes import Envelope
    from ._exchange import Exchange
    from ._options import BatchOptions
    from ._parts import APIParts
    from ._results import ItemRecord
    from ._statuses import OperationKind


def batch_routes(parts: APIParts) -> Iterator[Route]:
    """Yield the routes for batches, of each collection and over several."""
    for collection in parts.collections.values():
        yield from _routes_of(collection)
    changing = [one for one in parts.collections.values() if set(one.operations) - {"read"}]
    if changing:
        yield Route(
            method="POST",
            path="/batch",
            endpoint=partial(_batch, None, "create", ("operations",), None),
            name="batch",
            body="json",
            document=of_batch(None, "", "batch", ("operations",), changing),
        )


def _routes_of(collection: Collection) -> Iterator[Route]:
    name, operations = collection.name, collection.operations
    changing = [kind for kind in ("create", "update", "delete") if kind in operations]
    allowed = ["items"] * ("create" in operations or collection.settings.queue is not None)
    if changing:
        allowed.append("operations")
    table: list[tuple[str, str, OperationKind, str, tuple[str, ...]]] = [
        ("POST", "batch", "create", "batch", tuple(allowed)),
        ("PATCH", "batch", "update", "batch-update", ("items", "updates")),
        ("POST", "batch-delete", "delete", "batch-delete", ("ids",)),
        ("DELETE", "batch", "delete", "batch-delete-body", ("ids",)),
        ("POST", "batch-get", "read", "batch-get", ("ids",)),
    ]
    for method, path, kind, operation, keys in table:
        if keys and (kind in operations or (operation == "batch" and allowed)):
            yield Route(
                method=method,
                path=f"/{name}/{path}",
                endpoint=partial(
                    _batch, collection, kind, keys, whole_reader(collection, kind, keys)
                ),
                name=f"{name}.{operation}",
                body="json",
                document=of_batch(collection, kind, operation, keys),
            )


async def _batch(
    collection: Collection | None,
    kind: OperationKind,
    keys: Sequence[str],
    read_whole: Callable[[bytes], Envelope | None] | None,
    exchange: Exchange,
) -> HTTPReply:
    began = anyio.current_time()
    settings = exchange.parts.settings
    envelope = None
    if read_whole is not None and len(exchange.body) <= settings.max_item_bytes:
        envelope = read_whole(exchange.body)
    if envelope is None:
        envelope = envelope_of(exchange.body, keys)
    is_job = _is_to_be_a_job(collection, kind, envelope, exchange)
    most = settings.max_job_items if is_job else settings.max_items
    if len(envelope.raws) > most:
        raise Problem(
            413,
            f"a batch may have at most {most} items here, got {len(envelope.raws)}",
            type="batch-too-large",
            max_items=most,
            max_bytes=settings.max_body_bytes,
        )
    unpacking = Unpacking(exchange.parts.collections, collection, settings.max_item_bytes)
    options = envelope.options

    async def work(key: str | None) -> HTTPReply:
        telling = ItemTelling(settings.status_of, exchange.route.name)
        if not is_job and is_smooth(collection, envelope):
            exchange.take(len(envelope.raws))
            done = await run_smooth(collection, kind, envelope, key)
            return _answer(exchange, done, options, telling, began, kept=bool(done))
        if envelope.whole:
            operations = whole_operations(collection, kind, envelope)
        else:
            operations = unpacking.operations(envelope, kind)
        await allow(exchange.principal, operations)
        validate_items(operations)
        if options.mode == "reject":
            refuse_if_any(operations, telling)
        if options.atomic and operations:
            transaction_of(operations)
        exchange.take(len(operations))
        if is_job:
            assert collection is not None  # noqa: S101 - it has the queue
            assert exchange.parts.jobs is not None  # noqa: S101 - so there is what makes jobs
            return await exchange.parts.jobs.make(
                exchange, collection, operations, options, key, webhook=envelope.webhook
            )
        tried = any(one.error is None for one in operations)
        if options.validate_only or not operations:
            return _answer(exchange, operations, options, telling, began)
        if options.atomic:
            await run_atomic(exchange.parts.atomic, operations, options, key)
        elif kind == "read":
            await run_call([one for one in operations if one.error is None], None)
        else:
            await run_batch(operations, options, key)
        return _answer(exchange, operations, options, telling, began, kept=tried)

    if kind == "read":
        return await exchange.while_there(lambda: work(None))
    return await exchange.once(work)


def _is_to_be_a_job(
    collection: Collection | None, kind: str, envelope: Envelope, exchange: Exchange
) -> bool:
    """Tell where a batch runs.

    Raises:
        Problem: 422 if it is to be a job and cannot be one, or can only be one and is not to be.
    """
    options, count = envelope.options, len(envelope.raws)
    has_queue = collection is not None and collection.settings.queue is not None
    plain = kind == "create" and envelope.key == "items"
    possible = has_queue and plain and not options.atomic and not options.validate_only
    if options.run_async and not possible:
        raise Problem(422, "this batch cannot be a job", type="async-not-available")
    is_job = False
    if possible and count:
        must = collection is not None and "create" not in collection.operations
        if must and options.run_async is False:
            raise Problem(422, "this batch can only be a job", type="sync-not-available")
        is_job = must or bool(options.run_async)
        if options.run_async is None and not must:
            settings = exchange.parts.settings
            wished = preferences_of(exchange.request.headers.getlist("prefer")).respond_async
            is_job = wished or count > settings.sync_max_items
    if envelope.webhook is not None and not is_job:
        raise Problem(
            422,
            "a webhook is called for a job only, and this batch is no job",
            type="webhook-without-job",
        )
    return is_job


def _records_of(
    done: Sequence[Operation] | Sequence[ItemRecord], telling: ItemTelling
) -> list[ItemRecord]:
    """Return records of what was done: they are all there, or operations are."""
    if done and isinstance(done[0], Operation):
        return [telling.of(one) for one in cast("Sequence[Operation]", done)]
    return cast("list[ItemRecord]", done)


def _answer(
    exchange: Exchange,
    done: Sequence[Operation] | Sequence[ItemRecord],
    options: BatchOptions,
    telling: ItemTelling,
    began: float,
    *,
    kept: bool = False,
) -> HTTPReply:
    records = _records_of(done, telling)
    if options.validate_only:
        for record in records:
            if record.success:
                record.status, record.data = 200, None
    answer = BatchAnswer(records, summary_of(records), 0.0)
    if preferences_of(exchange.request.headers.getlist("prefer")).minimal:
        answer.results = [record for record in answer.results if not record.success]
        exchange.headers["preference-applied"] = "return=minimal"
    answer.took = round(anyio.current_time() - began, 6)
    body = telling.encode(answer)
    summary = answer.summary  # as it is told: what could not be shown has failed
    status = batch_status(
        succeeded=summary.succeeded + summary.skipped,
        total=summary.total,
        all_failed_status=exchange.parts.settings.all_failed_status,
    )
    if options.atomic and status != 200:
        first = first_failure(one for one in done if isinstance(one, Operation))
        status = atomic_status(first, 0 if first is None else telling.status(first, None))
    return HTTPReply(status=status, body=body, kept=kept)
