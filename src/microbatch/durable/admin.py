"""Looking after a queue: a part of a durable queue's face."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from microbatch._pure import checks

from ._file.codec import decode_error, decode_roughly
from .errors import ItemCancelled, UnknownTicket
from .records import DeadLetter, Ticket, queue_stats, ticket_id

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .access import QueueAccess
    from .records import AnyTicket, QueueStats

T = TypeVar("T")

#: The greatest id that a file can hold.
_ID_MAX = 2**63 - 1


class WithAdmin(Generic[T]):
    """A queue that can be looked after, from whatever process."""

    _access: QueueAccess

    async def cancel(self, ticket: AnyTicket) -> bool:
        """Cancel an item that no handler has yet; return whether that was in time.

        Who waits for it gets ``ItemCancelled``.

        Raises:
            UnknownTicket: If there is no such item.
            QueueUnavailable: If the file cannot be used.
        """
        number = ticket_id(ticket)
        service = await self._access.opened("cancel")
        checked = isinstance(ticket, Ticket)
        nonce = ticket.nonce if isinstance(ticket, Ticket) else None
        cancelled = await service.store.cancel(number, nonce, checked)
        if cancelled is None:
            raise UnknownTicket(number, self._access.queue_name)
        if cancelled:
            service.callers.fail(number, lambda: ItemCancelled(number))
        return cancelled

    async def dead_letters(
        self, cursor: int | None = None, limit: int = 100
    ) -> list[DeadLetter[T | Any]]:
        """Return a page of dead letters, oldest id first.

        Args:
            cursor: The id of the last one of the page before; None for the first page.
            limit: How many at most, 1 to 10,000.

        Raises:
            QueueUnavailable: If the file cannot be used.
        """
        if cursor is not None:
            checks.whole_number("cursor", cursor, 0)
        checks.whole_number("limit", limit, 1)
        if limit > 10_000:
            message = f"limit must be at most 10000, got {limit}"
            raise ValueError(message)
        service = await self._access.opened("dead_letters")
        letters: list[DeadLetter[T | Any]] = []
        for row in await service.store.dead_letters(min(cursor or 0, _ID_MAX), limit):
            try:
                item: Any = self._access.items.decode(row.payload)
            except ValueError:
                item = decode_roughly(row.payload)
            error = decode_error(row.error, row.id, row.attempts)
            letters.append(
                DeadLetter(row.id, item, error, row.attempts, row.enqueued, row.ended_at)
            )
        return letters

    async def requeue(self, ids: Iterable[AnyTicket]) -> int:
        """Make dead letters ready again, with all their attempts; return how many there were.

        Raises:
            QueueUnavailable: If the file cannot be used.
        """
        numbers = [ticket_id(ticket) for ticket in ids]
        service = await self._access.opened("requeue")
        return await service.store.requeue(numbers)

    async def purge(self, ids: Iterable[AnyTicket]) -> int:
        """Remove items that have ended, dead letters above all; return how many were removed.

        Raises:
            QueueUnavailable: If the file cannot be used.
        """
        numbers = [ticket_id(ticket) for ticket in ids]
        service = await self._access.opened("purge")
        return await service.store.purge(numbers)

    async def pause(self) -> None:
        """Start no more items, in any process, until ``resume()``; it holds across restarts.

        Items may still be enqueued, and batches in flight go on.

        Raises:
            QueueUnavailable: If the file cannot be used.
        """
        service = await self._access.opened("pause")
        await service.store.pause(True)

    async def resume(self) -> None:
        """End a pause.

        Raises:
            QueueUnavailable: If the file cannot be used.
        """
        service = await self._access.opened("resume")
        await service.store.pause(False)

    async def stats(self) -> QueueStats:
        """Return the queue's counts, read from the disk in one transaction.

        Raises:
            QueueUnavailable: If the file cannot be used.
        """
        service = await self._access.opened("stats")
        return queue_stats(await service.store.stats(), service.store.lock_waits)
