"""DurableBatcher: a DurableQueue with a handler.

An item's way: it is committed; this consumer claims it (with the commit itself if there is a free slot, the
short way, else in a transaction of its own, which counts the attempt); an in-memory Batcher, whose handler is
the user's, puts it into a batch; its outcome is settled in a transaction that other outcomes and the next
claim share; then those who wait for it go on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, Unpack, overload

from microbatch._core.rules import drain_seconds
from microbatch._pure import checks
from microbatch._pure.adaptive import AdaptiveSize
from microbatch._pure.handler import name_of
from microbatch._pure.retry import Retry

from ._file.limits import Limits
from ._flow.service import Work
from .queue import DurableQueue, QueueSettings

if TYPE_CHECKING:
    import os
    from collections.abc import Awaitable, Callable, Hashable

    import aiosqlite

    from microbatch._pure.handler import Results, Silent
    from microbatch._telemetry.settings import Telemetry

    from .job_status import JobStatus

T = TypeVar("T")
R = TypeVar("R")

_UNSET: Any = object()


class BatcherSettings(QueueSettings, Generic[T, R], total=False):
    """The settings of ``DurableBatcher``, which says what each means."""

    max_batch_size: int | AdaptiveSize
    max_wait: float
    max_concurrency: int
    partition: Callable[[T], Hashable] | None
    retry: Retry | None
    handler_timeout: float | None
    drain_timeout: float | None
    on_settle: Callable[[aiosqlite.Connection, list[T], list[R]], Awaitable[None]] | None
    on_job_end: Callable[[JobStatus], Awaitable[None]] | None


class DurableBatcher(DurableQueue[T, R]):
    """Handles items in bulk that were committed to disk before: nothing acknowledged is ever lost.

    Every item is handled at least once. It is handled again only if its process died before the outcome
    was on the disk, if its handler timed out, if a settle failed, after a retry, ``requeue()``, a close
    that cancelled it, or an expired key. ``on_settle`` makes effects in the same file exactly once.

    Args:
        path: As for ``DurableQueue``.
        handler: The bulk function, as for ``Batcher``, generators and plain functions included.
        item_type: As for ``DurableQueue``.
        result_type: As for ``DurableQueue``: the type of the handler's results, which type checkers take
            from the handler. Give it wherever results are anything but built-in values.
        queue: As for ``DurableQueue``.
        enc_hook: As for ``DurableQueue``.
        dec_hook: As for ``DurableQueue``.
        max_batch_size: As for ``Batcher``.
        max_wait: As for ``Batcher``: a ready item waits on the disk no longer than this for company.
        max_concurrency: As for ``Batcher``. Items are claimed only for slots that are free.
        partition: As for ``Batcher``, within this process. So that batches fill, up to ten batches' worth of
            items is claimed for each free slot then, at most 10,000.
        retry: As for ``Batcher``; the delay is stored, so it holds across restarts. None: what fails is
            a dead letter at once. An item whose process dies goes again, and is a dead letter after two
            deaths alone with its process, whatever attempts are left.
        handler_timeout: As for ``Batcher``.
        drain_timeout: Seconds that leaving ``async with`` and ``aclose()`` wait for running batches, at
            least 0; None for no limit.
        on_settle: ``async (connection, items, results)``: called inside the transaction that records the
            success of these items, on the connection that it runs on. What it writes to the same file
            commits with it, exactly once. If it raises, or takes longer than 5 s, all is rolled back
            and these items count as failed. It must not commit, and it holds the write lock: be quick.
        on_job_end: ``async (status)``: called at least once, by one worker that has such a function, for
            each job that has ended, whoever was there when it did. If it raises it is called again, ten
            times in all, after 1 s and then twice as long each time, up to 5 min; then that is logged.
        max_depth: As for ``DurableQueue``; so is all that follows.
        max_file_bytes: ...
        key_ttl: ...
        result_ttl: ...
        keep_dead: ...
        keep_done: ...
        job_ttl: ...
        poll_interval: ...
        synchronous: ...
        name: For logs and telemetry; the handler's qualified name by default.
        telemetry: As for ``Batcher``.

    Raises:
        TypeError: If a setting has the wrong type.
        ValueError: If a setting is out of its range.
    """

    @overload
    def __init__(
        self: DurableBatcher[T, None],
        path: str | os.PathLike[str],
        handler: Callable[[list[T]], Silent],
        *,
        item_type: type[T] | Any,
        result_type: None = None,
        **settings: Unpack[BatcherSettings[T, None]],
    ) -> None: ...
    # Unions, Annotated and others are no classes, hence Any: the handler alone says what T and R are.
    @overload
    def __init__(
        self,
        path: str | os.PathLike[str],
        handler: Callable[[list[T]], Results[R]],
        *,
        item_type: type[T] | Any,
        result_type: type[R] | Any = None,
        **settings: Unpack[BatcherSettings[T, R]],
    ) -> None: ...
    def __init__(
        self,
        path: str | os.PathLike[str],
        handler: Callable[[list[T]], Any],
        *,
        item_type: Any,
        result_type: Any = None,
        queue: str = "default",
        enc_hook: Callable[[Any], Any] | None = None,
        dec_hook: Callable[[type, Any], Any] | None = None,
        max_batch_size: int | AdaptiveSize = 100,
        max_wait: float = 0.0,
        max_concurrency: int = 1,
        partition: Callable[[T], Hashable] | None = None,
        retry: Retry | None = None,
        handler_timeout: float | None = None,
        drain_timeout: float | None = 30.0,
        on_settle: Callable[[aiosqlite.Connection, list[T], list[Any]], Awaitable[None]]
        | None = None,
        on_job_end: Callable[[JobStatus], Awaitable[None]] | None = None,
        max_depth: int = 1_000_000,
        max_file_bytes: int | None = None,
        key_ttl: float = 86_400.0,
        result_ttl: float = 86_400.0,
        keep_dead: int | None = None,
        keep_done: int | None = None,
        job_ttl: float = 604_800.0,
        poll_interval: float = 0.05,
        synchronous: str = "full",
        name: str | None = None,
        telemetry: Telemetry | Literal[False] | None = None,
    ) -> None:
        if retry is not None and not isinstance(retry, Retry):
            message = f"retry must be a Retry or None, got {retry!r}"
            raise TypeError(message)
        checks.number("max_wait", max_wait, minimum=0)
        checks.function("partition", partition)
        checks.function("on_settle", on_settle)
        checks.function("on_job_end", on_job_end)
        if not isinstance(max_batch_size, AdaptiveSize):
            # SQLite counts to 2**63, over all slots; a claim ends at some megabytes in any case.
            max_batch_size = min(checks.whole_number("max_batch_size", max_batch_size, 1), 2**31)
        title = name_of(handler) if name is None else name
        self._drain_timeout = drain_seconds(drain_timeout)
        self._make(
            path,
            item_type,
            result_type,
            queue=queue,
            hooks=(enc_hook, dec_hook),
            limits=Limits(
                max_depth=max_depth,
                max_file_bytes=max_file_bytes,
                key_ttl=key_ttl,
                result_ttl=result_ttl,
                keep_dead=keep_dead,
                keep_done=keep_done,
                job_ttl=job_ttl,
            ),
            poll_interval=poll_interval,
            synchronous=synchronous,
            name=title,
            telemetry=telemetry,
            work=Work(
                calling={
                    "handler": handler,
                    "max_concurrency": max_concurrency,
                    "handler_timeout": handler_timeout,
                    "drain_timeout": drain_timeout,
                    "name": title,
                },
                max_batch_size=max_batch_size,
                max_wait=max_wait,
                partition=partition,
                retry=retry,
                on_settle=on_settle,
                on_job_end=on_job_end,
            ),
        )

    # Opening and closing

    async def aclose(self, drain_timeout: float | None = _UNSET) -> None:
        """Stop taking and claiming items, let running batches finish, and close the file.

        Claimed items that no handler has yet go back at once, for other processes and the next start.
        After ``drain_timeout`` running handlers are cancelled and their items go back too. Who still
        waits for a result gets ``BatcherClosed``; the items stay. May be called more than once.
        Cancelling it closes at once.

        Args:
            drain_timeout: Seconds to wait for running batches, at least 0; None for no limit. The
                constructor's by default.

        Raises:
            WouldDeadlock: Inside a running batch of this batcher.
        """
        self._service.guard("aclose")
        await super().aclose(self._drain_timeout if drain_timeout is _UNSET else drain_timeout)
