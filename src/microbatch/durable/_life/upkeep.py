"""Removing what is kept too long, in small steps."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from microbatch.durable._file.duty import Duty

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from microbatch.durable._file.client import Client
    from microbatch.durable._file.records import Step
    from microbatch.durable._file.transaction import WriteTransaction
    from microbatch.durable._file.writer import Writer

#: Seconds between two steps of retention at least; and at most, where nothing happens.
UPKEEP_INTERVAL = 1.0
UPKEEP_INTERVAL_MAX = 60.0


class Upkeep(Duty):
    """Removes what is kept too long or beyond its count, and mends what lies about in small parts.

    Every second while something happens in a queue; else as often as its shortest time to keep asks for.
    """

    def __init__(self, writer: Writer) -> None:
        super().__init__(writer)
        self._next: dict[Client, float] = {}

    def due(self, now: float) -> float | None:
        del now
        workers = [c for c in self.writer.clients if c.attempts_max is not None]
        if not workers:
            return None
        return max(self.next, min(self._next.get(client, 0.0) for client in workers))

    def do(self, now: float) -> None:
        for client in list(self.writer.clients):
            if client.attempts_max is None or self._next.get(client, 0.0) > now:
                continue
            more = self.writer.transact(partial(self._step, client=client))
            limits = client.limits
            rest = min(limits.result_ttl, limits.key_ttl, limits.job_ttl) / 10
            rest = min(max(rest, UPKEEP_INTERVAL), UPKEEP_INTERVAL_MAX)
            self._next[client] = now if more else now + rest
        self._next = {c: when for c, when in self._next.items() if c in self.writer.clients}

    def _step(self, transaction: WriteTransaction, client: Client) -> Generator[Step, Any, bool]:
        session = transaction.session
        more = yield from session.prune(client.queue, client.limits)
        more = (yield from session.tidy(client.queue)) or more
        more = (yield from session.jobs.keep(client.queue, client.limits)) or more
        more = (yield from session.answers.prune(client.queue)) or more
        return more

    def look_soon(self) -> None:
        self._do_soon(self.writer.clients)  # a settle of another connection's, say

    def committed(self, transaction: WriteTransaction) -> None:
        self._do_soon(transaction.ended)

    def _do_soon(self, clients: Iterable[Client]) -> None:
        soon = self.writer.now() + UPKEEP_INTERVAL
        for client in clients:
            self._next[client] = min(self._next.get(client, soon), soon)
