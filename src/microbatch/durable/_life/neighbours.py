"""Consumers: how one becomes known in the file, who of the others lives, and what the dead had in hand."""

from __future__ import annotations

import logging
import os
from functools import partial
from typing import TYPE_CHECKING, Any

from microbatch.durable._file import registry
from microbatch.durable._file.connection import Fault
from microbatch.durable._file.duty import Duty
from microbatch.durable._file.schema import warn_of_wal_bug

from .alive import Presence, birth_of

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from microbatch.durable._file.client import Client
    from microbatch.durable._file.records import ConsumerRow, Range, Step
    from microbatch.durable._file.session import Session
    from microbatch.durable._file.transaction import WriteTransaction
    from microbatch.durable._file.writer import Writer

logger: logging.Logger = logging.getLogger("microbatch.durable")

#: Seconds between two looks at who lives: an item of a dead process is handled again within twice this.
ALIVE_INTERVAL = 0.25

#: The same where nobody handles items: what a dead process had staged is gone within three times this.
IDLE_INTERVAL = 1.0

#: Seconds between two comparisons of what the file says a consumer has with what it has; after trouble at once.
COMPARE_INTERVAL = 5.0

#: Dead consumers that one transaction takes the items of: each may have left thousands, most left none.
BURIED = 50


class Neighbours(Duty):
    """Looks after the consumers of a file: those of this process, and those of others."""

    def __init__(self, writer: Writer) -> None:
        super().__init__(writer)
        self._version: Any = None
        self._known: list[ConsumerRow] = []
        self._compare_at = 0.0
        self._fresh = False  # whether somebody has come since the last look
        self._eyes = Presence(writer.path)

    # Coming and going, within transactions

    def join(self, transaction: WriteTransaction, client: Client) -> Generator[Step, Any, None]:
        """Give a queue its seat: make its row, and make its consumer known if it has a handler."""
        session = transaction.session
        self._fresh = True
        self._part_with_ended_loops()  # those without a handler are looked after by nobody else
        row = yield from session.queue(client.name)
        client.queue = row.id
        if (
            client in self.writer.clients
        ):  # again: what it was not told of meanwhile may be anything
            client.seen_ended = client.seen_removed = -1
        else:
            client.seen_ended, client.seen_removed = row.ended, row.removed
        client.claims.clear()
        if client.attempts_max is not None or client.consumer is not None:
            yield from self.register(session, client)
            transaction.stir(client.queue)
        else:  # it is one again when it stages something again
            self._take_presence(client)
        if client not in self.writer.clients:
            self.writer.clients.append(client)
            self.writer.connection.demand_synchronous([c.synchronous for c in self.writer.clients])

    def enrol(self, session: Session, client: Client) -> Generator[Step, Any, None]:
        """See that a consumer is known in the file: it is not if the transaction before was rolled back."""
        if client.consumer is None or not (yield from session.knows(client.consumer)):
            yield from self.register(session, client)

    def register(self, session: Session, client: Client) -> Generator[Step, Any, None]:
        """Make a consumer known in the file."""
        pid = os.getpid()
        presence = Presence(self.writer.path, client.lives)
        try:
            while True:
                number = yield from session.register(client.queue, pid, birth_of(pid))
                # Its byte is locked before anybody else can see the row.
                lock_file = presence.take(number)
                if lock_file is not None:
                    break
                # A consumer of the file that stood here before a backup was restored still has that byte.
                yield from session.forget(number)
            yield from session.place(number, lock_file)
        except BaseException:
            presence.release()
            raise
        self._version = None  # a commit of our own does not move it
        before, client.presence, client.consumer = client.presence, presence, number
        if before is not None:
            before.release()

    def leave(self, transaction: WriteTransaction, client: Client) -> Generator[Step, Any, bool]:
        """Take a queue's seat away, step by step; return whether to go on.

        What its consumer still holds goes back, uncounted; what it has staged goes.
        """
        client.left = True
        number, session = client.consumer, transaction.session
        if number is None:
            return False
        more = yield from session.drop_staged(client.queue, number)
        client.abandoned += yield from session.jobs.abandon_all(number)
        if client.abandoned:
            more = True
            if not (yield from session.jobs.step(client.abandoned[-1])):
                client.abandoned.pop()
        if (yield from session.held(client.queue, number)):
            more = (yield from session.give_back(client.queue, number)) or more
            transaction.stir(client.queue)
        if not more:
            yield from session.forget(number)
        return more

    def leave_and_part(self, client: Client) -> None:
        """Do all that is left of `leave`, and `part`: nobody waits for it any more."""
        try:
            while client.consumer is not None and self.writer.transact(
                lambda transaction: self.leave(transaction, client)
            ):
                pass
        except Fault as fault:
            self.writer.tell_trouble(fault)
        finally:  # whatever else it is, others must not see it alive
            self.part(client)

    def part(self, client: Client) -> None:
        """Forget a queue: from now on others take what its consumer had, if anything is left."""
        if client in self.writer.clients:
            self.writer.clients.remove(client)
        client.want = None
        client.claims.clear()
        if client.holding:  # nobody else would let them begin
            self.writer.connection.held -= client.holding
            client.holding.clear()
            self.writer.stirred.add(client.queue)
        self._take_presence(client)

    @staticmethod
    def _take_presence(client: Client) -> None:
        presence, client.presence, client.consumer = client.presence, None, None
        if presence is not None:
            presence.release()

    # Looking

    def sees(self, consumer: ConsumerRow) -> bool:
        """Tell whether a consumer lives; if in doubt it does."""
        return self._eyes.sees(consumer)

    def due(self, now: float) -> float | None:
        del now
        if not self.writer.clients:
            return None
        # Who has staged something is a consumer too. All others look for what the dead had staged.
        busy = self._fresh or any(c.consumer is not None for c in self.writer.clients)
        return self.next if busy else self.next + IDLE_INTERVAL - ALIVE_INTERVAL

    def do(self, now: float) -> None:
        self.next = now + ALIVE_INTERVAL
        self._part_with_ended_loops()
        version = self.writer.connection.version()
        self.writer.catch_up()
        if version != self._version:
            self._known = self.writer.connection.read(lambda session: session.consumers())
            self._version = version
        self._keep_alive()
        self._take_back()
        self._fresh = False
        if now >= self._compare_at:
            self._compare_at = now + COMPARE_INTERVAL
            self._compare()

    def look_soon(self) -> None:
        self._version = None
        self._compare_at = 0.0

    def _part_with_ended_loops(self) -> None:
        for client in list(self.writer.clients):
            if client.port.has_ended():
                logger.warning("queue %r: its event loop ended without aclose()", client.name)
                self.part(client)
                registry.leave(self.writer, client)
                client.on_lost()

    def _keep_alive(self) -> None:
        """Hold on to the bytes of this process's consumers, whatever others have done to the lock file."""
        known = {consumer.id for consumer in self._known}
        for client in list(self.writer.clients):
            presence = client.presence
            if client.consumer is None or presence is None or client.left:
                continue
            if client.consumer not in known or not presence.hold():
                logger.warning("queue %r: it was taken for dead: starting over", client.name)
                self.writer.transact(partial(self.join, client=client))
            elif presence.follow():
                self.writer.transact(
                    partial(_write_place, consumer=client.consumer, lock_file=presence.identity)
                )
                self._version = None

    def _take_back(self) -> None:
        own = {client.consumer for client in self.writer.clients}
        limits = {
            c.queue: c.attempts_max for c in self.writer.clients if c.attempts_max is not None
        }
        others = [consumer for consumer in self._known if consumer.id not in own]
        if any(consumer.pid != os.getpid() for consumer in others):
            warn_of_wal_bug(self.writer.path)
        dead = [one for one in others if one.queue in limits and not self._eyes.sees(one)]
        while dead:
            gone = self.writer.transact(partial(_bury_some, consumers=dead[:BURIED], limits=limits))
            for consumer in gone:
                logger.warning("consumer %d is gone, its items go on here", consumer.id)
                dead.remove(consumer)
                self._known.remove(consumer)
        # What somebody had claimed is for those who handle items; what he had staged, in whatever queue, is
        # for nobody.
        for consumer in others:
            if consumer.queue in limits or self._eyes.sees(consumer):
                continue
            if self.writer.connection.read(partial(_has_to_go, consumer=consumer)):
                while self.writer.transact(partial(_drop_staged, consumer=consumer)):
                    pass
                self._known.remove(consumer)

    def _compare(self) -> None:
        """Give back what the file says that consumers here hold and they do not: uncounted."""
        for client in self.writer.clients:
            number = client.consumer
            if number is None:
                continue
            held = self.writer.connection.read(partial(_held, queue=client.queue, consumer=number))
            strange = {one.claim for one in held} - client.claims - {None}
            if strange:
                self.writer.transact(
                    partial(_give_back, queue=client.queue, consumer=number, claims=strange)
                )


def _give_back(
    transaction: WriteTransaction, queue: int, consumer: int, claims: set[Any]
) -> Generator[Step, Any, None]:
    yield from transaction.session.give_back(queue, consumer, claims)
    transaction.stir(queue)


def _write_place(
    transaction: WriteTransaction, consumer: int, lock_file: str
) -> Generator[Step, Any, None]:
    yield from transaction.session.place(consumer, lock_file)


def _held(session: Session, queue: int, consumer: int) -> Generator[Step, Any, list[Range]]:
    return session.held(queue, consumer)


def _has_to_go(session: Session, consumer: ConsumerRow) -> Generator[Step, Any, bool]:
    """Tell whether a dead consumer has staged something, or has nothing at all."""
    if (yield from session.jobs.has_staged(consumer.queue, consumer.id)):
        return True
    return not (yield from session.held(consumer.queue, consumer.id))


def _drop_staged(
    transaction: WriteTransaction, consumer: ConsumerRow
) -> Generator[Step, Any, bool]:
    """Remove some of what a dead consumer had staged; return whether there is more."""
    session = transaction.session
    more = yield from session.drop_staged(consumer.queue, consumer.id)
    yield from session.jobs.abandon_all(consumer.id)
    if not more and not (yield from session.held(consumer.queue, consumer.id)):
        yield from session.forget(consumer.id)
    return more


def _bury_some(
    transaction: WriteTransaction, consumers: Sequence[ConsumerRow], limits: dict[int, int]
) -> Generator[Step, Any, list[ConsumerRow]]:
    """Take back some of what dead consumers held; return those of whom nothing is left."""
    session = transaction.session
    gone: list[ConsumerRow] = []
    for consumer in consumers:
        queue = consumer.queue
        more = yield from session.drop_staged(queue, consumer.id)
        yield from session.jobs.abandon_all(consumer.id)
        dead, left = yield from session.take_back(queue, consumer.id, limits[queue])
        transaction.stir(queue)
        if dead:
            transaction.tell_end(queue)
        if more or left:
            break
        yield from session.forget(consumer.id)
        gone.append(consumer)
    return gone
