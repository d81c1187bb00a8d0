"""What queues ask of the writer: each is part of a transaction, and is answered in its event loop."""

from __future__ import annotations

import math
import threading
import time
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from microbatch._loops.protocol import Waiter

    from .client import Client
    from .records import Settlement, Step
    from .transaction import WriteTransaction

T = TypeVar("T")


class Ask:
    """Work for one transaction.

    Attributes:
        client: Who asks.
        items: How many new items it brings.
        size: How many bytes of them.
    """

    __slots__ = ("client", "items", "size")

    def __init__(self, client: Client, items: int = 0, size: int = 0) -> None:
        self.client = client
        self.items = items
        self.size = size

    def absorb(self, other: Ask) -> bool:
        """Take over what another one asks, if both are one thing to the file; tell whether."""
        del other
        return False

    def steps(self, transaction: WriteTransaction) -> Generator[Step, Any, Any]:
        """Do it: in the writer's thread, perhaps more than once."""
        raise NotImplementedError

    def done(self, answer: Any) -> None:
        """Take the answer, once it is on the disk: in the event loop."""
        raise NotImplementedError

    def fail(self, error: Exception) -> None:
        """Hear that nothing was done, or that it is unknown whether it was: in the event loop."""
        raise NotImplementedError

    def refuse(self, error: Exception) -> None:
        """Hear that nothing was done because of what was asked, and not of the file: in the event loop."""
        self.fail(error)


class Awaited(Ask, Generic[T]):
    """A function over the transaction, for somebody who awaits its answer.

    Args:
        client: Who asks.
        function: What to do.
        waiter: Gets the answer.
    """

    __slots__ = ("_function", "_waiter")

    def __init__(
        self,
        client: Client,
        function: Callable[[WriteTransaction], Generator[Step, Any, T]],
        waiter: Waiter,
        *,
        items: int = 0,
        size: int = 0,
    ) -> None:
        super().__init__(client, items, size)
        self._function = function
        self._waiter = waiter

    def steps(self, transaction: WriteTransaction) -> Generator[Step, Any, T]:
        return self._function(transaction)

    def done(self, answer: T) -> None:
        if not self._waiter.done():
            self._waiter.set_result(answer)

    def fail(self, error: Exception) -> None:
        if not self._waiter.done():
            self._waiter.set_exception(error)


class Settle(Ask):
    """Outcomes of claimed items.

    Args:
        client: Whose consumer has them.
        settlements: What became of them.
        finished: Claims of which nothing is left in hand once this is on the disk.
        told: Gets the ids that were settled; the others are somebody else's now.
        failed: Gets the reason if the disk could not be written.
        refused: Gets the reason if something among it cannot be stored, however often that is tried.
    """

    __slots__ = ("_failed", "_refused", "_told", "finished", "settlements")

    def __init__(
        self,
        client: Client,
        settlements: Sequence[Settlement],
        finished: Sequence[int],
        *,
        told: Callable[[set[int]], object],
        failed: Callable[[Exception], object],
        refused: Callable[[Exception], object],
    ) -> None:
        super().__init__(client)
        self.settlements = settlements
        self.finished = finished
        self._told = told
        self._failed = failed
        self._refused = refused

    def steps(self, transaction: WriteTransaction) -> Generator[Step, Any, set[int]]:
        return transaction.settle(self)

    def done(self, answer: set[int]) -> None:
        self._told(answer)

    def fail(self, error: Exception) -> None:
        self._failed(error)

    def refuse(self, error: Exception) -> None:
        self._refused(error)


class Afterwards(NamedTuple):
    """Something to do in the writer's thread once all that was asked before has been done.

    A bare function is called when the writer comes across it, before what it has gathered.
    """

    function: Callable[[], object]


class Turn:
    """The right of another connection of this process to write, while the writer stands aside.

    Args:
        client: Who asks for it.
        granted: Woken in the event loop when it has come.

    Attributes:
        over: Set when it is given back.
        stop: Ends the connection that has it, from any thread.
        finished: Claims of which nothing is left in hand once it is over.
        until: When it is over in any case, by the monotonic clock: then the connection is ended.
    """

    __slots__ = ("client", "finished", "granted", "over", "stop", "until")

    def __init__(self, client: Client, granted: Waiter, stop: Callable[[], object]) -> None:
        self.client = client
        self.granted = granted
        self.stop = stop
        self.over = threading.Event()
        self.finished: Sequence[int] = ()
        self.until = math.inf

    def extend(self, seconds: float) -> None:
        """Let it last for so many seconds from now."""
        self.until = time.monotonic() + seconds

    def grant(self, _: object) -> None:
        """Tell who waits that it has come; who has gone gives it back."""
        if self.granted.done():
            self.over.set()
        else:
            self.granted.set_result(None)

    def refuse(self, error: Exception) -> None:
        """Tell who waits that it will not come."""
        if not self.granted.done():
            self.granted.set_exception(error)
