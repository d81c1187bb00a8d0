"""Who waits where that is not one caller with a future: a group, or the sharers of a slot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from microbatch._pure.copying import copy_exception
from microbatch._pure.report import BatchReport, Outcome, outcome_of

if TYPE_CHECKING:
    from contextvars import Context

    from .entry import Entry


class Group:
    """The items of one ``submit_many``: one caller, many outcomes.

    Attributes:
        values: Each item's value, as far as there is one.
        errors: The exceptions, by index.
        attempts: Handler calls by index, where they were not 1.
        left: Outcomes still missing.
        entries: The items, once the batcher keeps entries, each with the index that it has here.
        feed: What still waits for room.
        taken: How many of its items have left the Fifo.
        contexts: Each item's own, where they came from several callers; None for their one caller's.
    """

    __slots__ = (
        "attempts",
        "contexts",
        "entries",
        "errors",
        "feed",
        "first_id",
        "left",
        "taken",
        "values",
        "waiter",
    )

    def __init__(self, total: int, first_id: int) -> None:
        self.values: list[Any] = [None] * total
        self.errors: dict[int, Exception] = {}
        self.attempts: dict[int, int] = {}
        self.left: int = total
        self.first_id: int = first_id
        self.taken: int = 0
        self.entries: list[tuple[Entry, int]] = []
        self.feed: Any = None
        self.waiter: Any = None
        self.contexts: list[Context] | None = None

    def fail(self, index: int, error: Exception, attempts: int = 0) -> None:
        """Record that an item failed without a handler call."""
        self.attempts[index] = attempts
        self.put_error(index, error)

    def put(self, index: int, value: Any) -> None:
        """Take in the value of one item."""
        self.values[index] = value
        self.count()

    def put_error(self, index: int, error: Exception) -> None:
        """Take in the exception of one item."""
        self.errors[index] = error
        self.count()

    def count(self) -> None:
        """Count one outcome; the last one wakes the caller."""
        self.left -= 1
        if not self.left and not self.waiter.done():
            self.waiter.set_result(None)

    def done(self) -> bool:
        """Tell whether the caller has gone."""
        return bool(self.waiter.done())

    def gone(self, index: int) -> bool:
        """Tell whether nobody waits for one of the items any more."""
        del index
        return bool(self.waiter.done())

    def member(self, index: int) -> Member:
        """Return who waits for one of the items."""
        return Member((self, index))

    def take_in(self, first: int, values: list[Any]) -> None:
        """Take in the values of items that stand in a row."""
        self.values[first : first + len(values)] = values
        self.left -= len(values)
        if not self.left and not self.waiter.done():
            self.waiter.set_result(None)

    def report(self, name: str | None = None) -> BatchReport[Any]:
        """Return what became of every item; name: the batcher's."""
        first, attempts, errors = self.first_id, self.attempts, self.errors
        if not errors and not attempts:
            good = (
                Outcome(i, True, value, None, False, 1, first + i)
                for i, value in enumerate(self.values)
            )
            return BatchReport(good, name=name)
        outcomes = (
            outcome_of(
                i,
                errors.get(i, value),
                attempts=attempts.get(i, 1),
                id=first + i,
            )
            for i, value in enumerate(self.values)
        )
        return BatchReport(outcomes, name=name)


class Member(tuple[Group, int]):
    """The waiter of one item of a group.

    In a Fifo the group itself stands for each of its members, which costs nothing: they keep their order,
    so a counter tells which is which. Whoever looks at a single one makes a Member of it.
    """

    __slots__ = ()

    def done(self) -> bool:
        return self[0].gone(self[1])

    def set_result(self, result: Any) -> None:
        self[0].put(self[1], result)

    def set_exception(self, error: Exception) -> None:
        self[0].put_error(self[1], error)


def dressed(waiters: list[Any]) -> list[Any]:
    """Return waiters as they leave a Fifo, with a Member wherever a group stands for one."""
    result = []
    for waiter in waiters:
        if isinstance(waiter, Group):
            result.append(Member((waiter, waiter.taken)))
            waiter.taken += 1
        else:
            result.append(waiter)
    return result


class Shared:
    """The callers who share one coalesced item.

    Attributes:
        waiters: Who waits, in the order in which they came, each with its caller's context where those
            are kept. A dict, so that each leaves at once, however many there are.
    """

    __slots__ = ("waiters",)

    def __init__(self, waiters: dict[Any, Context | None]) -> None:
        self.waiters = waiters

    def done(self) -> bool:
        return all(waiter.done() for waiter in self.waiters)

    def set_result(self, result: Any) -> None:
        for waiter in list(self.waiters):  # whom one's end tells may make another leave
            if not waiter.done():
                waiter.set_result(result)

    def set_exception(self, error: Exception) -> None:
        for waiter in list(self.waiters):
            if not waiter.done():
                waiter.set_exception(copy_exception(error))
