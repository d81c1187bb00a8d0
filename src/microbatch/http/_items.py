"""Requests for one item: they join the batches of everybody's."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec

from ._checking import allow, validate_items
from ._documents import of_item
from ._envelopes import not_json
from ._operations import Operation, Update
from ._problem import MEDIA_TYPE, Problem
from ._reply import HTTPReply, json_reply
from ._results import ItemTelling, id_in
from ._routing import Route
from ._running import FULL_RETRY_AFTER, run_call
from ._shape import InvalidItem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ._collection import Collection
    from ._exchange import Exchange
    from ._statuses import OperationKind

_METHODS: dict[OperationKind, tuple[str, str]] = {
    "create": ("POST", ""),
    "read": ("GET", "/{id}"),
    "update": ("PATCH", "/{id}"),
    "delete": ("DELETE", "/{id}"),
}


def item_routes(collection: Collection) -> Iterator[Route]:
    """Yield the routes for single items of a collection."""
    for kind, (method, path) in _METHODS.items():
        if kind in collection.batchers:
            yield Route(
                method=method,
                path=f"/{collection.name}{path}",
                endpoint=partial(_one, collection, kind),
                name=f"{collection.name}.{kind}",
                body="json" if kind in {"create", "update"} else "none",
                document=of_item(collection, kind),
            )


async def _one(collection: Collection, kind: OperationKind, exchange: Exchange) -> HTTPReply:
    one = Operation(0, kind, collection)
    most = exchange.parts.settings.max_item_bytes
    if len(exchange.body) > most:
        raise Problem(
            413,
            f"an item may have at most {most} bytes",
            type="item_too_large",
            code="item_too_large",
        )
    if kind == "create":
        _fill(one, "item", lambda: collection.items.decode(exchange.body), exchange.body)
    else:
        text = exchange.parameters["id"]
        _fill(one, "id", lambda: collection.ids.convert(text))
        one.item = one.id
    if kind == "update":
        changes: Any = collection.changes
        _fill(one, "item", lambda: Update(one.id, changes.decode(exchange.body)), exchange.body)

    async def work(key: str | None) -> HTTPReply:
        telling = ItemTelling(exchange.parts.settings.status_of, exchange.route.name)
        await allow(exchange.principal, [one])
        validate_items([one])
        exchange.take(1)
        begun = one.error is None
        if begun:
            await run_call([one], key)
        return _told(exchange, one, telling, begun=begun)

    if kind == "read":
        return await exchange.while_there(lambda: work(None))
    return await exchange.once(work)


def _fill(one: Operation, name: str, read: Callable[[], Any], body: bytes | None = None) -> None:
    """Fill in a part of what is asked for, or why it cannot be done.

    Raises:
        Problem: 400 if the body is no JSON.
    """
    try:
        value = read()
    except InvalidItem as error:
        if body is not None:
            _check_json(body)
        one.error = one.error or error
    else:
        setattr(one, name, value)


def _check_json(body: bytes) -> None:
    """Refuse a body that is no JSON at all, which is not the item's fault but the request's.

    Raises:
        Problem: 400.
    """
    try:
        msgspec.json.decode(body)
    except Exception as error:  # noqa: BLE001 - raised anew
        raise not_json(error) from None


def _told(exchange: Exchange, one: Operation, telling: ItemTelling, *, begun: bool) -> HTTPReply:
    """Return the answer for one item: the object itself, or what was wrong as a problem."""
    record = telling.of(one)
    fault = record.error
    if isinstance(fault, msgspec.UnsetType):
        return _object(exchange, one, record.status)
    if record.kind == "skipped":
        return json_reply(200, {"skipped": fault}, kept=begun)
    retry_after = fault.retry_after
    if retry_after is None and record.status in {429, 503}:
        retry_after = FULL_RETRY_AFTER
    problem = Problem(
        record.status,
        fault.message,
        type=fault.code,
        retry_after=retry_after,
    )
    problem.members = {
        name: getattr(fault, name) for name in fault.__struct_fields__ if name != "message"
    }
    if one.kind in {"read", "delete"}:
        problem.members["pointer"] = None  # it has no body to point into
    later = record.status in {429, 503}
    try:
        return json_reply(
            problem.status,
            problem.document(),
            headers=problem.headers,
            media_type=MEDIA_TYPE,
            kept=begun and not later,
        )
    except Exception as error:  # noqa: BLE001 - a text of the application's that has no form in JSON
        one.error = error
        return _told(exchange, one, telling, begun=begun)


def _object(exchange: Exchange, one: Operation, status: int) -> HTTPReply:
    if status == 204:
        return HTTPReply(status=204, media_type=None, kept=True)
    headers = {}
    collection = one.collection
    try:
        if status == 201 and collection is not None and "read" in collection.batchers:
            found = id_in(one.result)
            if isinstance(found, (str, int)) and not isinstance(found, bool):
                link = f"/{collection.name}/{quote(str(found), safe='')}"
                headers["location"] = exchange.link(link)
        return json_reply(status, one.result, headers=headers, kept=True)
    except Exception as error:  # noqa: BLE001 - a result of the application's, or what shows it
        one.error = error
        telling = ItemTelling(None, exchange.route.name)
        return _told(exchange, one, telling, begun=True)
