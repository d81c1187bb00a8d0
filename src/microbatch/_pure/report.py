"""Outcomes: what became of one item, of many, and the error that carries a report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, Self, TypeVar, overload

from .exceptions import ItemError, MicrobatchError, Skipped, code_of
from .markup import table
from .models import as_shown


class BatchFailed(MicrobatchError, ExceptionGroup[Exception]):
    """Some items of ``submit_many`` failed; the group holds their exceptions in the order of the items.

    Attributes:
        report: The outcomes of all items, the successful ones included.
    """

    report: BatchReport[Any]

    def __new__(
        cls, message: str, exceptions: Sequence[Exception], report: BatchReport[Any]
    ) -> Self:
        """Make the group; the report stands beside it."""
        group = super().__new__(cls, message, exceptions)
        group.report = report
        return group

    def __init__(
        self, message: str, exceptions: Sequence[Exception], report: BatchReport[Any]
    ) -> None:
        super().__init__(message, exceptions)

    def derive(self, exceptions: Sequence[Exception], /) -> BatchFailed:  # type: ignore[override]
        """Return a group of the same kind and report: what ``except*`` and ``split`` ask for."""
        return BatchFailed(self.message, exceptions, self.report)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.exceptions, self.report)


R_co = TypeVar("R_co", covariant=True)


#: The code under which a report counts an exception that is not an ItemError. One word for all of them:
#: a class name in a report that leaves the house tells strangers what the house is built of.
INTERNAL_ERROR = "internal_error"


#: Items without a value that a notebook shows of a report: a screen of them.
SHOWN_IN_NOTEBOOKS = 20


#: What can become of an item, in one word; the last two are of jobs alone.
OutcomeKind = Literal["succeeded", "failed", "skipped", "cancelled", "expired"]


@dataclass(frozen=True, slots=True)
class Outcome(Generic[R_co]):
    """What became of one item.

    Attributes:
        index: The item's position among the items that were submitted together, from 0.
        ok: True if the item has a value.
        value: The handler's result; ``None`` unless ``ok``.
        error: The exception that the item's caller would have got; ``None`` if ``ok``.
        skipped: True if ``error`` is a ``Skipped``.
        attempts: Handler calls that the item was part of; 0 if it never got that far.
        id: In memory a number that grows with every item submitted in bulk to the same batcher; in
            durable mode the id of the ticket.
    """

    index: int
    ok: bool
    value: R_co | None = None
    error: Exception | None = None
    skipped: bool = False
    attempts: int = 1
    id: int | str | None = None

    @property
    def kind(self) -> OutcomeKind:
        """Return what became of the item in one word: ``"succeeded"``, ``"failed"`` or ``"skipped"``.

        Of a job's item also ``"cancelled"`` or ``"expired"``.
        """
        if self.ok:
            return "succeeded"
        if self.skipped:
            return "skipped"
        kind: OutcomeKind = getattr(type(self.error), "outcome_kind", "failed")
        return kind

    def unwrap(self) -> R_co:
        """Return the value, or raise the error that the item's caller would have got.

        Raises:
            Exception: ``error``, if there is one.
        """
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]

    @property
    def code(self) -> str | None:
        """Return the error's code, ``"internal_error"`` for foreign exceptions, None if ``ok``."""
        return None if self.error is None else error_code(self.error)

    def as_dict(self) -> dict[str, Any]:
        """Return the outcome made of built-in types only, fit for JSON or MessagePack.

        The text of an exception that is not an ``ItemError`` or another of microbatch's own stays
        inside: only its code, ``"internal_error"``, is shown.

        Raises:
            TypeError: If the value is of a type that msgspec cannot turn into built-in ones, and no model
                in the manner of pydantic.
        """
        from msgspec import to_builtins  # noqa: PLC0415 - `import microbatch` must not import msgspec

        error = None if self.error is None else _describe(self.error)
        return {
            "index": self.index,
            "id": self.id,
            "ok": self.ok,
            "skipped": self.skipped,
            "attempts": self.attempts,
            "value": to_builtins(self.value, enc_hook=as_shown),
            "error": to_builtins(error, enc_hook=as_shown),
        }


class BatchReport(Sequence[Outcome[R_co]]):
    """The outcomes of items submitted together, in their order, with a summary.

    ``total == succeeded + failed + skipped`` always holds.

    Args:
        outcomes: One for each item, in the items' order.
        name: The batcher's name, for the error that `values` raises.

    Attributes:
        total: How many items there were.
        succeeded: How many have a value.
        failed: How many have an error that is not ``Skipped``.
        skipped: How many were left out on purpose.
        errors: How many failed or were skipped, by code.
    """

    __slots__ = ("_name", "_outcomes", "errors", "failed", "skipped", "succeeded", "total")

    def __init__(self, outcomes: Iterable[Outcome[R_co]], *, name: str | None = None) -> None:
        self._name = name
        self._outcomes: tuple[Outcome[R_co], ...] = tuple(outcomes)
        self.total: int = len(self._outcomes)
        self.succeeded: int = sum(outcome.ok for outcome in self._outcomes)
        self.skipped: int = sum(outcome.skipped for outcome in self._outcomes)
        self.failed: int = self.total - self.succeeded - self.skipped
        self.errors: dict[str, int] = dict(
            Counter(error_code(o.error) for o in self._outcomes if o.error is not None)
        )

    def values(self) -> list[R_co]:
        """Return every item's value, in order.

        Raises:
            BatchFailed: If an item failed or was skipped; the group holds all their exceptions.
        """
        errors = [outcome.error for outcome in self._outcomes if outcome.error is not None]
        if errors:
            whose = "" if self._name is None else f"batcher {self._name!r}: "
            message = f"{whose}{len(errors)} of {self.total} items failed"
            raise BatchFailed(message, errors, self)
        return [outcome.value for outcome in self._outcomes]  # type: ignore[misc]

    @overload
    def __getitem__(self, index: int) -> Outcome[R_co]: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Outcome[R_co], ...]: ...
    def __getitem__(self, index: int | slice) -> Outcome[R_co] | tuple[Outcome[R_co], ...]:
        return self._outcomes[index]

    def __len__(self) -> int:
        return self.total

    def __repr__(self) -> str:
        return (
            f"<BatchReport total={self.total} succeeded={self.succeeded} "
            f"failed={self.failed} skipped={self.skipped} errors={self.errors}>"
        )

    def _repr_html_(self) -> str:
        """Return what notebooks show: the counts, and the first items that have no value."""
        counts = f"{self.succeeded:,} of {self.total:,} items succeeded"
        parts = [table(counts, ("code", "items"), self.errors.items())]
        if self.errors:
            bad = [one for one in self._outcomes if not one.ok]
            rest = len(bad) - SHOWN_IN_NOTEBOOKS
            rows = [
                (one.index, one.kind, one.code, one.error, one.attempts)
                for one in bad[:SHOWN_IN_NOTEBOOKS]
            ]
            title = f"the first {len(rows)}, and {rest:,} more" if rest > 0 else "each of them"
            parts.append(table(title, ("index", "kind", "code", "error", "attempts"), rows))
        return "".join(parts)


def outcome_of(
    index: int,
    result: Any,
    *,
    attempts: int = 1,
    id: int | str | None = None,  # noqa: A002
) -> Outcome[Any]:
    """Turn a handler's result for one item, an exception or a value, into its outcome."""
    kind = type(result)  # not isinstance: a proxy may raise when asked for its __class__
    if issubclass(kind, Exception):
        skipped = issubclass(kind, Skipped)
        return Outcome(index, False, None, result, skipped, attempts, id)
    return Outcome(index, True, result, None, False, attempts, id)


def error_code(error: BaseException) -> str:
    """Return the code under which reports count an error.

    An ``ItemError`` brings its own, and so does the record of one on disk; microbatch's other errors are
    their class's name in snake case (``handler_timeout``); everything else is ``internal_error``.
    """
    kind = type(error)
    if issubclass(kind, ItemError):
        return code_of(error)  # type: ignore[arg-type]
    if issubclass(kind, MicrobatchError):
        stored = getattr(error, "code", None)
        if isinstance(stored, str):
            return stored
    return code_of_class(kind)


def code_of_class(kind: type[BaseException]) -> str:
    """Return the code of errors of a class, where they bring none of their own."""
    if issubclass(kind, MicrobatchError):
        name = kind.__name__
        return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")
    return INTERNAL_ERROR


def _describe(error: Exception) -> dict[str, Any]:
    description: dict[str, Any] = {"code": error_code(error), "message": "internal error"}
    if isinstance(error, MicrobatchError):
        description["message"] = _text_of(error)
    if isinstance(error, ItemError):
        for field in ("field", "details", "retryable"):
            if (value := getattr(error, field)) is not None:
                description[field] = value
    return description


def _text_of(error: MicrobatchError) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - a subclass's own
        return type(error).__name__
