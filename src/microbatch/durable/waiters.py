"""Who waits for which item's end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from microbatch._pure.exceptions import BatcherClosed

from .codec import decode_error
from .errors import ItemCancelled, ItemFailed, UnknownTicket
from .records import State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .codec import Codec
    from .records import Found


class Waiters:
    """The callers who wait, by item. Each is told once.

    Args:
        results: How results read back.
        queue: The queue's name, for errors.
    """

    def __init__(self, results: Codec[Any], queue: str) -> None:
        self._results = results
        self._queue = queue
        self._by_item: dict[int, list[Any]] = {}

    def __bool__(self) -> bool:
        return bool(self._by_item)

    def __iter__(self) -> Iterator[int]:
        """Iterate over the items that somebody waits for, as they are now."""
        return iter(list(self._by_item))

    def add(self, number: int, waiter: Any) -> None:
        """Let a future wait for an item's end."""
        if not waiter.done():
            self._by_item.setdefault(number, []).append(waiter)

    async def outcome(self, number: int, waiter: Any) -> Any:
        """Wait, and leave when done or cancelled."""
        try:
            return await waiter
        finally:
            self.leave(number, waiter)

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

    def fail(self, number: int, make_error: Callable[[], Exception]) -> None:
        """Raise an error in those who wait for an item: each gets one of its own."""
        for waiter in self._by_item.pop(number, ()):
            if not waiter.done():
                waiter.set_exception(make_error())

    def close(self, name: str) -> None:
        """Tell all of them that nobody will tell them any more."""
        for number in self:
            self.fail(number, lambda: BatcherClosed(name, started=True))

    def tell(self, number: int, found: Found | None) -> None:
        """Tell those who wait for an item how it ended, as the disk has it; nothing if it has not."""
        if number not in self._by_item:
            return
        if found is None:
            self.fail(number, lambda: UnknownTicket(number, self._queue))
            return
        _, state, result, error, attempts = found.ended
        if state == State.CANCELLED:
            self.fail(number, lambda: ItemCancelled(number))
        elif state == State.DEAD or (state == State.DONE and error is not None):
            self.fail(number, lambda: decode_error(error, number, attempts))
        elif state == State.DONE:
            self._tell_result(number, result, attempts)

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
