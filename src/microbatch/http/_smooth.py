"""The way of a batch in which nothing is wrong: decoded at once, sent on as it is, told without a look at each.

Nothing is different on it but the cost: an item that does not fit, or fails, or is asked about, is dealt
with as everywhere else. A batch of a thousand costs a fifth so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from microbatch._pure.exceptions import BatcherClosed
from microbatch._pure.report import BatchFailed

from ._collection import KeyedItem
from ._envelopes import Envelope, WebhookTarget
from ._operations import Operation
from ._options import BatchOptions
from ._results import ItemRecord, id_in
from ._running import not_begun, refuse_unbegun, take_outcomes
from ._shape import made
from ._statuses import SUCCESS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ._collection import Collection
    from ._statuses import OperationKind

_PLAIN = (BatchOptions(), BatchOptions(run_async=False))


def whole_reader(
    collection: Collection, kind: str, keys: Sequence[str]
) -> Callable[[bytes], Envelope | None]:
    """Return what reads a body with all its items, or gives None for one in which something is wrong.

    Args:
        collection: Whose items they are.
        kind: What they are.
        keys: Under which name they stand: the first one.
    """
    if kind == "update" or keys[0] == "operations":
        return lambda body: None  # each may have a ref of its own
    key = keys[0]
    shape = collection.items if kind == "create" else collection.ids
    fields: list[Any] = [(key, list[shape.kind])]  # type: ignore[name-defined]
    if kind != "read":
        fields.append(("options", BatchOptions, BatchOptions()))
    if key == "items":
        fields.append(("webhook", WebhookTarget | None, None))
    form = msgspec.defstruct("WholeEnvelope", fields, forbid_unknown_fields=True)
    decode = msgspec.json.Decoder(form, dec_hook=made).decode

    def read(body: bytes) -> Envelope | None:
        try:
            found: Any = decode(body)
        except Exception:  # noqa: BLE001 - whatever it is, it is found again where it is told
            return None
        options = getattr(found, "options", _PLAIN[0])
        items: list[Any] = getattr(found, key)
        return Envelope(key, items, options, getattr(found, "webhook", None), whole=True)

    return read


def is_smooth(collection: Collection | None, envelope: Envelope) -> bool:
    """Tell whether nobody is to be asked about the single items of a batch."""
    return (
        envelope.whole
        and envelope.options in _PLAIN
        and collection is not None
        and collection.settings.authorize is None
        and (collection.settings.validate is None or envelope.key == "ids")
    )


async def run_smooth(
    collection: Collection | None, kind: OperationKind, envelope: Envelope, key: str | None
) -> list[ItemRecord] | list[Operation]:
    """Send all items of a batch to their batcher.

    Returns:
        The records of all, if all succeeded; else the operations with what became of each.

    Raises:
        Problem: 503 if none of them was even begun.
    """
    items = envelope.raws
    if not items:
        return []
    assert collection is not None  # noqa: S101 - what was read whole is a collection's
    handed: Sequence[Any] = items
    if key is not None and kind in collection.own:
        handed = [KeyedItem(item, f"{key}:{index}") for index, item in enumerate(items)]
    try:
        values = await collection.batchers[kind].submit_many(handed)
    except BatcherClosed as error:
        raise not_begun(error) from None
    except BatchFailed as failed:
        operations = whole_operations(collection, kind, envelope)
        take_outcomes(operations, failed.report)
        refuse_unbegun(operations)
        return operations
    if kind == "read" and None in values:
        operations = whole_operations(collection, kind, envelope)
        for one, value in zip(operations, values, strict=True):
            one.succeed(value)
        return operations
    status = SUCCESS[kind]
    if kind == "delete":
        return [
            ItemRecord(index, one, None, "succeeded", True, status, None)
            for index, one in enumerate(items)
        ]
    ids = items if kind == "read" else _ids_in(values)
    return [
        ItemRecord(index, one, None, "succeeded", True, status, value)
        for index, (one, value) in enumerate(zip(ids, values, strict=True))
    ]


def whole_operations(
    collection: Collection | None, kind: OperationKind, envelope: Envelope
) -> list[Operation]:
    """Return the operations of an envelope that was read with all its items."""
    with_ids = kind != "create"
    return [
        Operation(
            index,
            kind,
            collection,
            f"/{envelope.key}/{index}",
            id=item if with_ids else None,
            item=item,
        )
        for index, item in enumerate(envelope.raws)
    ]


def _ids_in(values: Sequence[Any]) -> list[Any]:
    try:
        return [value.id for value in values]
    except Exception:  # noqa: BLE001 - of another form, or of several
        return [id_in(value) for value in values]
