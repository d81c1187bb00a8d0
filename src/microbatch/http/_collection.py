"""Collection: what its settings become, the types that are read and the batchers that its requests share."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from microbatch._core import info
from microbatch._core.batcher import Batcher
from microbatch._pure.handler import handler_kind
from microbatch.layers._passing import named_after

from ._shape import Shape, changes_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from ._settings import APISettings, CollectionSettings


class KeyedItem:
    """An item with an idempotency key of its own, on its way through one of our batchers."""

    __slots__ = ("item", "key")

    def __init__(self, item: Any, key: str) -> None:
        self.item = item
        self.key = key


class Collection:
    """One collection of an API.

    Attributes:
        name: Its name, as it stands in paths.
        settings: Its settings.
        items: The type that is created.
        changes: The type of changes; None if nothing is updated.
        ids: The type of ids.
        batchers: The batcher of each operation that there is, by ``"create"``, ``"update"``, ``"delete"``,
            ``"read"``: the application's, or one of ours over its handler.
        own: Those that are ours: opened and closed with the API. Their items may be `KeyedItem`.
    """

    def __init__(self, settings: CollectionSettings, api: APISettings) -> None:
        self.name: str = settings.name
        self.settings: CollectionSettings = settings
        self.items: Shape = Shape(settings.item_type, "item_type")
        self.ids: Shape = Shape(settings.id_type, "id_type")
        self.changes: Shape | None = None
        if "update" in settings.handlers:
            changes = settings.update_type
            self.changes = Shape(
                changes_of(settings.item_type) if changes is None else changes, "update_type"
            )
        self.batchers: dict[str, Batcher[Any, Any]] = {}
        self.own: dict[str, Batcher[Any, Any]] = {}
        for operation, handler in settings.handlers.items():
            if isinstance(handler, Batcher):
                self.batchers[operation] = handler
                continue
            self.own[operation] = self.batchers[operation] = Batcher(
                without_keys(handler),
                max_batch_size=api.max_items,
                max_concurrency=4,
                max_pending=10 * api.max_items,
                on_full="reject",
                handler_timeout=api.timeout,
                name=f"{settings.name}.{operation}",
            )

    @property
    def operations(self) -> Mapping[str, Any]:
        """Return the operations that there are, by name: each one's handler as it was given."""
        return self.settings.handlers


def without_keys(handler: Any) -> Any:
    """Make a handler of plain items one of items that may be `KeyedItem`, whose keys its batch then tells."""
    kind = handler_kind(handler)
    if kind == "generator":

        @named_after(handler)
        async def generated(items: list[Any]) -> AsyncIterator[Any]:
            async with contextlib.aclosing(handler(_unwrapped(items))) as results:
                async for result in results:
                    yield result

        return generated
    if kind == "async":

        @named_after(handler)
        async def awaited(items: list[Any]) -> Any:
            return await handler(_unwrapped(items))

        return awaited

    @named_after(handler)
    def called(items: list[Any]) -> Any:
        return handler(_unwrapped(items))

    return called


def _unwrapped(items: list[Any]) -> list[Any]:
    if KeyedItem not in set(map(type, items)):
        return items
    run = info.running()
    assert run is not None  # noqa: S101 - only a batcher of ours gets such items
    run.keys = [item.key if type(item) is KeyedItem else None for item in items]
    return [item.item if type(item) is KeyedItem else item for item in items]
