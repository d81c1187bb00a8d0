"""The exceptions of `microbatch.errors`, but for `BatchFailed`, which carries a report.

Each class keeps its fields in ``args`` and builds its message from them, so that every one of them can be
copied and pickled.
"""

from __future__ import annotations

from typing import Any


class MicrobatchError(Exception):
    """The root of every exception that microbatch raises by itself."""


class Full(MicrobatchError):
    """There is no room for another item: slow down or try again later."""


class BatcherFull(Full):
    """The batcher holds as many items as it may and was told not to wait for room.

    Attributes:
        name: The batcher's name.
        limit: The setting that was reached, ``"max_pending"`` or ``"max_pending_weight"``.
        allowed: That setting's value.
    """

    def __init__(self, name: str, limit: str, allowed: float) -> None:
        super().__init__(name, limit, allowed)
        self.name = name
        self.limit = limit
        self.allowed = allowed

    def __str__(self) -> str:
        return f"batcher {self.name!r} is full: {self.limit}={self.allowed} is reached"


class BatcherClosed(MicrobatchError):
    """The batcher is closed, or was closed before this item's result was there.

    Attributes:
        name: The batcher's name.
        started: True if the item was in a handler call that was cut short: what the handler did for it
            is then unknown. False if no handler ever saw the item, or its backend only refused it
            (``RateLimited``).
    """

    def __init__(self, name: str, started: bool = False) -> None:
        super().__init__(name, started)
        self.name = name
        self.started = started

    def __str__(self) -> str:
        if self.started:
            return f"batcher {self.name!r} was closed while the handler was working on this item"
        return f"batcher {self.name!r} is closed: this item was not handled"


class BatchAborted(MicrobatchError):
    """This item was fine, but its batch is all or nothing and another item failed.

    Attributes:
        index: The position of the item that failed, in the batch.
        reason: That item's exception.
        name: The batcher's name; None if the handler was called without one.
    """

    def __init__(self, index: int, reason: BaseException, name: str | None = None) -> None:
        super().__init__(index, reason, *_named(name))
        self.index = index
        self.reason = reason
        self.name = name

    def __str__(self) -> str:
        whose = "" if self.name is None else f" of batcher {self.name!r}"
        kind = type(self.reason).__name__
        return f"the batch{whose} was aborted because its item {self.index} failed: {kind}: {self.reason}"


class ItemError(MicrobatchError):
    """One item failed, for a reason that a program can act on.

    Handlers return it in the place of a result, or raise it for the whole batch.

    Args:
        message: What was wrong, for people.
        code: What was wrong, for programs: a short word such as ``"duplicate_email"``. Reports count
            failures by it.
        retryable: Whether sending the item again may help. ``None`` leaves that to ``Retry(on=...)``.
        retry_after: Seconds to wait before the next attempt, if the backend said so.
        field: The item's field that was wrong, if one was.
        details: Anything more, made of built-in types.
    """

    # On the class too: for subclasses whose constructor does not call this one.
    message: str = ""
    code: str = "item_error"
    retryable: bool | None = None
    retry_after: float | None = None
    field: str | None = None
    details: Any = None

    def __init__(
        self,
        message: str = "",
        *,
        code: str = "item_error",
        retryable: bool | None = None,
        retry_after: float | None = None,
        field: str | None = None,
        details: Any = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.retryable = retryable
        self.retry_after = retry_after
        self.field = field
        self.details = details

    def __str__(self) -> str:
        return str(self.message or super().__str__() or self.code)


class ItemNotFound(ItemError, KeyError):
    """A bulk read found nothing for this item.

    Attributes:
        key: What was looked for.
    """

    code: str = "not_found"
    retryable: bool | None = False

    def __init__(self, key: Any) -> None:
        super().__init__(code="not_found", retryable=False)
        Exception.__init__(self, key)  # args, as of any KeyError
        self.key = key

    def __str__(self) -> str:
        return f"nothing was found for {self.key!r}"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.args


class Skipped(ItemError):
    """The item was left out on purpose, for example as a duplicate: counted apart from failures.

    Attributes:
        reason: Why it was left out.
    """

    code: str = "skipped"
    retryable: bool | None = False
    reason: str = ""

    def __init__(self, reason: str = "", *, code: str = "skipped", details: Any = None) -> None:
        super().__init__(reason, code=code, retryable=False, details=details)
        self.reason = reason


class RateLimited(ItemError):
    """The backend takes nothing now: too many requests, unavailable for a while, locked.

    That is no failure of an item. A handler raises it for its whole batch, or returns it in the places of
    the items that were not taken. With ``retry=`` those go to the front of their partition's buffer again,
    no attempt is counted, and no batch of that partition begins until the time is over; see ``Retry``.
    Without, it is an error like any other.

    Args:
        message: What the backend said, for people.
        retry_after: Seconds until it may be asked again; None, or what is not finite, if it did not say.
            `retry_after` reads them off an HTTP header.
        details: Anything more, made of built-in types.
    """

    code: str = "rate_limited"
    retryable: bool | None = True

    def __init__(
        self, message: str = "", *, retry_after: float | None = None, details: Any = None
    ) -> None:
        super().__init__(
            message, code="rate_limited", retryable=True, retry_after=retry_after, details=details
        )

    def __str__(self) -> str:
        when = (
            "" if self.retry_after is None else f", and may be asked again in {self.retry_after} s"
        )
        return str(self.message or f"the backend takes nothing now{when}")


class ItemTooHeavy(ItemError, ValueError):
    """The item by itself weighs more than ``max_batch_weight`` or ``max_pending_weight``.

    Attributes:
        weight: What the item weighs.
        allowed: The most that an item may weigh.
        limit: The setting's name.
        name: The batcher's name.
    """

    code: str = "item_too_heavy"
    retryable: bool | None = False

    def __init__(
        self,
        weight: float,
        allowed: float,
        limit: str = "max_batch_weight",
        name: str | None = None,
    ) -> None:
        whose = "" if name is None else f" of batcher {name!r}"
        super().__init__(
            f"an item of weight {weight} is over {limit}={allowed}{whose}",
            code="item_too_heavy",
            retryable=False,
        )
        self.weight = weight
        self.allowed = allowed
        self.limit = limit
        self.name = name

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.weight, self.allowed, self.limit, self.name)


class ResultCountError(MicrobatchError):
    """The handler did not give exactly one result for each item.

    Attributes:
        expected: How many results were due: the size of the batch.
        got: How many came.
        detail: What was wrong in particular, such as the index that a generator gave twice.
        name: The batcher's name; None if the handler was called without one.
    """

    def __init__(self, expected: int, got: int, detail: str = "", name: str | None = None) -> None:
        super().__init__(expected, got, detail, *_named(name))
        self.expected = expected
        self.got = got
        self.detail = detail
        self.name = name

    def __str__(self) -> str:
        whose = "" if self.name is None else f" of batcher {self.name!r}"
        rule = f"the handler{whose} must give one result for each of its {self.expected} items"
        return f"{rule}: {self.detail}" if self.detail else f"{rule}, got {self.got}"


class HandlerTimeout(MicrobatchError, TimeoutError):
    """The handler took longer than ``handler_timeout``; whether it did its work is unknown.

    Attributes:
        name: The batcher's name.
        seconds: The ``handler_timeout`` that passed.
    """

    def __init__(self, name: str, seconds: float) -> None:
        super().__init__(name, seconds)
        self.name = name
        self.seconds = seconds

    def __str__(self) -> str:
        return f"the handler of batcher {self.name!r} took longer than handler_timeout={self.seconds} s"


class HandlerCrashed(MicrobatchError):
    """The handler ended with what must not reach a caller as it is; ``__cause__`` has the original.

    That is a ``BaseException`` such as ``KeyboardInterrupt``, or a cancellation that nobody asked for.

    Attributes:
        name: The batcher's name.
        kind: The name of the original exception's class.
    """

    def __init__(self, name: str, kind: str) -> None:
        super().__init__(name, kind)
        self.name = name
        self.kind = kind

    def __str__(self) -> str:
        return f"the handler of batcher {self.name!r} crashed with {self.kind}"


class HandlerStuck(MicrobatchError):
    """Too many earlier handler calls still run after their timeout, so no new one was started.

    Attributes:
        name: The batcher's name.
        stuck: How many calls are stuck.
        allowed: How many may be.
    """

    def __init__(self, name: str, stuck: int, allowed: int) -> None:
        super().__init__(name, stuck, allowed)
        self.name = name
        self.stuck = stuck
        self.allowed = allowed

    def __str__(self) -> str:
        return (
            f"{self.stuck} handler calls of batcher {self.name!r} ignore their timeout, "
            f"more than {self.allowed}: no new batch is started until some of them end"
        )


class WouldDeadlock(MicrobatchError, RuntimeError):
    """A handler waited on the batcher that is waiting for it.

    Attributes:
        name: The batcher's name.
        call: The method that was called.
    """

    def __init__(self, name: str, call: str) -> None:
        super().__init__(name, call)
        self.name = name
        self.call = call

    def __str__(self) -> str:
        return (
            f"{self.call}() inside a handler of batcher {self.name!r} would wait for the batch that is "
            "running it; use submit_nowait() and do not await it there"
        )


def _named(name: str | None) -> tuple[str, ...]:
    return () if name is None else (name,)


def code_of(error: ItemError) -> str:
    """Return an error's code; ``"item_error"`` where a subclass has made something else of it than a str."""
    try:
        code = error.code
        return str.__str__(code)
    except Exception:  # noqa: BLE001 - a subclass's own property, or no str
        return ItemError.code
