"""taskiq: a batcher that opens and drains with the worker; each task is one item.

The extra is ``microbatch[taskiq]``. taskiq acknowledges a task when its function has ended, failed ones
too, and has no other word for its broker. What shall run again is for its middlewares, or for
``Batcher(retry=...)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from taskiq import AsyncBroker, TaskiqEvents

from microbatch._core.batcher import Batcher

if TYPE_CHECKING:
    from taskiq import TaskiqState

__all__ = ["attach"]


def attach(broker: AsyncBroker, *batchers: Batcher[Any, Any]) -> None:
    """Open batchers when a worker of this broker starts, and drain them when it stops.

    In a task: ``return await batcher.submit(row)``. The worker waits for running tasks before it stops the
    broker (``--wait-tasks-timeout``), so they are handled and acknowledged while the connection stands; what is
    left then is drained for up to ``--shutdown-timeout`` (5 s by default). Keep ``max_wait`` below both:
    taskiq-nats closes its connection before the batchers hear of it, so what ends later comes again.

    Start and stop run in different tasks of one event loop. A process that only sends tasks opens nothing.

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

    async def start(state: TaskiqState) -> None:
        del state
        for batcher in batchers:
            await batcher.__aenter__()

    async def stop(state: TaskiqState) -> None:
        del state
        for batcher in reversed(batchers):
            await batcher.aclose()

    broker.add_event_handler(TaskiqEvents.WORKER_STARTUP, start)
    broker.add_event_handler(TaskiqEvents.WORKER_SHUTDOWN, stop)
