"""taskiq: a batcher that opens and drains with the worker; each task is one item.

The extra is ``microbatch[taskiq]``. taskiq acknowledges a task when its function has ended, failed ones
too, and cannot tell its broker anything else. To run a task again use taskiq's middlewares or
``Batcher(retry=...)``. Only a task that a closing batcher refused is not acknowledged, so that it comes again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
from taskiq import AsyncBroker, InMemoryBroker, TaskiqEvents, TaskiqMiddleware

from microbatch._core.batcher import Batcher
from microbatch._pure.exceptions import BatcherClosed

if TYPE_CHECKING:
    from taskiq import TaskiqMessage, TaskiqResult, TaskiqState

__all__ = ["attach"]


class _HandingBack(TaskiqMiddleware):
    """Ends a task that a closing batcher refused before it is acknowledged: acknowledging it would lose it.

    Cancelling is the one way out of taskiq's receiver that neither acknowledges nor logs an error.
    """

    def on_error(
        self, message: TaskiqMessage, result: TaskiqResult[Any], exception: BaseException
    ) -> None:
        del message, result
        if isinstance(exception, BatcherClosed):
            raise anyio.get_cancelled_exc_class() from exception


def attach(broker: AsyncBroker, *batchers: Batcher[Any, Any]) -> None:
    """Open batchers when a worker of this broker starts, and drain them when it stops.

    In a task write ``return await batcher.submit(row)``. The worker waits for running tasks before it stops the
    broker, without a limit unless ``--wait-tasks-timeout`` is set. Then the batchers drain, for at most their
    ``drain_timeout`` or ``--shutdown-timeout`` (5 s by default). The broker closes its connection after that,
    so tasks that end are acknowledged. Tasks that the closing batchers refuse are not acknowledged: they come
    again if the broker has acknowledgements.

    Start and stop run in different tasks of one event loop. A process that only sends tasks opens no batcher.
    ``attach`` wraps the broker's ``shutdown``, and adds a middleware behind the others when the broker starts.

    Args:
        broker: taskiq's own.
        batchers: At least one; when the worker has stopped they may serve the next one in another event loop.

    Raises:
        TypeError: If there is no batcher, or something else in the place of one or of the broker.
    """
    if not isinstance(broker, AsyncBroker):
        raise TypeError(f"attach takes a broker of taskiq first, got {broker!r}")
    if not batchers:
        raise TypeError("attach needs at least one batcher, got none")
    for batcher in batchers:
        if not isinstance(batcher, Batcher):
            raise TypeError(f"attach takes batchers, got {batcher!r}")
    open_now: list[Batcher[Any, Any]] = []
    stop = broker.shutdown

    async def start(state: TaskiqState) -> None:
        del state
        # Middlewares hear of errors last one first: before one that sends the task anew.
        known = any(isinstance(one, _HandingBack) for one in broker.middlewares)
        if not known and not isinstance(broker, InMemoryBroker):  # where nothing comes again
            broker.add_middlewares(_HandingBack())
        for batcher in batchers:
            await batcher.__aenter__()
            open_now.append(batcher)

    async def shutdown() -> None:
        closing, open_now[:] = open_now[:], []
        try:
            async with anyio.create_task_group() as tasks:
                for batcher in closing:
                    tasks.start_soon(batcher.aclose)
        finally:
            await stop()

    broker.add_event_handler(TaskiqEvents.WORKER_STARTUP, start)
    broker.shutdown = shutdown  # type: ignore[method-assign]
