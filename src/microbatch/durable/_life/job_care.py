"""Looking after jobs: deadlines, what is done in many steps, ends to be told, and who waits for a change."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

from microbatch.durable._file.duty import Duty
from microbatch.durable._file.job_session import TELL_LATEST

if TYPE_CHECKING:
    from collections.abc import Generator

    from microbatch.durable._file.client import Client
    from microbatch.durable._file.job_steps import Needs
    from microbatch.durable._file.records import Step
    from microbatch.durable._file.session import Session
    from microbatch.durable._file.transaction import WriteTransaction
    from microbatch.durable._file.writer import Writer

#: Seconds between two looks at most: a deadline, or what another process has left half done, waits no longer.
LOOK_INTERVAL = 0.5


class JobCare(Duty):
    """Does for jobs what their callers need not wait for, in every process that has the file open.

    A look reads only if something was committed since the last one, or if something is due by now.
    """

    def __init__(self, writer: Writer) -> None:
        super().__init__(writer)
        self._version: Any = None
        self._company: list[Any] = []  # who was here at the last look, and what for
        self._soon = self._dirty = True
        self._rests_until = 0.0  # while a statement of ours fails, whatever else happens
        self._dues: dict[int, float] = {}  # by queue, in seconds since the epoch
        self._seen: dict[str, int] = {}  # how often a job that is watched had changed

    def due(self, now: float) -> float | None:
        if not self.writer.clients:
            return None
        if self._soon:
            return max(now, self._rests_until)
        soonest = max(self.next, self._rests_until)
        if self._dues:
            soonest = min(soonest, now + max(0.0, min(self._dues.values()) - time.time()))
        return soonest

    def put_off(self, until: float) -> None:
        self.next = self._rests_until = until
        self._dirty = True

    def do(self, now: float) -> None:
        self._soon = False
        self.next = now + LOOK_INTERVAL
        version = self.writer.connection.version()
        self.writer.catch_up()
        wall = time.time()
        due = any(one <= wall for one in self._dues.values())
        # Who has come since may look after another queue, or tell of what nobody told of before.
        company = [(one.queue, one.consumer, one.tells) for one in self.writer.clients]
        if (version, company) == (self._version, self._company) and not self._dirty and not due:
            return
        self._version, self._company, self._dirty = version, company, False
        queues = {client.queue for client in self.writer.clients}
        found = self.writer.connection.read(partial(_read_needs, queues=queues))
        self._dues.clear()
        for queue, needs in found.items():
            self._see_to(queue, needs)
        chore = self.writer.connection.read(_read_chore)
        if chore is not None:
            self.writer.transact(partial(_step, job=chore[0], queue=chore[1]))
            self._again()  # there may be more
        self._tell_watchers()

    def _see_to(self, queue: int, needs: Needs) -> None:
        if needs.overdue and self.writer.transact(partial(_expire, queue=queue)):
            self._again()
        elif needs.deadline is not None:
            self._dues[queue] = needs.deadline
        for client in self.writer.clients:
            if client.queue == queue:
                self._tell(client, needs)

    def _again(self) -> None:
        self._soon = self._dirty = True

    def _tell(self, client: Client, needs: Needs) -> None:
        writer = self.writer
        if client.consumer is None or client.attempts_max is None or client.left:
            return
        if needs.stopped:
            writer.reply(client.port, client.hears.jobs_stopped, needs.stopped)
        if needs.tell is None or not client.tells or client.telling:
            return
        now = time.time()
        if now < needs.tell <= now + TELL_LATEST:
            due = self._dues.get(client.queue, needs.tell)
            self._dues[client.queue] = min(due, needs.tell)
            return
        told = writer.transact(partial(_take_tell, queue=client.queue, consumer=client.consumer))
        if told is not None:
            client.telling = True
            writer.reply(client.port, client.hears.tell_end, told)

    def _tell_watchers(self) -> None:
        """Let those know who wait for a job that has changed."""
        watchers = {client: client.hears.watched_jobs() for client in self.writer.clients}
        uids = {uid for watched in watchers.values() for uid in watched}
        if not uids:
            self._seen.clear()
            return
        changes = self.writer.connection.read(partial(_read_changes, uids=uids))
        changed = {uid for uid in uids if self._seen.get(uid, -1) != changes.get(uid, -2)}
        self._seen = {uid: changes.get(uid, -2) for uid in uids}
        for client, watched in watchers.items():
            mine = changed.intersection(watched)
            if mine:
                self.writer.reply(client.port, client.hears.jobs_changed, mine)

    def changed_elsewhere(self) -> None:
        """Hear that another connection has committed something."""
        self._soon = True

    def look_soon(self) -> None:
        self._version = None
        self._soon = self._dirty = True

    def committed(self, transaction: WriteTransaction) -> None:
        session = transaction.session
        if session.moved_lives:
            self._again()
        for queue, news in session.job_news.items():
            teller = self._teller(queue)
            if teller is not None:
                self.writer.reply(teller.port, teller.hears.jobs_went_on, news)
        changed = session.changed_jobs
        if not changed:
            return
        for client in self.writer.clients:
            mine = changed.intersection(client.hears.watched_jobs())
            if mine:
                self.writer.reply(client.port, client.hears.jobs_changed, mine)

    def _teller(self, queue: int) -> Client | None:
        """Return who tells telemetry of a queue's jobs: one of its clients here, rather one with a handler."""
        found = [
            client
            for client in self.writer.clients
            if client.queue == queue and client.hears.counts_jobs()
        ]
        return next(
            (one for one in found if one.attempts_max is not None), found[0] if found else None
        )


def _read_needs(session: Session, queues: set[int]) -> Generator[Step, Any, dict[int, Needs]]:
    found = {}
    for queue in queues:
        found[queue] = yield from session.jobs.needs(queue)
    return found


def _read_changes(session: Session, uids: set[str]) -> Generator[Step, Any, dict[str, int]]:
    return session.jobs.changes(uids)


def _expire(transaction: WriteTransaction, queue: int) -> Generator[Step, Any, bool]:
    return transaction.session.jobs.expire(queue)


def _read_chore(session: Session) -> Generator[Step, Any, tuple[int, int] | None]:
    return session.jobs.chore()


def _step(transaction: WriteTransaction, job: int, queue: int) -> Generator[Step, Any, None]:
    yield from transaction.session.jobs.step(job)
    transaction.stir(queue)
    transaction.look_for_dues(queue)


def _take_tell(
    transaction: WriteTransaction, queue: int, consumer: int
) -> Generator[Step, Any, tuple[str, int] | None]:
    return transaction.session.jobs.take_tell(queue, consumer)
