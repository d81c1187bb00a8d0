"""Answers to requests by their keys, within one transaction, as generators of statements: see `session`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from microbatch._pure.standing import Standing

from . import answer_sql
from .records import ConsumerRow

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from .records import Step
    from .view import View

#: Answers that one step removes at most.
DROPPED_AT_ONCE = 50


class AnswerSteps:
    """The part of a `Session` that is about answers.

    Args:
        view: What the transaction knows.
    """

    def __init__(self, view: View) -> None:
        self._view = view

    def begin(
        self,
        queue: int,
        key: str,
        fingerprint: bytes,
        *,
        token: int,
        consumer: int,
        lives: Callable[[ConsumerRow], bool],
    ) -> Generator[Step, Any, Standing]:
        """Take a key for a consumer, unless it has an answer or a consumer that lives has it.

        Args:
            queue: The queue's number.
            key: The key.
            fingerprint: Stands for what came with it.
            token: What only who gets the key knows.
            consumer: Who gets it.
            lives: Tells whether a consumer lives.
        """
        rows = yield answer_sql.FIND_ANSWER, (queue, key), False
        if rows:
            known, holder, expires, answer = rows[0]
            if holder is None:
                taken = expires > self._view.now
            else:
                found = yield answer_sql.CONSUMER, (holder,), False
                taken = bool(found) and lives(ConsumerRow(*found[0]))
            if taken:
                return Standing(None, known == fingerprint, answer)
            yield answer_sql.DROP_ANSWER, (queue, key), False
        yield answer_sql.BEGIN_ANSWER, (queue, key, fingerprint, token, consumer), False
        return Standing(token)

    def finish(
        self, queue: int, key: str, fingerprint: bytes, *, token: int, answer: bytes, ttl: float
    ) -> Generator[Step, Any, None]:
        """Keep an answer, for so many seconds, unless somebody else has the key by now."""
        newest = yield answer_sql.NEWEST_ANSWER, (queue,), False
        values = {
            "queue": queue,
            "key": key,
            "fingerprint": fingerprint,
            "token": token,
            "number": newest[0][0] + 1 if newest else 1,
            "expires": self._view.now + ttl,
            "answer": answer,
        }
        yield answer_sql.FINISH_ANSWER, values, False

    def release(self, queue: int, key: str, token: int) -> Generator[Step, Any, None]:
        """Give a key back that has no answer."""
        yield answer_sql.RELEASE_ANSWER, (queue, key, token), False

    def prune(self, queue: int, most: int | None = None) -> Generator[Step, Any, bool]:
        """Remove some of the oldest answers, which are past their time or beyond so many; tell of more."""
        oldest = yield answer_sql.OLDEST_ANSWERS, (queue, DROPPED_AT_ONCE), False
        if not oldest:
            return False
        beyond = 0
        if most is not None:
            newest = yield answer_sql.NEWEST_ANSWER, (queue,), False
            beyond = newest[0][0] - most
        last = None
        for number, expires in oldest:
            if expires > self._view.now and number > beyond:
                break
            last = number
        if last is None:
            return False
        yield answer_sql.DROP_OLDEST, (queue, last), False
        return bool(last == oldest[-1][0]) and len(oldest) == DROPPED_AT_ONCE
