"""One write transaction of the writer: what its asks do to the file, and what follows once it is committed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from .records import Demand, State

if TYPE_CHECKING:
    from collections.abc import Generator

    from .asks import Settle
    from .client import Client, Want
    from .records import Claim, Step
    from .session import Session


class LogFullError(Exception):
    """There is no room for new items, but the log may be full of what is in the file already."""


class WriteTransaction:
    """What one attempt at a transaction has done so far. Nothing outside of it changes before the commit.

    Args:
        session: The statements.
        stirred: Queues in which something may be ready that was not before.
        careful: Whether each ask stands alone, because one of them failed.
        emptied: Whether the log was emptied just before.

    Attributes:
        served: Who gets which claims, with the values of their items where this process has them.
        ended: Clients whose own settling is among what ended in their queue.
        ended_unheard: Queues in which something else ended, which nobody here has heard of.
        finished: Claims that are in nobody's hand any more.
        settled_down: Queues in which nothing is ready that could be claimed.
        dues: When something is due, by queue, in seconds since the epoch.
        unknown: Queues of which that has to be looked up.
    """

    def __init__(
        self,
        session: Session,
        stirred: set[int],
        *,
        careful: bool = False,
        emptied: bool = False,
    ) -> None:
        self.session = session
        self.stirred = stirred
        self.served: list[tuple[Client, Want, list[tuple[Claim, list[Any] | None]]]] = []
        self.ended: set[Client] = set()
        self.ended_unheard: set[int] = set()
        self.finished: list[tuple[Client, int]] = []
        self.settled_down: set[int] = set()
        self.dues: dict[int, float] = {}
        self.unknown: set[int] = set()
        self._careful = careful
        self._emptied = emptied
        self._used: set[Client] = set()

    def need_room_in_log(self) -> None:
        """Note that the log is full: perhaps of what is in the file already, and then there is room after all.

        Raises:
            LogFullError: If that has not been seen to yet.
        """
        if not self._emptied:
            raise LogFullError

    def demand_of(self, client: Client) -> Demand | None:
        """Return what a client's consumer may take of the items that it stores: the short way."""
        if client.queue in self.stirred or client.max_wait or self._careful:
            return None
        return self.demand(client)

    def demand(self, client: Client) -> Demand | None:
        """Return what a client's consumer asks for, if nothing answered that yet."""
        want = client.want
        if want is None or client.consumer is None or client in self._used:
            return None
        return Demand(client.consumer, want.claim, want.slots, want.size, want.enough)

    def serve(self, client: Client, claims: list[tuple[Claim, list[Any] | None]]) -> None:
        """Answer what a client's consumer asked for."""
        assert client.want is not None  # noqa: S101 - there was a demand
        self._used.add(client)
        self.served.append((client, client.want, claims))

    def claim(self, client: Client) -> Generator[Step, Any, None]:
        """Serve a client's consumer from what is ready, if anything is."""
        demand = self.demand(client)
        if demand is None:
            return
        if not client.has_waited(time.monotonic()):
            # There are enough for one full call, or more: what is left of them waits on.
            look = yield from self.session.look(client.queue)
            assert client.want is not None  # noqa: S101 - there is a demand
            full = look.counts[State.READY] // client.want.enough
            if not full:
                return
            size = min(demand.size, full * client.want.enough)
            demand = demand._replace(slots=min(demand.slots, full), size=size)
        claims, queue = yield from self.session.claim(client.queue, demand)
        if claims:
            self.serve(client, [(claim, None) for claim in claims])
        if not queue.counts[State.READY] or not claims:
            self.stirred.discard(client.queue)
            self.settled_down.add(client.queue)
            if queue.counts[State.SCHEDULED]:
                # More may be overdue than one claim makes ready; or what was looked for has gone.
                self.look_for_dues(client.queue)

    def settle(self, ask: Settle) -> Generator[Step, Any, set[int]]:
        """Record outcomes."""
        client = ask.client
        settled: set[int] = set()
        if client.consumer is not None:
            settled = yield from self.session.settle(
                client.queue, client.limits, client.consumer, ask.settlements
            )
            for queue in (yield from self.session.count_jobs()):
                self.stir(queue)
        self.ended.add(client)
        self.finished += [(client, claim) for claim in ask.finished]
        for settlement in ask.settlements:
            for verdict in settlement.verdicts:
                if verdict.state == State.READY:
                    self.stir(client.queue)
                elif verdict.state == State.SCHEDULED:
                    self.due_in(client.queue, verdict.delay)
        return settled

    def finish(self) -> Generator[Step, Any, None]:
        """Write down what is written once, at the end."""
        yield from self.session.finish()
        for queue in (yield from self.session.count_jobs()):
            self.stir(queue)
        self.ended_unheard |= self.session.ended_unheard

    def stir(self, queue: int) -> None:
        """Note that something may be ready in a queue."""
        self.stirred.add(queue)
        self.settled_down.discard(queue)

    def due_in(self, queue: int, delay: float) -> None:
        """Note that something will be due in a queue in so many seconds."""
        due = self.session.now + delay
        self.dues[queue] = min(due, self.dues.get(queue, due))

    def tell_end(self, queue: int) -> None:
        """Note that something ended in a queue that was not handled here: whoever waits for it is to know."""
        self.ended_unheard.add(queue)

    def look_for_dues(self, queue: int) -> None:
        """Note that something may be due in a queue at a time that is not known here."""
        self.unknown.add(queue)
