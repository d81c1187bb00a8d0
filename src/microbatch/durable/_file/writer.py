"""The one thread of this process that writes to a queue's file, for all queues and event loops in it.

Callers leave what they want written in its inbox. Everything that waits there, of all queues, goes in one
transaction and one sync; while that runs the next one fills. Nothing in it can be cancelled. An event loop is
woken once for each transaction.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from microbatch.durable.errors import QueueUnavailable

from .asks import Afterwards, Ask, Turn
from .committing import Committing, Failed
from .connection import Connection, Fault
from .records import State
from .transaction import WriteTransaction

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from .client import Client
    from .duty import Duty, Registrar
    from .port import Port, Reply
    from .records import Step

T = TypeVar("T")

logger: logging.Logger = logging.getLogger("microbatch.durable")

#: Items, and bytes of them, in one transaction at most. From 1,000 rows on a transaction gets no cheaper for
#: each; 8 MiB keep the file's write lock for about 50 ms.
GROUP_ITEMS = 10_000
GROUP_BYTES = 8 << 20

#: Bytes of new items that may wait for the writer; beyond, callers wait.
INBOX_BYTES = 64 << 20

#: Seconds for which another connection of this process may write once it has begun, until it is ended.
TURN_TIMEOUT = 6.0

#: Seconds by which the writer's duties may be late while callers keep it busy.
LULL = 0.005

#: Seconds for which glances may stand for whole looks.
WHOLE_INTERVAL = 1.0

#: Seconds before the next attempt while the file cannot be used.
TROUBLE_PAUSE = 0.25


class End(NamedTuple):
    """The last message."""


class Writer:
    """The thread, its inbox, and the queues that it serves.

    Args:
        path: The file, resolved.
        duties: Makes who knows its clients, and what it does besides writing.
        lives: Tells whether a consumer of a file of version 1 lives.
        synchronous: What its first queue asks of the disk.

    Attributes:
        clients: The queues that it serves.
        load: Bytes of new items in the inbox.
        lock_waits: How often it found the file locked.
    """

    def __init__(
        self,
        path: Path,
        duties: Callable[[Writer], tuple[Registrar, list[Duty]]],
        lives: Callable[[tuple[Any, ...]], bool],
        synchronous: str,
    ) -> None:
        self.path = path
        self.clients: list[Client] = []
        self.load = 0
        self.users: set[Client] = set()
        self.connection = Connection(path, lives, synchronous)
        self.stirred: set[int] = set()
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._left_over: Any = None
        self._replies: dict[Port, list[Reply]] = {}
        self.neighbours: Registrar
        self.neighbours, self._duties = duties(self)
        self._committing = Committing(
            path=path,
            connection=self.connection,
            clients=self.clients,
            registrar=self.neighbours,
            stirred=self.stirred,
            wanting=self._wanting,
        )
        self._trouble = False
        self._odd = ""
        self._rests_until = 0.0
        self._look_at = 0.0  # not before then does a busy writer look at its duties again
        self._mutex = threading.Lock()
        self._goodbye: tuple[Port, Callable[[Any], object]] | None = None
        self._thread = threading.Thread(
            target=self._run, name=f"microbatch writer {path.name}", daemon=True
        )
        self._thread.start()

    # From any thread

    @property
    def lock_waits(self) -> int:
        """Return how often it found the file locked."""
        return self.connection.lock_waits

    @property
    def place(self) -> tuple[int, int] | None:
        """Return the device and inode of the file that it has open; None before it has opened any."""
        return self.connection.place

    def post(self, message: Any) -> int:
        """Leave an ask, or a function to be called in the writer's thread; return the ``load`` with it."""
        load = self.load
        if isinstance(message, Ask) and message.size:
            with self._mutex:
                self.load = load = self.load + message.size
        self._inbox.put(message)
        return load

    def end(self, goodbye: tuple[Port, Callable[[Any], object]] | None) -> None:
        """Let the thread end once it has dealt with all that was posted.

        ``goodbye``, a function and the event loop that it is called in, hears when nothing is open any more.
        """
        self._goodbye = goodbye
        self._inbox.put(End())

    # In the writer's thread

    def _run(self) -> None:
        asks: list[Ask] | None = []
        try:
            while (asks := self._gather()) is not None:
                if asks:
                    self._write(asks)
                if (now := time.monotonic()) >= self._look_at:
                    self._do_duties()
                    self._look_at = now + LULL if asks else 0.0
                asks = []
                self._serve()
                self.deliver()
        except Exception:
            logger.exception(
                "the writer of %r failed: all that is asked of it is refused", str(self.path)
            )
            self._refuse_all(asks or [])
        finally:
            self.connection.close()
            if self._goodbye is not None:
                self.reply(*self._goodbye, None)
            self.deliver()

    def _refuse_all(self, asks: list[Ask]) -> None:
        """Answer for a writer that failed, until its queues are closed: nobody may wait for ever."""
        message, self._left_over = self._left_over, None
        while not isinstance(message, End):
            if isinstance(message, Ask):
                asks.append(message)
            elif isinstance(message, Turn):
                self.reply(message.client.port, message.refuse, self._failed())
            elif message is not None:
                with contextlib.suppress(Exception):
                    (message.function if isinstance(message, Afterwards) else message)()
            for ask in asks:
                self.reply(ask.client.port, ask.fail, self._failed())
            asks = []
            self.deliver()
            message = self._inbox.get()

    def _failed(self) -> QueueUnavailable:
        return QueueUnavailable(str(self.path), "its writer failed; the log says why")

    def _gather(self) -> list[Ask] | None:
        """Return what waits for the next transaction; None to end."""
        message, self._left_over = self._left_over, None
        if message is None and (message := self._wait()) is None:
            self.look()
            return []
        asks: list[Ask] = []
        items = size = 0
        while message is not None:
            if isinstance(message, Ask):
                items += message.items
                size += message.size
                if asks and (items > GROUP_ITEMS or size > GROUP_BYTES):
                    break
                if not (asks and asks[-1].absorb(message)):
                    asks.append(message)
            elif isinstance(message, Turn | Afterwards | End):
                if asks:
                    break
                if isinstance(message, End):
                    return None
                self._do(message)
            else:
                message()
            try:
                message = self._inbox.get_nowait()
            except queue.Empty:
                message = None
        self._left_over = message
        return asks

    def _wait(self) -> Any:
        """Return the next message; None if something is due before one comes."""
        dues = self._dues()
        whole_at = time.monotonic() + WHOLE_INTERVAL
        while True:
            try:
                return self._inbox.get(timeout=self._pause(dues))
            except queue.Empty:
                now = time.monotonic()
                if now >= whole_at or not self._glance(dues, now):
                    return None

    @staticmethod
    def _glance(dues: list[tuple[float, Duty | None]], now: float) -> bool:
        """Tell whether a glance shows nothing to do for what is due; note when it is due again."""
        for index, (due, duty) in enumerate(dues):
            if due <= now:
                later = None if duty is None else duty.glance(now)
                if later is None:
                    return False
                dues[index] = (later, duty)
        return True

    def _do(self, message: Turn | Afterwards) -> None:
        """Do what stands between two transactions."""
        if isinstance(message, Turn):
            self._stand_aside(message)
        else:
            message.function()

    def _dues(self) -> list[tuple[float, Duty | None]]:
        """Return when what is due: duties, and claims (None)."""
        now = time.monotonic()
        dues: list[tuple[float, Duty | None]]
        if now < self._look_at:  # who was just answered is likely to come again
            dues = [(self._look_at, None)]
        else:
            dues = [(due, duty) for duty in self._duties if (due := duty.due(now)) is not None]
        return dues + [
            (max((client.wanted_since or now) + client.max_wait, client.rests_until), None)
            for client in self.clients
            if client.want is not None and client.queue in self.stirred
        ]

    def _pause(self, dues: list[tuple[float, Duty | None]]) -> float | None:
        """Return the seconds until the first of them; None without any."""
        if not dues:
            return None
        now = time.monotonic()
        return max(0.0, min(due for due, _ in dues) - now, self._rests_until - now)

    def look(self) -> None:
        """Look at the duties in this turn: something that they depend on has changed."""
        self._look_at = 0.0

    def _do_duties(self) -> None:
        for duty in self._duties:
            due = duty.due(now := time.monotonic())
            if due is not None and due <= now and now >= self._rests_until:
                try:
                    duty.do(now)
                except Fault as fault:
                    self.tell_trouble(fault)
                    self._rests_until = time.monotonic() + TROUBLE_PAUSE
                except Exception as error:  # noqa: BLE001 - whatever it is, callers are served
                    self._tell_odd(error)
                    duty.put_off(time.monotonic() + TROUBLE_PAUSE)

    # Transactions

    def _write(self, asks: list[Ask]) -> None:
        with self._mutex:
            self.load -= sum(ask.size for ask in asks)
        try:
            answers, transactions = self._committing.write(asks)
        except Fault as fault:
            self.tell_trouble(fault)
            for ask in asks:
                self.reply(ask.client.port, ask.fail, fault.error())
            return
        for transaction in transactions:
            self._committed(transaction)
        self._end_trouble()
        for ask, answer in zip(asks, answers, strict=True):
            if isinstance(answer, Failed):
                self.reply(ask.client.port, ask.refuse, answer.error)
            else:
                self.reply(ask.client.port, ask.done, answer)

    def _committed(self, transaction: WriteTransaction) -> None:
        """Let everybody know what a transaction has done, now that it is on the disk."""
        self.connection.committed()
        self.stirred |= transaction.stirred
        self.stirred -= transaction.settled_down
        for client in self.clients:
            if client.queue in transaction.settled_down:
                client.wanted_since = None  # nothing is left that could wait for company
        for client, want, claims in transaction.served:
            assert client.want is want  # noqa: S101 - it changes in this thread, and not meanwhile
            client.want = None
            client.claims.update(claim.number for claim, _ in claims)
            self.reply(client.port, client.hears.claimed, claims)
        for client, claim in transaction.finished:
            client.claims.discard(claim)
        for duty in self._duties:
            duty.committed(transaction)

    def transact(self, function: Callable[[WriteTransaction], Generator[Step, Any, T]]) -> T:
        """Do something of the writer's own in a transaction.

        Raises:
            Fault: If the file cannot be used.
        """
        self.deliver()  # who waits for the transaction before must not wait for this one's lock too
        answer, transaction = self._committing.transact(function)
        self._committed(transaction)
        self._end_trouble()
        return answer

    def catch_up(self) -> None:
        """See that its clients have their seats in the file that is open now.

        Raises:
            Fault: If the file cannot be used.
        """
        if not self._committing.seated:
            self.transact(_do_nothing)

    # Claims

    def _wanting(self, queues: set[int]) -> list[Client]:
        """Return whose consumers may have what is ready in these queues."""
        if not queues:
            return []
        now = time.monotonic()
        found = [client for client in self.clients if client.queue in queues]
        for client in found:
            # Counted also while its handlers are busy: who has waited behind them need not do so again.
            if client.max_wait and client.wanted_since is None:
                client.wanted_since = now
        return [
            client
            for client in found
            if client.want is not None
            and now >= client.rests_until
            and (client.has_waited(now) or self._fills(client))
        ]

    def _fills(self, client: Client) -> bool:
        want = client.want
        assert want is not None  # noqa: S101
        queue_row = self.connection.read(lambda session: session.look(client.queue))
        return queue_row.counts[State.READY] >= want.enough

    def _serve(self) -> None:
        """Serve whoever asked for items since the last transaction, if there may be some."""
        if time.monotonic() < self._rests_until:
            return
        try:
            for client in self._wanting(self.stirred):
                try:
                    self.transact(partial(WriteTransaction.claim, client=client))
                except Fault:
                    raise
                except Exception as error:  # noqa: BLE001 - rows of one queue that make no sense
                    self._tell_odd(error)
                    client.rests_until = time.monotonic() + TROUBLE_PAUSE
        except Fault as fault:
            self.tell_trouble(fault)
            self._rests_until = time.monotonic() + TROUBLE_PAUSE

    @staticmethod
    def now() -> float:
        """Return the time by the monotonic clock."""
        return time.monotonic()

    # Standing aside

    def _stand_aside(self, turn: Turn) -> None:
        """Let another connection of this process write, for a bounded time."""
        port = turn.client.port
        turn.extend(TURN_TIMEOUT)  # until it is taken
        port.deliver([(turn.grant, None)])
        while not turn.over.wait(0.05):
            if time.monotonic() > turn.until or port.has_ended():
                turn.stop()
                break
        turn.client.claims.difference_update(turn.finished)
        for duty in self._duties:
            duty.look_soon()

    # Trouble

    def tell_trouble(self, fault: Fault) -> None:
        """Say once that the file cannot be used."""
        if not self._trouble:
            self._trouble = True
            logger.warning(
                "the queue file %r cannot be used: %s; trying again", str(self.path), fault.reason
            )
        for duty in self._duties:
            duty.look_soon()

    def _tell_odd(self, error: Exception) -> None:
        """Say once that something of the writer's own fails again and again."""
        if repr(error) != self._odd:
            self._odd = repr(error)
            logger.warning(
                "the queue file %r: a statement failed, trying again",
                str(self.path),
                exc_info=error,
            )

    def _end_trouble(self) -> None:
        self._rests_until = 0.0
        if self._trouble:
            self._trouble = False
            logger.warning("the queue file %r can be used again", str(self.path))

    # Answers

    def reply(self, port: Port, function: Callable[[Any], object], argument: Any) -> None:
        """Have a function called in an event loop, with the others that wait for that."""
        self._replies.setdefault(port, []).append((function, argument))

    def deliver(self) -> None:
        """Wake the event loops that have replies."""
        replies, self._replies = self._replies, {}
        for port, calls in replies.items():
            port.deliver(calls)


def _do_nothing(_: WriteTransaction) -> Generator[Step, Any, None]:
    yield from ()
