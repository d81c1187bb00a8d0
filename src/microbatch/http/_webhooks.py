"""Webhooks: who asked for it is told that a job has ended, however long the receiver was away."""

from __future__ import annotations

import inspect
import logging
import random
import time
from typing import TYPE_CHECKING, Any, Final, Self

import httpx

from microbatch._core.info import current_batch
from microbatch._core.retry_after import retry_after
from microbatch._pure import checks
from microbatch._pure.exceptions import HandlerTimeout, ItemError
from microbatch._pure.retry import Backoff, Retry
from microbatch.durable import DurableBatcher

from ._addresses import Allowed
from ._message import Message, headers_of, keys_of, message_of
from ._sending import RefusedAddress, Unreachable, post

if TYPE_CHECKING:
    import os
    import ssl
    from collections.abc import Awaitable, Callable, Iterable, Sequence
    from types import TracebackType

    from microbatch.durable import JobStatus

logger: logging.Logger = logging.getLogger("microbatch.http")

#: Seconds before the second and each further attempt: the specification's example, which is three days.
DELAYS: Final = (5.0, 300.0, 1_800.0, 7_200.0, 18_000.0, 36_000.0, 50_400.0, 72_000.0, 86_400.0)

#: The part that chance adds to a delay, so that what failed together does not come back together.
_JITTER: Final = 0.2

#: Seconds that a receiver's Retry-After may ask for at most.
_LONGEST: Final = 86_400.0

#: Messages under way at once. One costs a socket and little work, and a dead receiver holds its place 15 s.
_AT_ONCE: Final = 50

#: Messages that could not be delivered and are kept, for `requeue`.
_KEEP_DEAD: Final = 10_000

#: Seconds for one attempt with ``secret_of``, whatever that waits for.
_SECONDS_MAX: Final = 60.0

_RECEIVER_GONE: Final = 410

_UNSET: Any = object()


class Webhooks:
    """Tells clients over HTTP that their jobs have ended, by the Standard Webhooks specification.

    Pass its ``on_job_end`` to the ``DurableBatcher`` of the workers. When a job with a webhook has ended,
    ``on_job_end`` stores a message in a queue of its own. ``async with`` sends the stored messages, in any
    process, until the receiver has answered with a status of 2xx: at least once. After a failure a message is
    sent again, after 5 s, 5 and 30 minutes, 2, 5, 10, 14, 20 and 24 hours, each up to a fifth longer; later if
    the receiver's ``Retry-After`` says so, up to a day. 410 ends it. A message that was given up is logged, and
    is a dead letter of the queue ``"microbatch-webhooks"`` in that file.

    Like a ``DurableBatcher`` it works from the first call on, and needs asyncio.

    Args:
        queue_path: The SQLite file of its messages; it may be that of the jobs.
        secret_of: ``(owner) -> str``, plain or async: returns the secret of a job's owner, ``whsec_`` and 24 to
            64 bytes in base64; a list of secrets while you replace one; None if there is none, then the message
            is given up. It is called at every attempt, and the secret is not stored.
        allow: Which hosts may be called: ``"host"``, ``"host:port"``, addresses and networks such as
            ``"10.0.0.0/8"``. If it names hosts, no others may be called, and these also over http and at their
            port. Addresses in the networks count as public. None: every public host, over https, at port 443.
        ssl_context: Verifies receivers' certificates; None for the certificates that httpx brings.
        delays: Seconds before the second and each further attempt, instead of those above.

    Raises:
        TypeError: If a setting has the wrong type.
        ValueError: If a setting is out of its range, or cannot be read.
    """

    def __init__(
        self,
        queue_path: str | os.PathLike[str],
        *,
        secret_of: Callable[
            [str | None], str | Sequence[str] | Awaitable[str | Sequence[str] | None] | None
        ],
        allow: Iterable[str] | None = None,
        ssl_context: ssl.SSLContext | None = None,
        delays: Sequence[float] = DELAYS,
    ) -> None:
        given: Any = secret_of
        if not callable(given):
            raise TypeError(f"secret_of must be a function, got {secret_of!r}")
        self._secret_of = secret_of
        self._allowed = Allowed(allow)
        self._context = (
            httpx.create_ssl_context(trust_env=False) if ssl_context is None else ssl_context
        )
        self._delays = [checks.number("delays", seconds, minimum=0) for seconds in delays]
        self._queue: DurableBatcher[Message, int] = DurableBatcher(
            queue_path,
            self._send,
            item_type=Message,
            result_type=int,
            queue="microbatch-webhooks",
            name="microbatch-webhooks",
            # A call for each, so that nobody waits for another one's receiver.
            max_batch_size=1,
            max_concurrency=_AT_ONCE,
            handler_timeout=_SECONDS_MAX,
            retry=Retry(
                on=(ItemError, HandlerTimeout),
                attempts=len(self._delays) + 1,
                backoff=Backoff(maximum=max(_LONGEST, *self._delays, 0.0) * (1 + _JITTER)),
            ),
            keep_dead=_KEEP_DEAD,
        )

    def __repr__(self) -> str:
        return f"<Webhooks over {self._queue!r}>"

    async def __aenter__(self) -> Self:
        """Open the queue, and send what is due.

        Raises:
            QueueUnavailable: If the file cannot be used.
            BatcherClosed: If it was closed before.
            RuntimeError: Under trio, in a forked child, or if it serves another event loop.
        """
        await self._queue.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it; what has not arrived stays for the next time."""
        await self._queue.__aexit__(exc_type, exc, traceback)

    async def aclose(self, drain_timeout: float | None = _UNSET) -> None:
        """Stop sending, let what is under way end, and close the file; as ``DurableBatcher.aclose``.

        Args:
            drain_timeout: Seconds to wait for what is under way, at least 0; None for no limit. 30 by
                default.
        """
        if drain_timeout is _UNSET:
            await self._queue.aclose()
        else:
            await self._queue.aclose(drain_timeout)

    def check(self, url: str) -> None:
        """Refuse a URL that may not be called, as far as it alone tells. What it leads to is seen at sending.

        Raises:
            ValueError: If it may not; the message is for whoever sent the URL.
        """
        self._allowed.target(url)

    async def on_job_end(self, status: JobStatus) -> None:
        """Store the message for a job that has ended, if its request named a webhook: ``DurableBatcher``'s.

        Called twice for a job, it sends one message.

        Raises:
            QueueUnavailable: If the file cannot be used.
            QueueFull: If a million messages wait.
            BatcherClosed: If it is closed. The worker calls again, a little later, after any of these.
        """
        message = message_of(status)
        if message is not None:
            await self._queue.enqueue(message, key=message.id)

    # Sending

    async def _send(self, messages: list[Message]) -> list[int | ItemError]:
        info = current_batch()
        attempt = 1 if info is None else info.attempts[0]
        (message,) = messages
        try:
            return [await self._attempt(message)]
        except ItemError as error:
            if error.retryable and attempt <= len(self._delays):
                delay = self._delays[attempt - 1] * (1 + random.random() * _JITTER)  # noqa: S311
                error.retry_after = max(delay, min(error.retry_after or 0.0, _LONGEST))
                logger.info("webhook %s: attempt %d: %s", message.id, attempt, error)
            else:
                logger.warning(
                    "webhook %s is given up after %d attempts: %s", message.id, attempt, error
                )
            return [error]

    async def _attempt(self, message: Message) -> int:
        """Send a message once, and return the status that it was taken with."""
        try:
            target = self._allowed.target(message.url)
        except ValueError as error:
            raise _failure(f"the URL {error}", "refused_url", retryable=False) from None
        keys = await self._keys_of(message.owner)
        headers = {
            "Content-Type": "application/json",
            **headers_of(message, int(time.time()), keys),
        }
        try:
            answer = await post(
                target, headers, message.body, allowed=self._allowed, context=self._context
            )
        except RefusedAddress as error:
            # Names change: that of an honest receiver may have been wrong for a moment.
            raise _failure(str(error), "refused_address") from None
        except Unreachable as error:
            raise _failure(str(error), "unreachable") from error
        if 200 <= answer.status < 300:
            return answer.status
        gone = answer.status == _RECEIVER_GONE
        after = None if gone else retry_after(answer.retry_after)
        text = f"the receiver answered {answer.status}"
        raise _failure(text, "refused", retryable=not gone, after=after)

    async def _keys_of(self, owner: str | None) -> list[bytes]:
        try:
            secrets: Any = self._secret_of(owner)
            if inspect.isawaitable(secrets):
                secrets = await secrets
            keys = None if secrets is None else keys_of(secrets)
        except Exception as error:
            # The application's own function: a database that is away, say. Its text may hold anything.
            logger.exception("webhooks: secret_of failed")
            text = f"secret_of failed: {type(error).__name__}"
            raise _failure(text, "no_secret") from None
        if keys is None:
            raise _failure("its owner has no secret", "no_secret", retryable=False)
        return keys


def _failure(
    message: str, code: str, *, retryable: bool = True, after: float | None = None
) -> ItemError:
    return ItemError(message, code=code, retryable=retryable, retry_after=after)
