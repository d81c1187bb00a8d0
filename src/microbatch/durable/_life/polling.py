"""Looking for what other connections have committed: one look for each file and process."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from microbatch.durable._file.duty import Duty
from microbatch.durable._file.records import State
from microbatch.durable._file.view import CLOCK_TOLERANCE

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from microbatch.durable._file.client import Client
    from microbatch.durable._file.records import Queue, Step
    from microbatch.durable._file.session import Session
    from microbatch.durable._file.transaction import WriteTransaction
    from microbatch.durable._file.writer import Writer


class Polling(Duty):
    """Sees what others have committed, and what is due, and lets whom it concerns know.

    A look asks for one number, which changes when another connection has committed. Only then are the rows
    of the queues read, and only a queue whose counters moved is asked what ended in it.

    Args:
        writer: Whose duty it is.
        on_change: Called when another connection has committed.
    """

    def __init__(self, writer: Writer, on_change: Callable[[], object] = lambda: None) -> None:
        super().__init__(writer)
        self._on_change = on_change
        self._version: Any = None
        self._heard: Any = None  # the latest that those who are polled have heard of
        self._rests_until = 0.0  # while a statement of ours fails
        self._dues: dict[int, float] = {}  # by queue, in seconds since the epoch
        self._due_unknown: set[int] = set()
        self._clock = time.time() - time.monotonic()
        self._reading = 0.0  # the latest that those times were counted from
        self._interval = 1.0

    def due(self, now: float) -> float | None:
        interested = [client for client in self.writer.clients if _interested(client)]
        for client in self.writer.clients:
            client.polled = False
        # Again once that can be seen: who comes after it posts something to wake us.
        interested = [client for client in self.writer.clients if _interested(client)]
        for client in interested:
            client.polled = True
        if not interested:
            return None
        if any(map(_left_out, interested)):
            return max(now, self._rests_until)
        soonest = min(self.next, now + min(client.poll_interval for client in interested))
        if self._dues:
            soonest = min(soonest, now + max(0.0, min(self._dues.values()) - time.time()))
        return soonest

    def put_off(self, until: float) -> None:
        self.next = self._rests_until = until

    def glance(self, now: float) -> float | None:
        """See that nobody has committed anything: so it is nearly always, and a whole look costs more."""
        wall = time.time()
        if self._is_due(wall) or self._clock_was_set(now, wall):
            return None
        if self._version is None or not self.writer.connection.is_still(self._version):
            return None
        self.next = now + self._interval
        return self.next

    def _is_due(self, wall: float) -> bool:
        return bool(self._due_unknown) or any(due <= wall for due in self._dues.values())

    def _clock_was_set(self, now: float, wall: float) -> bool:
        return (
            abs(wall - now - self._clock) > CLOCK_TOLERANCE
            or self._reading > wall + CLOCK_TOLERANCE
        )

    def do(self, now: float) -> None:
        clients = [client for client in self.writer.clients if client.polled]
        self._interval = min((client.poll_interval for client in clients), default=1.0)
        self.next = now + self._interval
        wall = time.time()
        if self._clock_was_set(now, wall):
            # The clock was set, forth or back: what is due when is to be looked up anew, and to be mended.
            self._clock, self._reading = wall - now, wall
            self._dues.clear()
            self._due_unknown |= {client.queue for client in clients}
        for queue in [queue for queue, due in self._dues.items() if due <= wall]:
            del self._dues[queue]
            self._due_unknown.add(queue)
            self.writer.stirred.add(queue)
        version = self.writer.connection.version()
        self.writer.catch_up()
        if version != self._version:
            self._on_change()
        if version != self._heard:
            for client in self.writer.clients:
                if not client.polled:  # it hears nothing of what this look finds
                    _leave_out(client)
        left_out = any(map(_left_out, clients))
        if version == self._version and not left_out and not self._due_unknown:
            return
        rows = self.writer.connection.read(lambda session: self._rows(session, clients))
        self._version = self._heard = version
        for client in clients:
            self._tell(client, rows[client.queue])

    def _rows(
        self, session: Session, clients: list[Client]
    ) -> Generator[Step, Any, dict[int, Queue]]:
        rows: dict[int, Queue] = {}
        for queue in {client.queue for client in clients}:
            row = rows[queue] = yield from session.look(queue)
            # What waits in closed lanes is looked for when they open: else the looking would have no end.
            waits = row.counts[State.READY] and not row.paused
            if waits and (yield from session.is_claimable(queue)):
                self.writer.stirred.add(queue)
            if row.counts[State.SCHEDULED]:
                due = yield from session.next_due(queue)
                if due is not None and due > session.now:
                    self._dues[queue] = due
                elif not row.paused:
                    self.writer.stirred.add(queue)  # whoever asks for items gets them
            if row.latest > session.now + CLOCK_TOLERANCE:
                self.writer.stirred.add(queue)  # a claim mends what was written in a wrong future
        self._due_unknown.clear()  # what is due elsewhere concerns nobody here
        return rows

    def _tell(self, client: Client, row: Queue) -> None:
        """Tell a queue what ended in it since it was told last, if somebody waits there."""
        before = client.seen_ended, client.seen_removed
        if before == (row.ended, row.removed) or not (
            client.hears.is_waiting() or _leave_out(client)
        ):
            return
        client.seen_ended, client.seen_removed = row.ended, row.removed
        spans: list[tuple[int, int]] | None = None
        if before[0] >= 0 and before[1] == row.removed:
            spans = self.writer.connection.read(
                lambda session: session.ended_since(row.id, before[0])
            )
        self.writer.reply(client.port, client.hears.ended, spans)

    def look_soon(self) -> None:
        self._version = None
        self.next = 0.0

    def committed(self, transaction: WriteTransaction) -> None:
        if transaction.dues:
            self._reading = max(self._reading, transaction.session.now)
        for queue, due in transaction.dues.items():
            self._dues[queue] = min(due, self._dues.get(queue, due))
        if transaction.unknown:
            self._due_unknown |= transaction.unknown
            self.next = 0.0
        # The number that a look asks for does not move with commits of our own.
        for client in self.writer.clients:
            unheard = client.queue in transaction.ended_unheard or any(
                client is not settler and client.queue == settler.queue
                for settler in transaction.ended
            )
            if unheard and (client.hears.is_waiting() or _leave_out(client)):
                self.look_soon()


def _interested(client: Client) -> bool:
    return client.attempts_max is not None or client.hears.is_waiting()


def _leave_out(client: Client) -> bool:
    """Note that a queue is not told of something that ended, as nobody waits there; tell whether one does.

    Its event loop may not have heard yet that the very item is stored: who begins to wait has all looked up.
    """
    client.seen_ended = -1
    # Asked once that can be seen: who comes after it wakes us.
    return client.hears.is_waiting()


def _left_out(client: Client) -> bool:
    """Tell whether somebody waits where something ended that was not told."""
    return client.seen_ended < 0 and client.hears.is_waiting()
