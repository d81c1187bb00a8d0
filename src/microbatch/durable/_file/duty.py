"""What the writer's thread does besides writing what it is asked to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Generator

    from .client import Client
    from .records import ConsumerRow, Step
    from .session import Session
    from .transaction import WriteTransaction
    from .writer import Writer


class Duty:
    """Something to do every so often, in the writer's thread.

    Args:
        writer: Whose duty it is.

    Attributes:
        next: When it is due, by the monotonic clock.
    """

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self.next = 0.0

    def due(self, now: float) -> float | None:
        """Return when it is to be done next; None while there is no need."""
        raise NotImplementedError

    def do(self, now: float) -> None:
        """Do it.

        Raises:
            Fault: If the file cannot be used.
        """
        raise NotImplementedError

    def glance(self, now: float) -> float | None:
        """Look as cheaply as can be whether there is nothing to do though it is due.

        Returns:
            When it is due next; None if it is to be done.
        """
        del now
        return None

    def put_off(self, until: float) -> None:
        """Let it rest while the file cannot be used."""
        self.next = until

    def look_soon(self) -> None:
        """Hear that much may have changed."""

    def committed(self, transaction: WriteTransaction) -> None:
        """Hear what a transaction of this writer's has done."""
        del transaction


class Registrar(Protocol):
    """Who knows the queues that have a seat at a writer, and makes their consumers known in the file."""

    def join(self, transaction: WriteTransaction, client: Client) -> Generator[Step, Any, None]:
        """Give a queue its seat."""

    def enrol(self, session: Session, client: Client) -> Generator[Step, Any, None]:
        """See that its consumer is known."""

    def leave(self, transaction: WriteTransaction, client: Client) -> Generator[Step, Any, bool]:
        """Take its seat away, and give back what it holds, step by step; return whether to go on."""

    def leave_and_part(self, client: Client) -> None:
        """Take its seat away, however far a joining or leaving came, and forget it."""

    def part(self, client: Client) -> None:
        """Forget it."""

    def sees(self, consumer: ConsumerRow) -> bool:
        """Tell whether a consumer lives."""


class Sign(Protocol):
    """A consumer's sign of life."""

    @property
    def identity(self) -> str:
        """Where it stands."""

    def hold(self) -> bool:
        """Keep it up; tell whether that is still possible."""

    def follow(self) -> bool:
        """Give it in another place too if that is where one looks now; tell whether it was so."""

    def release(self) -> None:
        """End it."""
