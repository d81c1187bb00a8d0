"""BatchAPI: the ASGI application."""

from __future__ import annotations

import contextlib
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Self

import anyio

from ._all_or_nothing import atomic_batcher
from ._batches import batch_routes
from ._collection import Collection
from ._documents import json_content
from ._exchange import CLOSING_RETRY_AFTER, Exchange
from ._exporting import export_routes
from ._idempotency import idempotency_of
from ._items import item_routes
from ._job_making import Jobs, check_teller
from ._openapi import document_of
from ._parts import APIParts
from ._problem import Problem
from ._rate import Buckets
from ._reply import HTTPReply, json_reply
from ._routing import Route, Router
from ._serving import serve
from ._settings import APISettings, CollectionSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from types import TracebackType
    from typing import Literal

    from starlette.types import Receive, Scope, Send

    from ._principals import Authorize


_STATUS = {
    "type": "object",
    "properties": {"status": {"type": "string"}},
    "required": ["status"],
}
_HEALTH = {
    "summary": "Tell whether it lives",
    "responses": {"200": {"description": "It does.", "content": json_content(_STATUS)}},
}
_READY = {
    "summary": "Tell whether it takes requests",
    "responses": {"200": {"description": "It does.", "content": json_content(_STATUS)}},
}
_OPENAPI = {
    "summary": "Tell what there is",
    "responses": {
        "200": {"description": "This document.", "content": json_content({"type": "object"})}
    },
}


class BatchAPI:
    """Batch endpoints over collections: a plain ASGI application.

    Serve it by itself, or mount it: ``Starlette(routes=[Mount("/v1", app=api)], lifespan=api.lifespan)``. It
    runs on asyncio and uvloop, and on trio if no collection has a queue. ``async with`` opens and drains it; a
    server does that by the lifespan protocol. It also serves unopened, but then the program does not wait for
    running requests when it ends.

    If one limit is above another, the smaller one counts.

    Args:
        authorize: ``async (request)``: gets Starlette's request and returns the `Principal` who sends it. If it
            returns None the answer is 401, if it raises ``PermissionError`` 403. It is required.
        challenge: The ``WWW-Authenticate`` of a 401.
        base_path: The prefix of this API's paths in links; by default the ``root_path`` of the server or of the
            application in which it is mounted. Links are absolute paths without a host.
        max_body_bytes: Bytes of a body, as sent and inflated, at least 1. 10 MiB are 1,000 items of 10 KiB.
        max_items: Items of a batch that runs at once, at least 1: as many as one call of a handler gets.
        sync_max_items: Items above which a batch of a collection with a queue becomes a job, at least 0.
        max_job_items: Items of a batch that becomes a job, at least 1.
        max_item_bytes: Bytes of one item, at least 1. One that has more fails alone.
        max_import_bytes: Bytes of an import, as sent and inflated, at least 1; instead of ``max_body_bytes``.
        max_import_items: Items of an import, at least 1; instead of ``max_job_items``.
        body_timeout: Seconds for each piece of a body, more than 0; then 408.
        timeout: Seconds that a request may take, more than 0; then 504. Its items are still handled. A handler
            call may take as long.
        max_open_jobs: Jobs of one principal that have not ended, at least 1; beyond, 429.
        owner_share: The part of a queue's ``max_depth`` that one principal may fill, more than 0 and at most 1.
        idempotency: Whether requests that change something may have an Idempotency-Key (``"optional"``), must
            have one (``"required"``), or have it ignored (``"off"``).
        idempotency_ttl: Seconds for which an answer is kept under its key, more than 0. A day, as is usual.
        idempotency_max: Most keys that are kept, at least 1. The oldest answered ones are removed first.
        idempotency_store: The queue in whose file the keys are kept; by default the first collection's queue;
            without any queue they are kept in memory.
        all_failed_status: The status of a batch in which nothing succeeded: 207, 200, 400 or 422.
        status_of: A function from the code of an ``ItemError`` that has no status here to its status, 400 to
            599; None for 500.
        rate: ``(items, seconds)``: each principal may send so many items in so many seconds, in this process.
        webhooks: `Webhooks`, which tell clients that their jobs have ended.

    Raises:
        TypeError: If a setting has the wrong type.
        ValueError: If one is out of its range.
    """

    def __init__(
        self,
        *,
        authorize: Authorize,
        challenge: str = "Bearer",
        base_path: str | None = None,
        max_body_bytes: int = 10 * 2**20,
        max_items: int = 1_000,
        sync_max_items: int = 100,
        max_job_items: int = 10_000,
        max_item_bytes: int = 2**20,
        max_import_bytes: int = 10 * 2**30,
        max_import_items: int = 10_000_000,
        body_timeout: float = 15.0,
        timeout: float = 30.0,
        max_open_jobs: int = 100,
        owner_share: float = 0.5,
        idempotency: Literal["optional", "required", "off"] = "optional",
        idempotency_ttl: float = 86_400.0,
        idempotency_max: int = 10_000,
        idempotency_store: Any = None,
        all_failed_status: Literal[207, 200, 400, 422] = 207,
        status_of: Callable[[str], int | None] | None = None,
        rate: tuple[int, float] | None = None,
        webhooks: Any = None,
    ) -> None:
        settings = APISettings(
            authorize=authorize,
            challenge=challenge,
            base_path=base_path,
            max_body_bytes=max_body_bytes,
            max_items=max_items,
            sync_max_items=sync_max_items,
            max_job_items=max_job_items,
            max_item_bytes=max_item_bytes,
            max_import_bytes=max_import_bytes,
            max_import_items=max_import_items,
            body_timeout=body_timeout,
            timeout=timeout,
            max_open_jobs=max_open_jobs,
            owner_share=owner_share,
            idempotency=idempotency,
            idempotency_ttl=idempotency_ttl,
            idempotency_max=idempotency_max,
            idempotency_store=idempotency_store,
            all_failed_status=all_failed_status,
            status_of=status_of,
            rate=rate,
            webhooks=webhooks,
        )
        self._parts = APIParts(settings, atomic_batcher(settings))
        if settings.rate is not None:
            self._parts.buckets = Buckets(*settings.rate, now=anyio.current_time)
        self._router: Router | None = None
        self._opened: AsyncExitStack | None = None

    def collection(
        self,
        name: str,
        *,
        item_type: Any,
        update_type: Any = None,
        id_type: Any = str,
        create: Any = None,
        update: Any = None,
        delete: Any = None,
        read: Any = None,
        queue: Any = None,
        export: Any = None,
        atomic: Any = None,
        validate: Any = None,
        authorize: Any = None,
    ) -> None:
        """Add a collection, with its routes below ``/name``.

        A bulk handler becomes ``Batcher(handler, max_batch_size=max_items, max_concurrency=4,
        max_pending=10 * max_items, on_full="reject", handler_timeout=timeout)``, shared by all requests. A
        ``Batcher`` may be shared with other code; it is neither opened nor closed here.

        Args:
            name: ``[a-z][a-z0-9_-]*``; not ``batch``, ``jobs``, ``healthz`` or ``readyz``.
            item_type: The type of what is created: any type that msgspec can decode, pydantic models too.
            update_type: The type of changes; by default a struct of ``item_type`` with every field optional
                (``msgspec.UNSET``). If ``item_type`` is no ``msgspec.Struct``, it is required.
            id_type: The type of ids.
            create: A bulk handler of items, or a ``Batcher``. It returns the created objects.
            update: The same for `Update`.
            delete: The same for ids; its results are not shown.
            read: The same for ids; it returns the objects in the ids' order, as with ``layers.by_key``. None in
                an object's place says that there is none.
            queue: A ``DurableQueue`` or ``DurableBatcher`` of the same items: it makes jobs and imports
                possible. It is neither opened nor closed here.
            export: A function of the principal, or without arguments: it returns an async iterator of the rows
                that ``/name/export`` streams.
            atomic: A factory of transactions, as for ``layers.atomic``: it makes atomic batches possible.
            validate: A plain function that raises ``ItemError`` for an item that must not be created.
            authorize: Async, ``(principal, operation, items)``. It raises ``PermissionError`` to refuse the
                request, or returns None, or a list with an ``ItemError`` or None for each item.

        Raises:
            TypeError: If a setting has the wrong type.
            ValueError: If the name is taken or not allowed, or the collection can do nothing.
        """
        parts = self._parts
        settings = CollectionSettings(
            name,
            item_type=item_type,
            update_type=update_type,
            id_type=id_type,
            create=create,
            update=update,
            delete=delete,
            read=read,
            queue=queue,
            export=export,
            atomic=atomic,
            validate=validate,
            authorize=authorize,
        )
        if name in parts.collections:
            raise ValueError(f"name must be new, got {name!r}, which is a collection already")
        if settings.queue is not None:
            check_teller(parts.settings, settings.queue)
            parts.jobs = parts.jobs or Jobs(parts)
        parts.collections[name] = Collection(settings, parts.settings)
        self._router = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection's scope, as ASGI has it."""
        kind = scope["type"]
        if kind == "http":
            router = self._router
            if router is None:
                self._parts.idempotency = idempotency_of(self._parts)
                router = self._router = Router(self._routes())
            await serve(self._parts, router, scope, receive, send)
        elif kind == "lifespan":
            await self._live(receive, send)
        else:  # a websocket: there is nothing for one here
            await receive()
            await send({"type": "websocket.close", "code": 1000})

    def _routes(self) -> list[Route]:
        parts = self._parts
        routes = [
            Route(
                method="GET",
                path="/healthz",
                endpoint=self._alive,
                name="healthz",
                public=True,
                document=_HEALTH,
            ),
            Route(
                method="GET",
                path="/readyz",
                endpoint=self._ready,
                name="readyz",
                public=True,
                document=_READY,
            ),
        ]
        for collection in parts.collections.values():
            routes.extend(item_routes(collection))
            routes.extend(export_routes(collection))
        routes.extend(batch_routes(parts))
        if parts.jobs is not None:
            routes.extend(parts.jobs.routes())
        routes.append(
            Route(
                method="GET",
                path="/openapi.json",
                endpoint=self._described,
                name="openapi",
                document=_OPENAPI,
            )
        )
        return routes

    async def _described(self, exchange: Exchange) -> HTTPReply:
        assert self._router is not None  # noqa: S101 - the request came by it
        document = document_of(self._parts.settings, self._router.routes, exchange.link(""))
        return json_reply(200, document)

    async def _alive(self, exchange: Exchange) -> HTTPReply:
        del exchange
        return json_reply(200, {"status": "ok"})

    async def _ready(self, exchange: Exchange) -> HTTPReply:
        del exchange
        if self._parts.closing:
            raise Problem(503, "the server is closing", retry_after=CLOSING_RETRY_AFTER)
        return json_reply(200, {"status": "ready"})

    # Opening and closing

    async def __aenter__(self) -> Self:
        """Open the batchers that are this API's own.

        Raises:
            RuntimeError: If it is open already.
        """
        if self._opened is not None:
            raise RuntimeError("the BatchAPI is open already")
        stack = AsyncExitStack()
        await stack.enter_async_context(self._parts.atomic)
        for collection in self._parts.collections.values():
            for batcher in collection.own.values():
                await stack.enter_async_context(batcher)
        self._parts.closing = False
        self._opened = stack
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Take nothing new, let what is under way end, and drain the batchers; at once after an exception."""
        stack, self._opened = self._opened, None
        self._parts.closing = True
        try:
            if exc_type is None:
                with anyio.move_on_after(self._parts.settings.timeout):
                    await self._parts.detached.join()
        finally:
            if stack is not None:
                await stack.__aexit__(exc_type, exc, traceback)

    @contextlib.asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncIterator[None]:
        """Open and close with the application around: ``Starlette(lifespan=api.lifespan)``."""
        del app
        async with self:
            yield

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self.__aenter__()
        except Exception as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            raise
        await send({"type": "lifespan.startup.complete"})
        failed: BaseException | None = None
        try:
            await receive()
        except BaseException as error:
            failed = error
            raise
        finally:
            await self.__aexit__(type(failed) if failed else None, failed, None)
        await send({"type": "lifespan.shutdown.complete"})
