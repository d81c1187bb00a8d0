"""What a blocked thread waits on, and how the end of an item is told."""

from __future__ import annotations

import concurrent.futures
import contextlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def end_item(waiter: Any, error: Exception | None, *, cancelled: bool = False) -> None:
    on_end = getattr(waiter, "on_end", None)
    if on_end is not None:
        waiter.on_end = None
        on_end(error, cancelled)


class ThreadWaiter:
    """What a blocked thread waits on, in the place of a future of the loop."""

    __slots__ = ("_answer", "on_cancel", "on_end", "parent")

    def __init__(self) -> None:
        self._answer: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self.on_cancel: Callable[[Any], None] | None = None

    def done(self) -> bool:
        return self._answer.done()

    def cancelled(self) -> bool:
        return self._answer.cancelled()

    def cancel(self) -> bool:
        return self._answer.cancel()

    def set_result(self, result: Any) -> None:
        with contextlib.suppress(concurrent.futures.InvalidStateError):  # its thread has gone
            self._answer.set_result(result)
            end_item(self, None)

    def set_exception(self, exception: Exception) -> None:
        with contextlib.suppress(concurrent.futures.InvalidStateError):
            self._answer.set_exception(exception)
            end_item(self, exception)

    def wait(self, seconds: float) -> bool:
        """Block up to so many seconds; tell whether the answer is there."""
        return bool(concurrent.futures.wait([self._answer], seconds).done)

    def result(self) -> Any:
        return self._answer.result(0)
