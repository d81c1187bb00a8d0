"""For tests of what uses microbatch: time that takes no time, handlers that remember, retries at once.

Nothing here replaces a part of microbatch: batches are cut, retried and closed by the same code as ever.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from ._core.info import current_batch
from ._core.pausing import no_pauses
from ._loops.virtual import VirtualLoop, trio_clock
from ._pure.handler import handler_kind, name_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self

    from ._core.run import Reason

__all__ = ["no_backoff", "recorded", "virtual_time"]

T = TypeVar("T")


S = TypeVar("S")


X_co = TypeVar("X_co", covariant=True)


def virtual_time(backend: str = "asyncio") -> dict[str, Any]:
    """Return anyio's ``backend_options`` for an event loop in which waiting takes no time.

    When all that is left to do is to wait, the loop's clock jumps to the next timer: ``max_wait``, back-off,
    ``handler_timeout``, ``sleep`` and timeouts of whatever length end at once, in their right order, at
    their exact time. It is deterministic, and as fast as the code that runs.

    For asyncio it is ``{"loop_factory": ...}``, which ``asyncio.Runner`` takes too (``asyncio.run`` from
    Python 3.12 on), a selector loop that counts from 0; for trio ``{"clock": ...}``, which ``trio.run``
    takes too, a ``MockClock``, new with each call: one event loop each.

    The clock sees what waits in the event loop, and the threads that run plain handlers, read files or wait
    for worker processes for microbatch: while one of those works, or a durable queue is open, time passes as
    it does outside. On asyncio so it does for ``asyncio.to_thread`` and ``run_in_executor``. Any other
    thread, or a socket, it does not see: it jumps past what comes from there, timeouts included, so use
    real time for those. ``time.monotonic()`` and ``time.time()`` stay what they are.

    On asyncio a test that waits for what can never come (no timer is set, nothing is open, there is one
    thread) ends after 5 seconds in a ``RuntimeError`` that lists what waits. On trio, and where there are
    other threads, put ``anyio.fail_after(...)`` around it: in virtual time it ends at once.

    Args:
        backend: ``"asyncio"`` or ``"trio"``.

    Raises:
        ValueError: If the backend is another one. uvloop keeps its timers in C, out of reach: test on
            asyncio what runs on uvloop.
        ImportError: If it is trio, and trio is not installed.
    """
    if backend == "asyncio":
        return {"loop_factory": VirtualLoop}
    if backend == "trio":
        return {"clock": trio_clock()}
    why = ": uvloop's timers are out of reach, test on 'asyncio'" if backend == "uvloop" else ""
    raise ValueError(f"backend must be 'asyncio' or 'trio', got {backend!r}{why}")


@contextlib.contextmanager
def no_backoff() -> Iterator[None]:
    """Within, items that fail and may be retried go again at once, whatever their back-off says.

    For tests in real time. It holds for all batchers of this process, durable ones included, in all threads
    and event loops. Nor is a backend waited for that takes nothing (``RateLimited``). How often an item is
    tried stays what ``Retry`` says. What waits already when it is entered waits to its end.
    """
    with no_pauses():
        yield


class Recorded(Generic[T, X_co]):
    """A handler that keeps what it was called with: what `recorded` gives, to type checkers.

    Attributes:
        batches: The items of each call, in the order in which the calls began.
        reasons: Why each of these batches left, as ``current_batch().reason`` tells; None for a call
            outside of a batch.
    """

    batches: list[list[T]]
    reasons: list[Reason | None]

    if TYPE_CHECKING:

        def __call__(self, items: list[T], /) -> X_co:
            """Call the handler."""
            ...


class RecordedMethod(Generic[S, T, X_co]):
    """The same of a method that stands in a class: all its instances share the record."""

    batches: list[list[T]]
    reasons: list[Reason | None]

    if TYPE_CHECKING:

        def __call__(self, instance: S, items: list[T], /) -> X_co:
            """Call the handler."""
            ...

        @overload
        def __get__(self, instance: None, owner: type) -> Self: ...
        @overload
        def __get__(self, instance: S, owner: type | None = None) -> Recorded[T, X_co]: ...
        def __get__(self, instance: Any, owner: type | None = None) -> Any: ...


@overload
def recorded(handler: Callable[[list[T]], X_co]) -> Recorded[T, X_co]: ...


@overload
def recorded(handler: Callable[[S, list[T]], X_co]) -> RecordedMethod[S, T, X_co]: ...


def recorded(handler: Any) -> Any:
    """Return the same handler, with ``.batches`` and ``.reasons``: what it was called with, and why.

    ``.batches`` has the items of each call, a list of lists in the order in which the calls began.
    ``.reasons`` has beside each why that batch left (``"size"``, ``"weight"``, ``"wait"``, ``"flush"``,
    ``"idle"`` or ``"close"``), and None for a call outside of a batch. A batch is recorded when its call
    begins, so also if the call then fails, and once for each retry. Both are plain lists: clear them
    whenever you like.

    Async functions, plain ones, async generators, methods, partials and callable objects stay what they are
    to `Batcher` and to ``inspect``: kind, name, signature, annotations. The handler itself is not changed.
    Within layers each call of the handler is recorded with the items that reach it there. Around
    `in_process` it goes outside: a worker process has a record of its own.

    Args:
        handler: A handler, or a method that is one for an instance.

    Raises:
        TypeError: If it cannot be a handler.
    """
    kind = handler_kind(handler)
    batches: list[list[Any]] = []
    reasons: list[Reason | None] = []
    lock = threading.Lock()  # plain handlers run in threads, and the lists go together

    def record(items: Any) -> None:
        batch = current_batch()
        with lock:
            batches.append(list(items))
            reasons.append(None if batch is None else batch.reason)

    # ``items`` comes last: before it there may be the instance.
    call: Any
    if kind == "async":

        async def call(*args: Any) -> Any:
            record(args[-1])
            return await handler(*args)

    elif kind == "generator":

        async def call(*args: Any) -> Any:
            record(args[-1])
            async with contextlib.aclosing(handler(*args)) as pairs:
                async for pair in pairs:
                    yield pair

    else:

        def call(*args: Any) -> Any:
            record(args[-1])
            return handler(*args)

    _same_to_inspect(call, handler)
    call.batches, call.reasons = batches, reasons
    return call


def _same_to_inspect(call: Any, handler: Any) -> None:
    """Give a function the name, the signature and the annotations of a handler of any kind."""
    shown = handler
    if not inspect.isroutine(handler) and not isinstance(handler, (type, functools.partial)):
        shown = handler.__call__  # an object's own annotations are of its fields
    functools.update_wrapper(call, shown, updated=())
    call.__doc__ = handler.__doc__
    call.__qualname__ = name_of(handler)
    call.__name__ = getattr(handler, "__name__", call.__qualname__.rpartition(".")[2])
