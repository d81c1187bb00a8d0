"""What batches are sent in: the envelope, and each item in it, decoded alone so that all bad ones are told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from microbatch._pure.exceptions import ItemError

from ._operations import Operation, Update
from ._options import BatchOptions
from ._problem import Problem
from ._shape import InvalidItem, invalid, pointer_to

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ._collection import Collection

_UNSET = msgspec.UNSET
_Unset = msgspec.UnsetType
_Raws = list[msgspec.Raw]

#: Characters of a ``ref``, and of a method or a collection that there is not, as they are told.
_WORD_CHARACTERS_MAX = 256


class WebhookTarget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the end of a job is told: ``url`` is asked for with POST."""

    url: str


class _Envelope(msgspec.Struct, forbid_unknown_fields=True):
    items: _Raws | _Unset = _UNSET
    updates: _Raws | _Unset = _UNSET
    operations: _Raws | _Unset = _UNSET
    ids: _Raws | _Unset = _UNSET
    options: BatchOptions = BatchOptions()
    webhook: WebhookTarget | None = None


class _UpdateEnvelope(msgspec.Struct, forbid_unknown_fields=True):
    id: msgspec.Raw | _Unset = _UNSET
    data: msgspec.Raw | _Unset = _UNSET
    ref: str | None = None


class _OperationEnvelope(msgspec.Struct, forbid_unknown_fields=True):
    method: str
    collection: str | None = None
    id: msgspec.Raw | _Unset = _UNSET
    data: msgspec.Raw | _Unset = _UNSET
    ref: str | None = None


_decode_envelope = msgspec.json.Decoder(_Envelope).decode
_decode_update = msgspec.json.Decoder(_UpdateEnvelope).decode
_decode_operation = msgspec.json.Decoder(_OperationEnvelope).decode


@dataclass(frozen=True, slots=True)
class Envelope:
    """A batch as it was sent.

    Attributes:
        key: Under which name its items stood: ``"items"``, ``"updates"``, ``"operations"`` or ``"ids"``.
        raws: The items as they were sent; as they were read if it is ``whole``.
        options: Its options.
        webhook: Where a job's end is to be told; None if it was not asked for.
        whole: Whether it was read with all its items, which all fit.
    """

    key: str
    raws: Sequence[Any]
    options: BatchOptions
    webhook: WebhookTarget | None
    whole: bool = False


def not_json(error: Exception) -> Problem:
    """Return the problem of a body that could not be read as what it should be."""
    if isinstance(error, msgspec.ValidationError):
        text, _, pointer = pointer_to(str(error))
        return Problem(400, text, type="invalid-request", pointer=pointer)
    if isinstance(error, RecursionError):
        return Problem(400, "the body is nested too deeply", type="invalid-request", pointer="")
    if isinstance(error, (msgspec.DecodeError, UnicodeError)):
        return Problem(400, "the body is no valid JSON", type="invalid-request", pointer="")
    raise error


def envelope_of(body: bytes, allowed: Sequence[str]) -> Envelope:
    """Read an envelope, but not what is in it.

    Args:
        body: The request's body.
        allowed: Under which of the names items may stand here.

    Raises:
        Problem: 400 if it is no JSON, nested too deeply, or not of this form; with a JSON pointer.
    """
    try:
        read = _decode_envelope(body)
    except Exception as error:  # noqa: BLE001 - raised anew
        raise not_json(error) from None
    given = [
        name
        for name in ("items", "updates", "operations", "ids")
        if getattr(read, name) is not _UNSET
    ]
    names = ", ".join(allowed)
    wrong = next((name for name in given if name not in allowed), None)
    if wrong is not None:
        detail = f"unknown field {wrong}: known here are {names}, options"
        raise Problem(400, detail, type="invalid-request", pointer=f"/{wrong}")
    if len(given) != 1:
        detail = f"exactly one of {names} is required, got {len(given)}"
        raise Problem(400, detail, type="invalid-request", pointer="")
    raws: Any = getattr(read, given[0])
    return Envelope(given[0], raws, read.options, read.webhook)


class Unpacking:
    """Makes operations of what stands in an envelope.

    Args:
        collections: All that may be named.
        default: The collection of operations that name none; None where they have to.
        max_item_bytes: What one item may have, as it was sent.
    """

    def __init__(
        self,
        collections: Mapping[str, Collection],
        default: Collection | None,
        max_item_bytes: int,
    ) -> None:
        self._collections = collections
        self._default = default
        self._max_item_bytes = max_item_bytes

    def operations(self, envelope: Envelope, kind: str) -> list[Operation]:
        """Return what is asked for, each with its error if it cannot be done.

        Args:
            envelope: The batch.
            kind: What its items are: ``"create"``, ``"update"``, ``"delete"``, ``"read"``; not asked of those
                that name their own method.
        """
        reads: dict[str, Callable[[Operation, msgspec.Raw], None]] = {
            "create": self._created,
            "update": self._updated,
            "delete": self._identified,
            "read": self._identified,
        }
        fill = self._chosen if envelope.key == "operations" else reads[kind]
        found = []
        for index, raw in enumerate(envelope.raws):
            one: Any = Operation(index, None, self._default, f"/{envelope.key}/{index}")
            if envelope.key != "operations":
                one.kind = kind
            try:
                size = memoryview(raw).nbytes
                if size > self._max_item_bytes:
                    raise ItemError(
                        f"an item may have at most {self._max_item_bytes} bytes, this one has {size}",
                        code="item_too_large",
                        retryable=False,
                    )
                fill(one, raw)
            except ItemError as error:
                one.error = error
            found.append(one)
        return found

    def _created(self, one: Operation, raw: msgspec.Raw) -> None:
        one.item = self._of(one).items.decode(raw)

    def _identified(self, one: Operation, raw: msgspec.Raw) -> None:
        one.item = one.id = self._of(one).ids.decode(raw)

    def _updated(self, one: Operation, raw: msgspec.Raw) -> None:
        try:
            read = _decode_update(raw)
        except Exception as error:
            raise invalid(error) from error
        one.ref = _word(read.ref)
        self._change(one, read.id, read.data)

    def _chosen(self, one: Operation, raw: msgspec.Raw) -> None:
        one.collection = None  # until it is known
        try:
            read = _decode_operation(raw)
        except Exception as error:
            raise invalid(error) from error
        one.ref = _word(read.ref)
        one.collection = collection = self._named(read.collection)
        if read.method not in collection.operations or read.method == "read":
            known = ", ".join(name for name in collection.operations if name != "read")
            raise InvalidItem(
                f"unknown method {_quoted(read.method)}: known here are {known}",
                code="unknown_method",
                field="method",
                pointer="/method",
            )
        one.kind = read.method  # type: ignore[assignment]
        if read.method == "create":
            if read.id is not _UNSET:
                one.id = self._id(collection, read.id)
            one.data = f"{one.pointer}/data"
            one.item = self._data(read.data, collection.items.decode)
        elif read.method == "update":
            self._change(one, read.id, read.data)
        else:
            one.item = one.id = self._id(collection, read.id)

    def _change(self, one: Operation, given: Any, data: Any) -> None:
        collection = self._of(one)
        one.data = f"{one.pointer}/data"
        one.id = self._id(collection, given)
        assert collection.changes is not None  # noqa: S101 - what updates has them
        one.item = Update(one.id, self._data(data, collection.changes.decode))

    def _named(self, name: str | None) -> Collection:
        if self._default is not None and name in {None, self._default.name}:
            return self._default
        collection = (
            None if name is None or self._default is not None else self._collections.get(name)
        )
        if collection is None:
            which = "none is named" if name is None else _quoted(name)
            raise InvalidItem(
                f"unknown collection: {which}",
                code="unknown_collection",
                field="collection",
                pointer="/collection",
            )
        return collection

    @staticmethod
    def _of(one: Operation) -> Collection:
        assert one.collection is not None  # noqa: S101 - these routes are a collection's
        return one.collection

    @staticmethod
    def _id(collection: Collection, raw: Any) -> Any:
        if raw is _UNSET:
            raise InvalidItem("the id is missing", code="missing_id", field="id")
        return _within("/id", lambda: collection.ids.decode(raw))

    @staticmethod
    def _data(raw: Any, decode: Callable[[msgspec.Raw], Any]) -> Any:
        if raw is _UNSET:
            raise InvalidItem("data is missing", field="data", pointer="/data")
        return _within("/data", lambda: decode(raw))


def _within(pointer: str, decode: Callable[[], Any]) -> Any:
    """Decode a part of an item; what is wrong lies below a pointer."""
    try:
        return decode()
    except InvalidItem as error:
        error.pointer = pointer + error.pointer
        raise


def _word(text: str | None) -> str | None:
    if text is not None and len(text) > _WORD_CHARACTERS_MAX:
        message = f"ref may have at most {_WORD_CHARACTERS_MAX} characters, got {len(text)}"
        raise InvalidItem(message, field="ref", pointer="/ref")
    return text


def _quoted(text: str) -> str:
    return repr(text[:_WORD_CHARACTERS_MAX])
