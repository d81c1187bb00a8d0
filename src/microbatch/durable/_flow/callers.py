"""Who waits for which item's end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from microbatch._pure.exceptions import BatcherClosed
from microbatch.durable._file.codec import decode_error
from microbatch.durable._file.records import State
from microbatch.durable.errors import ItemCancelled, ItemExpired, ItemFailed, UnknownTicket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from microbatch.durable._file.codec import Codec
    from microbatch.durable._file.records import Found


class Callers:
    """The callers who wait, by item. Each is told once.

    Args:
        results: How results read back.
        queue: The queue's name, for errors.
        look_up: Sees whether items have ended already.

    Attributes:
        awake: Called when somebody waits where nobody did.
    """

    def __init__(
        self,
        results: Codec[Any],
        queue: str,
        look_up: Callable[[Sequence[int]], object],
    ) -> None:
        self._results = results
        self._queue = queue
        self.look_up = look_up
        self.awake: Callable[[], object] = lambda: None
        self._by_item: dict[int, list[Any]] = {}

    def __bool__(self) -> bool:
        return bool(self._by_item)

    def items(self) -> list[int]:
        """Return the items that somebody waits for."""
        return list(self._by_item)

    def among(self, spans: Iterable[tuple[int, int]]) -> list[int]:
        """Return which of the items that somebody waits for are in these spans of ids."""
        waited, found = self._by_item, []
        for first, count in spans:
            if count < len(waited):
                found += [number for number in range(first, first + count) if number in waited]
            else:
                found += [number for number in waited if first <= number < first + count]
        return found

    def add(self, number: int, waiter: Any) -> None:
        """Let a future wait for an item's end."""
        if waiter.done():
            return
        others = self._by_item.get(number)
        if others is not None:
            others.append(waiter)
            return
        alone = not self._by_item
        self._by_item[number] = [waiter]
        if alone:
            self.awake()

    def leave(self, number: int, waiter: Any) -> None:
        """Forget a future, whatever has become of it."""
        waiters = self._by_item.get(number)
        if waiters is not None and waiter in waiters:
            waiters.remove(waiter)
            if not waiters:
                del self._by_item[number]
        if not waiter.cancel() and not waiter.cancelled():
            waiter.exception()  # retrieved, so that asyncio does not complain that nobody did

    def succeed(self, number: int, value: Any) -> None:
        """Give an item's result to those who wait for it."""
        for waiter in self._by_item.pop(number, ()):
            if not waiter.done():
                waiter.set_result(value)

    def succeed_all(self, numbers: Sequence[int], values: Sequence[Any]) -> None:
        """The same for many items."""
        pop = self._by_item.pop
        for number, value in zip(numbers, values, strict=True):
            waiters = pop(number, None)
            if waiters is not None:
                for waiter in waiters:
                    if not waiter.done():
                        waiter.set_result(value)

    def fail(self, number: int, make_error: Callable[[], Exception]) -> None:
        """Raise an error in those who wait for an item: each gets one of its own."""
        for waiter in self._by_item.pop(number, ()):
            if not waiter.done():
                waiter.set_exception(make_error())

    def close(self, name: str) -> None:
        """Tell all of them that nobody will tell them any more."""
        for number in self.items():
            self.fail(number, lambda: BatcherClosed(name, started=True))

    def tell(self, number: int, found: Found | None) -> None:
        """Tell those who wait for an item how it ended, as the disk has it; nothing if it has not."""
        if number not in self._by_item:
            return
        if found is None:
            self.fail(number, lambda: UnknownTicket(number, self._queue))
            return
        state, error, attempts = found.state, found.error, found.attempts
        if state == State.CANCELLED:
            self.fail(number, lambda: ItemCancelled(number))
        elif state == State.EXPIRED:
            self.fail(number, lambda: ItemExpired(number))
        elif state in (State.DEAD, State.SKIPPED):
            self.fail(number, lambda: decode_error(error, number, attempts))
        elif state == State.DONE:
            self._tell_result(number, found.result, attempts)

    def _tell_result(self, number: int, result: bytes | None, attempts: int) -> None:
        try:
            value = None if result is None else self._results.decode(result)
        except ValueError as error:
            broken = error
            self.fail(
                number,
                lambda: caused(ItemFailed(number, "ValueError", str(broken), attempts), broken),
            )
        else:
            self.succeed(number, value)


def caused(error: ItemFailed, cause: Exception | None) -> ItemFailed:
    """Return the error with the handler's own exception as its cause."""
    error.__cause__ = cause
    return error
