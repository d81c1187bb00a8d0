"""What clients are told of items: records, one for each, and their summary."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec

from microbatch._pure.exceptions import ItemError, Skipped
from microbatch._pure.models import as_shown
from microbatch._pure.report import INTERNAL_ERROR

from ._checking import RefusedItem
from ._faults import logged
from ._problem import Problem
from ._statuses import SUCCESS, code_for, retryable_for, status_for, text_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ._operations import Operation

_encoder = msgspec.json.Encoder(enc_hook=as_shown)


class ItemFault(msgspec.Struct, gc=False):
    """Why an item failed, or was skipped: the ``error`` of its record.

    Attributes:
        code: What was wrong, for programs.
        message: What was wrong, for people.
        field: The item's field that was wrong, if one was.
        details: Anything more that the application tells.
        retryable: Whether sending the item again may help.
        retry_after: Seconds to wait before that, if that is known.
        pointer: Where in the request's body the fault lies, as a JSON pointer, if it lies there.
    """

    code: str
    message: str
    field: str | None = None
    details: Any = None
    retryable: bool = False
    retry_after: float | None = None
    pointer: str | None = None


class ItemRecord(msgspec.Struct, gc=False):
    """What became of one item.

    Attributes:
        index: Its position in the request, from 0.
        id: The id that was given, or for a create the ``id`` of its result, if it has one.
        ref: The client's own word for it.
        kind: ``"succeeded"``, ``"failed"``, ``"skipped"``; in jobs also ``"cancelled"``, ``"expired"``.
        success: Whether it succeeded, or was skipped.
        status: The status that a request for this item alone would have.
        data: The handler's result, if it succeeded.
        error: Why it did not succeed, or why it was skipped.
    """

    index: int
    id: Any
    ref: str | None
    kind: str
    success: bool
    status: int
    data: Any = msgspec.UNSET
    error: ItemFault | msgspec.UnsetType = msgspec.UNSET


class BatchSummary(msgspec.Struct):
    """How many items became what; ``errors`` counts those that failed or were skipped by their code."""

    total: int
    succeeded: int
    failed: int
    skipped: int
    cancelled: int
    expired: int
    errors: dict[str, int]


class BatchAnswer(msgspec.Struct):
    """The answer to a batch; ``took`` is in seconds."""

    results: list[ItemRecord]
    summary: BatchSummary
    took: float


class ItemTelling:
    """Makes records of what became of items.

    Errors that are no client's business are logged, once for each kind.

    Args:
        status_of: The application's own statuses, by code.
        what: What the items were sent to, for the log: nothing that a client sent.
    """

    def __init__(self, status_of: Callable[[str], int | None] | None, what: str) -> None:
        self._status_of = status_of
        self._what = what
        self._logged: dict[tuple[type, str], str] = {}

    def fault_of(
        self, error: Exception, pointer: str | None = None, data: str | None = None
    ) -> ItemFault:
        """Return what is told of an error.

        Args:
            error: The error.
            pointer: Where the item stands in the request's body; None if it does not.
            data: Where what its handler got stands there; the same place by default.
        """
        code = code_for(error)
        message = text_for(error, code)
        if message is None:
            code, message = INTERNAL_ERROR, f"internal error {self._id_of(error)}"
        fault = ItemFault(code, message, retryable=retryable_for(error, code))
        inside = getattr(error, "pointer", None)
        if pointer is not None and isinstance(inside, str):
            fault.pointer = pointer + inside
        if isinstance(error, ItemError):
            _take_over(error, fault)
            if fault.pointer is None and pointer is not None and fault.field is not None:
                fault.pointer = (
                    f"{data or pointer}/{fault.field.replace('~', '~0').replace('/', '~1')}"
                )
        return fault

    def status(self, error: Exception | None, kind: str | None) -> int:
        """Return the status of an item.

        Args:
            error: Why it failed or was skipped; None if it succeeded.
            kind: What was asked for.
        """
        if error is None:
            return SUCCESS[kind or "read"]
        if isinstance(error, Skipped):
            return 200
        unknown: int = error.status if isinstance(error, RefusedItem) else 500
        try:
            return status_for(code_for(error), self._status_of, unknown)
        except Exception as fault:  # noqa: BLE001 - the application's own, about what has been done
            ItemTelling._id_of(self, fault)
            return unknown

    def record(
        self,
        index: int,
        kind: str | None,
        *,
        id: Any = None,  # noqa: A002 - the public name
        ref: str | None = None,
        result: Any = None,
        error: Exception | None = None,
        pointer: str | None = None,
        data: str | None = None,
    ) -> ItemRecord:
        """Return the record of an item.

        Args:
            index: Its position.
            kind: What was asked for.
            id: The id that was given.
            ref: The client's own word for it.
            result: What the handler returned.
            error: Why it failed or was skipped; None if it succeeded.
            pointer: Where the item stands in the request's body; None if it does not.
            data: Where what its handler got stands there; the same place by default.
        """
        if error is None:
            if kind == "create":
                id = id_in(result, id)  # noqa: A001
            data = None if kind == "delete" else result
            return ItemRecord(index, id, ref, "succeeded", True, SUCCESS[kind or "read"], data)
        word: str = getattr(type(error), "outcome_kind", "failed")
        if isinstance(error, Skipped):
            word = "skipped"
        return ItemRecord(
            index,
            id,
            ref,
            word,
            word == "skipped",
            self.status(error, kind),
            error=self.fault_of(error, pointer, data),
        )

    def of(self, operation: Operation) -> ItemRecord:
        """Return the record of an item of a request."""
        return self.record(
            operation.index,
            operation.kind,
            id=operation.id,
            ref=operation.ref,
            result=operation.result,
            error=operation.error,
            pointer=operation.pointer,
            data=operation.data,
        )

    def encode(self, answer: BatchAnswer) -> bytes:
        """Return an answer as JSON. What has no form in it is its item's failure, and its alone."""
        try:
            return _encoder.encode(answer)
        except Exception:  # noqa: BLE001 - a result of the application's, or what shows it
            for place, record in enumerate(answer.results):
                try:
                    _encoder.encode(record)
                except Exception as error:  # noqa: BLE001 - the same one
                    answer.results[place] = unshown = self._unshown(record, error)
                    _count_as(answer.summary, record, unshown)
            return _encoder.encode(answer)

    def _unshown(self, record: ItemRecord, error: Exception) -> ItemRecord:
        fault = ItemFault(INTERNAL_ERROR, f"internal error {self._id_of(error)}")
        known = record.id if isinstance(record.id, (str, int)) else None
        try:
            _encoder.encode(known)
        except Exception:  # noqa: BLE001 - then that is what has no form
            known = None
        return ItemRecord(record.index, known, record.ref, "failed", False, 500, error=fault)

    def _id_of(self, error: Exception) -> str:
        # Of a batch that failed as a whole each item has a copy of one error.
        same = (type(error), repr(error.args)[:1_000])
        fault = self._logged.get(same)
        if fault is None:
            fault = self._logged[same] = logged(error, ["http", self._what])
        return fault


def _take_over(error: ItemError, fault: ItemFault) -> None:
    """Tell what an ItemError tells, as far as that is what it should be: a subclass may be anything."""
    if isinstance(error.field, str):
        fault.field = error.field
    after: Any = error.retry_after
    if (
        isinstance(after, (int, float))
        and not isinstance(after, bool)
        and 0 <= after < float("inf")
    ):
        fault.retry_after = after
    if error.details is not None:
        try:
            _encoder.encode(error.details)
        except Exception:  # noqa: BLE001 - the application's own
            return
        fault.details = error.details


def id_in(result: Any, given: Any = None) -> Any:
    """Return the ``id`` of a handler's result, a field or a key; what was given if it has none."""
    if isinstance(result, dict):
        return result.get("id", given)
    return getattr(result, "id", given)


def summary_of(records: Sequence[ItemRecord]) -> BatchSummary:
    """Count records."""
    words = [record.kind for record in records]
    total = len(words)
    if words.count("succeeded") == total:
        return BatchSummary(total, total, 0, 0, 0, 0, {})
    kinds = Counter(words)
    codes = Counter(record.error.code for record in records if record.error is not msgspec.UNSET)
    return BatchSummary(
        total=total,
        succeeded=kinds["succeeded"],
        failed=kinds["failed"],
        skipped=kinds["skipped"],
        cancelled=kinds["cancelled"],
        expired=kinds["expired"],
        errors=dict(codes),
    )


def _count_as(summary: BatchSummary, was: ItemRecord, now: ItemRecord) -> None:
    """Count a record as another one. The answer may hold no more than some of those that are counted."""
    errors = Counter(summary.errors)
    for record, by in ((was, -1), (now, 1)):
        setattr(summary, record.kind, getattr(summary, record.kind) + by)
        if record.error is not msgspec.UNSET:
            errors[record.error.code] += by
    summary.errors = dict(+errors)


def first_failure(operations: Iterable[Operation]) -> Exception | None:
    """Return the first error that is an item's own: neither skipped, nor failed for another's sake."""
    errors = [one.error for one in operations if one.error is not None]
    own = [one for one in errors if not isinstance(one, Skipped) and code_for(one) != "aborted"]
    return next(iter(own), None)


def refuse_if_any(operations: Sequence[Operation], telling: ItemTelling) -> None:
    """Refuse a batch as a whole that has an item which cannot be done.

    Raises:
        Problem: 422, with all errors.
    """
    errors = []
    for one in operations:
        if one.error is not None:
            fault = telling.fault_of(one.error, one.pointer, one.data)
            errors.append(
                {
                    "index": one.index,
                    "id": one.id,
                    "ref": one.ref,
                    "code": fault.code,
                    "message": fault.message,
                    "field": fault.field,
                    "pointer": fault.pointer or one.pointer,
                }
            )
    if errors:
        many = "1 item" if len(errors) == 1 else f"{len(errors)} items"
        message = f"{many} cannot be done, so nothing was done: mode is reject"
        raise Problem(422, message, type="invalid-items", errors=errors)
