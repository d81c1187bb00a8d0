"""What is asked for becomes write transactions: one for all of it, or one in which each stands alone."""

from __future__ import annotations

import logging
import sqlite3
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from .connection import Fault
from .transaction import LogFullError, WriteTransaction

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence
    from pathlib import Path

    from .asks import Ask
    from .client import Client
    from .connection import Connection
    from .duty import Registrar
    from .records import Step

T = TypeVar("T")

logger: logging.Logger = logging.getLogger("microbatch.durable")


class Failed(NamedTuple):
    """An ask that failed on its own account, and why."""

    error: Exception


class _AnewError(Exception):
    """A failed ask took the whole transaction along."""


class Committing:
    """Brings asks to the disk, in transactions in which its clients have their seats in any case.

    Args:
        path: The file, for the log.
        connection: What writes to it.
        clients: Who has a seat.
        registrar: Gives them theirs.
        stirred: Queues in which something may be ready.
        wanting: Returns whose consumers may have what is ready in some queues.
    """

    def __init__(
        self,
        *,
        path: Path,
        connection: Connection,
        clients: Sequence[Client],
        registrar: Registrar,
        stirred: set[int],
        wanting: Callable[[set[int]], Iterable[Client]],
    ) -> None:
        self._path = path
        self._connection = connection
        self._clients = clients
        self._registrar = registrar
        self._stirred = stirred
        self._wanting = wanting
        self._generation = 0  # of the file in which the clients have their seats

    @property
    def seated(self) -> bool:
        """Whether the clients have their seats in the file that is open now."""
        return self._connection.generation == self._generation

    def write(self, asks: Sequence[Ask]) -> tuple[list[Any], list[WriteTransaction]]:
        """Do what is asked for.

        Returns:
            An answer for each, `Failed` for those that failed on their own account; and what was committed.

        Raises:
            Fault: If the file cannot be used: nothing was done, or it is unknown whether it was.
        """
        try:
            try:
                return self._together(asks)
            except LogFullError:
                self._connection.empty_log()
                return self._together(asks, emptied=True)
        except Fault:
            raise
        except Exception:  # noqa: BLE001 - one of them fails on its own account: each for itself, then
            return self._one_by_one(asks)

    def transact(
        self, function: Callable[[WriteTransaction], Generator[Step, Any, T]]
    ) -> tuple[T, WriteTransaction]:
        """Do something else in a transaction of its own.

        Raises:
            Fault: If the file cannot be used.
        """
        transaction: WriteTransaction

        def steps(raw: sqlite3.Connection) -> T:
            nonlocal transaction
            session = self._connection.session()
            transaction = WriteTransaction(session, set(self._stirred))
            answer = self._connection.run(raw, function(transaction))
            self._connection.run(raw, transaction.finish())
            return answer

        answer = self._write_down(steps)
        return answer, transaction

    def _together(
        self, asks: Sequence[Ask], *, emptied: bool = False
    ) -> tuple[list[Any], list[WriteTransaction]]:
        """Do everything in one, and serve those who want what it makes ready."""
        transaction: WriteTransaction

        def steps(raw: sqlite3.Connection) -> list[Any]:
            nonlocal transaction
            session = self._connection.session()
            transaction = WriteTransaction(session, set(self._stirred), emptied=emptied)
            answers = [self._connection.run(raw, ask.steps(transaction)) for ask in asks]
            for client in self._wanting(transaction.stirred):
                self._connection.run(raw, transaction.claim(client))
            self._connection.run(raw, transaction.finish())
            return answers

        return self._write_down(steps), [transaction]

    def _one_by_one(self, asks: Sequence[Ask]) -> tuple[list[Any], list[WriteTransaction]]:
        """Do the same so that an ask which fails on its own account costs the others nothing."""
        bad: dict[int, Failed] = {}
        while True:
            transactions: list[WriteTransaction] = []

            def steps(
                raw: sqlite3.Connection, transactions: list[WriteTransaction] = transactions
            ) -> list[Any]:
                answers: list[Any] = []
                for index, ask in enumerate(asks):
                    if index not in bad:
                        try:
                            answers.append(self._one(raw, ask, transactions))
                            continue
                        except Exception as error:
                            if isinstance(error, sqlite3.Error) and self._connection.is_fault(
                                error
                            ):
                                raise
                            bad[index] = Failed(self._connection.unusable(error))
                            if (
                                not raw.in_transaction
                            ):  # it took all of it along: once more without it
                                raise _AnewError from error
                    answers.append(bad[index])
                return answers

            try:
                return self._write_down(steps), transactions
            except _AnewError:
                continue

    def _one(self, raw: sqlite3.Connection, ask: Ask, transactions: list[WriteTransaction]) -> Any:
        """Do what one asks, wholly or not at all."""
        session = self._connection.session()
        transaction = WriteTransaction(session, set(self._stirred), careful=True, emptied=True)

        def work() -> Any:
            answer = self._connection.run(raw, ask.steps(transaction))
            self._connection.run(raw, transaction.finish())
            return answer

        answer = self._connection.attempt(raw, work)
        transactions.append(transaction)
        return answer

    def _write_down(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run a function in a write transaction, in which the clients have their seats in any case."""
        again = False

        def begin_and_work(raw: sqlite3.Connection) -> T:
            nonlocal again
            again = not self.seated and bool(self._clients)
            if again:
                # Another file stands here, a backup say: what it says of these consumers is old, and their
                # queues may have other numbers in it.
                self._take_seats(raw)
            return work(raw)

        answer = self._connection.write(begin_and_work)
        self._generation = self._connection.generation
        if again:
            logger.warning("the queue file %r was replaced: starting over", str(self._path))
        return answer

    def _take_seats(self, raw: sqlite3.Connection) -> None:
        session = self._connection.session()
        transaction = WriteTransaction(session, set())
        for client in [client for client in self._clients if not client.left]:
            self._connection.run(raw, self._registrar.join(transaction, client))
        self._connection.run(raw, transaction.finish())
        self._stirred.clear()
        self._stirred.update(transaction.stirred)
