"""What a request asks for, item by item."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from microbatch._pure.exceptions import ItemNotFound

if TYPE_CHECKING:
    from ._collection import Collection
    from ._statuses import OperationKind

I_co = TypeVar("I_co", covariant=True)
D_co = TypeVar("D_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Update(Generic[I_co, D_co]):
    """What an ``update`` handler gets for one item.

    Attributes:
        id: Which object to change.
        data: The changes, an ``update_type``: with the default one a field that the client did not send is
            ``msgspec.UNSET``.
    """

    id: I_co
    data: D_co


class Operation:
    """One item of a request.

    Attributes:
        index: Its position in the request, from 0.
        kind: ``"create"``, ``"update"``, ``"delete"`` or ``"read"``; None if the request names none of them.
        collection: Whose it is; None if the request names none that there is.
        pointer: Where it stands in the request's body, as a JSON pointer.
        data: Where what its handler gets stands there.
        id: The id that was given; None for a create.
        ref: The client's own word for it; None without one.
        item: What the handler gets: an ``item_type``, an `Update`, or an id. None while there is an error.
        error: Why it failed: before it was tried, or from the handler. None as long as it has not.
        result: What the handler returned for it.
    """

    __slots__ = (
        "collection",
        "data",
        "error",
        "id",
        "index",
        "item",
        "kind",
        "pointer",
        "ref",
        "result",
    )

    def __init__(
        self,
        index: int,
        kind: OperationKind | None,
        collection: Collection | None,
        pointer: str = "",
        *,
        id: Any = None,  # noqa: A002 - the public name
        ref: str | None = None,
        item: Any = None,
        error: Exception | None = None,
    ) -> None:
        self.index = index
        self.kind = kind
        self.collection = collection
        self.pointer = pointer
        self.data = pointer
        self.id = id
        self.ref = ref
        self.item = item
        self.error = error
        self.result: Any = None

    def succeed(self, result: Any) -> None:
        """Keep what the handler returned. An object that was read and is None is not there."""
        if result is None and self.kind == "read":
            self.error = ItemNotFound(self.id)
        else:
            self.result = result
