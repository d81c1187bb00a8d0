"""New items: those that have nothing but a payload, which are the usual ones, and all others."""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, Any

from microbatch.durable.errors import QueueFull

from .asks import Ask

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from .client import Client
    from .records import Appended, Claim, Clash, NewItem, Step, Stored
    from .transaction import WriteTransaction

_DELAY = itemgetter(3)  # of a NewItem

#: Bytes of payloads from which on two groups of one queue are stored apart: a few blobs' worth.
TOGETHER_BYTES = 1 << 20


class Append(Ask):
    """Payloads to store. Several of one queue that wait for the same transaction are stored as one.

    Args:
        client: Whose they are.
        payloads: Their bytes.
        values: Their values as they read back.
        traces: The contexts that they were sent in; None without any.
        size: Bytes of payloads.
        told: Gets (first id, how many had room, the limit that the others ran into, the number for tickets).
        failed: Gets the reason if the disk could not be written.
    """

    __slots__ = ("_parts", "failed", "payloads", "told", "traces", "values")

    def __init__(
        self,
        client: Client,
        payloads: list[bytes],
        values: list[Any],
        traces: list[bytes | None] | None,
        size: int,
        *,
        told: Callable[[tuple[int, int, str, int | None]], object],
        failed: Callable[[Exception], object],
    ) -> None:
        super().__init__(client, len(payloads), size)
        self.payloads = payloads
        self.values = values
        self.traces = traces
        self.told = told
        self.failed = failed
        self._parts: list[tuple[int, Append]] = [(len(payloads), self)]

    def absorb(self, other: Ask) -> bool:
        if (
            not isinstance(other, Append)
            or other.client is not self.client
            or self.size + other.size > TOGETHER_BYTES
            or (self.traces is None) != (other.traces is None)
        ):
            return False
        self._parts.append((len(other.payloads), other))
        self.payloads = self.payloads + other.payloads
        self.values = self.values + other.values
        if self.traces is not None and other.traces is not None:
            self.traces = self.traces + other.traces
        self.items += other.items
        self.size += other.size
        return True

    def steps(
        self, transaction: WriteTransaction
    ) -> Generator[Step, Any, tuple[Appended, int | None]]:
        client, session = self.client, transaction.session
        demand = transaction.demand_of(client)
        answer: Appended = yield from session.append(
            client.queue, client.limits, self.payloads, self.traces, demand
        )
        if answer.accepted < len(self.payloads) and answer.limit == "max_file_bytes":
            transaction.need_room_in_log()
        taken = 0
        if answer.claims:
            served: list[tuple[Claim, list[Any] | None]] = []
            for claim in answer.claims:
                first, taken = taken, taken + sum(one.count for one in claim.ranges)
                traces = None if self.traces is None else self.traces[first:taken]
                served.append(
                    (
                        claim._replace(payloads=self.payloads[first:taken], traces=traces),
                        self.values[first:taken],
                    )
                )
            transaction.serve(client, served)
        if answer.accepted > taken:
            transaction.stir(client.queue)
        return answer, session.ticket

    def done(self, answer: tuple[Appended, int | None]) -> None:
        (first, accepted, _, limit), ticket = answer
        for count, part in self._parts:
            part.told((first, max(0, min(count, accepted)), limit, ticket))
            first += min(count, max(0, accepted))
            accepted -= count

    def fail(self, error: Exception) -> None:
        for _, part in self._parts:
            part.failed(error)


class Enqueue(Ask):
    """Groups of items with keys, priorities or delays; each group is stored wholly or not at all.

    Args:
        client: Whose they are.
        groups: The items.
        size: Bytes of payloads.
        told: Gets for each group its items' ids, or why it was refused.
        failed: Gets the reason if the disk could not be written.
    """

    __slots__ = ("_failed", "_groups", "_told")

    def __init__(
        self,
        client: Client,
        groups: list[list[NewItem]],
        size: int,
        told: Callable[[list[list[Stored] | QueueFull | Clash]], object],
        failed: Callable[[Exception], object],
    ) -> None:
        super().__init__(client, sum(map(len, groups)), size)
        self._groups = groups
        self._told = told
        self._failed = failed

    def steps(
        self, transaction: WriteTransaction
    ) -> Generator[Step, Any, list[list[Stored] | QueueFull | Clash]]:
        client = self.client
        demand = transaction.demand_of(client)
        answers, claims = yield from transaction.session.enqueue(
            client.queue, client.limits, self._groups, demand
        )
        if any(isinstance(a, QueueFull) and a.limit == "max_file_bytes" for a in answers):
            transaction.need_room_in_log()
        if claims:
            transaction.serve(client, [(claim, None) for claim in claims])
        delays = {
            delay
            for group, answer in zip(self._groups, answers, strict=True)
            if isinstance(answer, list)
            for delay in map(_DELAY, group)
        }
        if delays and min(delays) <= 0:
            transaction.stir(client.queue)
        later = [delay for delay in delays if delay > 0]
        if later:
            transaction.due_in(client.queue, min(later))
        return answers

    def done(self, answer: list[list[Stored] | QueueFull | Clash]) -> None:
        self._told(answer)

    def fail(self, error: Exception) -> None:
        self._failed(error)
