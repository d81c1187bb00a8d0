"""Answers by key in memory: for one process, until it ends."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple, Protocol

from microbatch._loops.current import current_loop
from microbatch._pure.standing import Standing

if TYPE_CHECKING:
    from microbatch._loops.protocol import Loop

#: What all answers may have together: the oldest go first. As many bodies of a few kB as there may be keys.
BYTES_MAX = 64 * 2**20


class KeptAnswers(Protocol):
    """Keys and what was answered under them."""

    async def begin(self, key: str, fingerprint: bytes) -> Standing | None:
        """Take a key, unless it is taken; None if no more can be held."""
        ...

    async def finish(
        self, key: str, fingerprint: bytes, token: int, answer: bytes | None, ttl: float
    ) -> None:
        """Keep the answer to what ran under a token, for so many seconds; None gives the key back."""
        ...


class _Running(NamedTuple):
    token: int
    fingerprint: bytes
    loop: Loop


class _Answered(NamedTuple):
    fingerprint: bytes
    answer: bytes
    expires: float


class AnswersInMemory:
    """Keys and answers in memory. A key is held as long as what came with it runs.

    Args:
        most: Keys at most, at least 1: beyond, the oldest answers go.
        bytes_max: What all answers may have together.
    """

    def __init__(self, most: int, bytes_max: int = BYTES_MAX) -> None:
        self._most = most
        self._bytes_max = bytes_max
        self._bytes = 0
        self._tokens = itertools.count()
        self._running: dict[str, _Running] = {}
        self._answered: dict[str, _Answered] = {}  # in the order in which they were

    def __len__(self) -> int:
        """Return how many keys there are."""
        return len(self._running) + len(self._answered)

    async def begin(self, key: str, fingerprint: bytes) -> Standing | None:
        """Take a key, unless it is taken; None if so many are held that no more can be."""
        loop = current_loop()
        self._drop_expired(loop.now())
        running = self._running.get(key)
        # What ran in an event loop that has ended will not answer any more.
        if running is not None and not running.loop.has_ended():
            return Standing(None, running.fingerprint == fingerprint)
        known = self._answered.get(key)
        if known is not None:
            return Standing(None, known.fingerprint == fingerprint, known.answer)
        if running is None and len(self) >= self._most:
            if not self._answered:
                return None
            self._drop_oldest()
        token = next(self._tokens)
        self._running[key] = _Running(token, fingerprint, loop)
        return Standing(token)

    async def finish(
        self, key: str, fingerprint: bytes, token: int, answer: bytes | None, ttl: float
    ) -> None:
        """Keep the answer to what ran under a token, for so many seconds; None gives the key back."""
        running = self._running.get(key)
        if running is None or running.token != token:
            return
        del self._running[key]
        if answer is None:
            return
        self._answered[key] = _Answered(fingerprint, answer, current_loop().now() + ttl)
        self._bytes += len(answer)
        while self._bytes > self._bytes_max:
            self._drop_oldest()

    def _drop_expired(self, now: float) -> None:
        while self._answered and next(iter(self._answered.values())).expires <= now:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        oldest = self._answered.pop(next(iter(self._answered)))
        self._bytes -= len(oldest.answer)
