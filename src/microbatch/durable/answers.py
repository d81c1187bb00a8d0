"""Answers to requests, kept by key in a queue's file: for `microbatch.http`, and no public name."""

from __future__ import annotations

import logging
import secrets
from typing import TYPE_CHECKING, Any, NamedTuple

from microbatch._pure.exceptions import BatcherClosed

from .access import openers
from .errors import QueueUnavailable

if TYPE_CHECKING:
    from microbatch._pure.standing import Standing

    from ._flow.service import Service
    from .queue import DurableQueue

logger: logging.Logger = logging.getLogger("microbatch.durable")


class _Ending(NamedTuple):
    """How something ended whose end could not be written down. Without an answer its key is to be free."""

    fingerprint: bytes
    token: int
    answer: bytes | None
    ttl: float


class QueueAnswers:
    """Keys and answers in a queue's file, for all processes that have it open.

    A key is held as an item is claimed: it is free again once the process is gone that took it.

    Args:
        queue: The queue in whose file they stand.
        most: Answers kept at most, and keys held at once here, at least 1.
    """

    def __init__(self, queue: DurableQueue[Any, Any], most: int) -> None:
        self._queue = queue
        self._most = most
        self._held: set[int] = set()
        self._unwritten: dict[str, _Ending] = {}

    async def begin(self, key: str, fingerprint: bytes) -> Standing | None:
        """Take a key, unless it is taken; None if too many are held here.

        Cancelled, it may leave the key taken until the queue is closed: call it where nobody cancels.

        Raises:
            QueueUnavailable: If the file cannot be used.
            BatcherClosed: If the queue is closed.
        """
        ending = self._unwritten.get(key)
        if ending is not None:
            await self._write(key, ending)
        if len(self._held) >= self._most:
            return None
        service = await self._opened("begin")
        standing = await service.store.answers.begin(
            key, fingerprint, secrets.randbits(62), self._most
        )
        if standing.token is not None:
            self._held.add(standing.token)
        return standing

    async def finish(
        self, key: str, fingerprint: bytes, token: int, answer: bytes | None, ttl: float
    ) -> None:
        """Keep the answer to what ran under a token, for so many seconds; None gives the key back.

        What cannot be written now is when the key comes again. In a queue that was closed nothing is: the
        key is free there.
        """
        self._held.discard(token)
        await self._write(key, _Ending(fingerprint, token, answer, ttl), first=True)

    async def _write(self, key: str, ending: _Ending, *, first: bool = False) -> None:
        try:
            answers = (await self._opened("finish")).store.answers
            if ending.answer is None:
                await answers.release(key, ending.token)
            else:
                await answers.finish(
                    key, ending.fingerprint, ending.token, ending.answer, ending.ttl
                )
        except BatcherClosed:
            logger.warning("the answer to a request is not kept: its queue was closed before")
        except QueueUnavailable as error:
            if not first:
                raise
            logger.warning("the answer to a request is not written down yet: %s", error)
            if len(self._unwritten) >= self._most:
                del self._unwritten[next(iter(self._unwritten))]
            self._unwritten[key] = ending
        else:
            self._unwritten.pop(key, None)

    async def _opened(self, call: str) -> Service:
        opened = openers[self._queue]()
        assert opened is not None  # noqa: S101 - the queue is held here
        return await opened(call)  # type: ignore[no-any-return]
