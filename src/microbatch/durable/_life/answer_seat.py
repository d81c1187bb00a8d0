"""The answers that a queue's file keeps, from the queue's seat at it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from microbatch._pure.standing import Standing
    from microbatch.durable._file.client import Client
    from microbatch.durable._file.records import Step
    from microbatch.durable._file.transaction import WriteTransaction
    from microbatch.durable._file.writer import Writer


class AnswerSeat:
    """Keys and answers in an SQLite file. Who runs what came with a key is a consumer like any other.

    Args:
        client: Gives the queue's client at the writer.
        writer: Gives the writer.
    """

    def __init__(self, *, client: Callable[[], Client], writer: Callable[[], Writer]) -> None:
        self._client = client
        self._writer = writer

    async def begin(self, key: str, fingerprint: bytes, token: int, most: int) -> Standing:
        """Take a key, unless it is taken; see `AnswerSteps.begin`. At most so many answers are kept.

        Raises:
            QueueUnavailable: If the file cannot be used.
        """
        client, neighbours = self._client(), self._writer().neighbours

        def steps(transaction: WriteTransaction) -> Generator[Step, Any, Standing]:
            session = transaction.session
            yield from neighbours.enrol(session, client)
            assert client.consumer is not None  # noqa: S101 - it is registered
            standing = yield from session.answers.begin(
                client.queue,
                key,
                fingerprint,
                token=token,
                consumer=client.consumer,
                lives=neighbours.sees,
            )
            if standing.token is not None:
                yield from session.answers.prune(client.queue, most)
            return standing

        return await client.call(steps)  # type: ignore[no-any-return]

    async def finish(
        self, key: str, fingerprint: bytes, token: int, answer: bytes, ttl: float
    ) -> None:
        """Keep the answer to what ran under a token, for so many seconds.

        Raises:
            QueueUnavailable: If the file cannot be used: whether it is kept is unknown.
        """
        client = self._client()
        await client.call(
            lambda transaction: transaction.session.answers.finish(
                client.queue, key, fingerprint, token=token, answer=answer, ttl=ttl
            ),
            size=len(answer),
        )

    async def release(self, key: str, token: int) -> None:
        """Give a key back.

        Raises:
            QueueUnavailable: If the file cannot be used.
        """
        client = self._client()
        await client.call(
            lambda transaction: transaction.session.answers.release(client.queue, key, token)
        )
