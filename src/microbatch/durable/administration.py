"""What whoever looks after a queue does: cancel, pause, look at the dead, count."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from microbatch._pure import checks

from .codec import decode_error, decode_roughly
from .errors import ItemCancelled, UnknownTicket
from .opening import Opened
from .records import DeadLetter, Ticket, ticket_id

if TYPE_CHECKING:
    from collections.abc import Iterable

    from microbatch._core.batcher import Batcher

    from .codec import Codec
    from .file_store import Store
    from .records import AnyTicket, Found, QueueStats
    from .waiters import Waiters
    from .watching import Watch

T = TypeVar("T")


class Administered(Opened, Generic[T]):
    """The administrative half of a queue."""

    _queue_name: str
    _items: Codec[T]
    _store: Store
    _waiters: Waiters
    _lookups: Batcher[int, Found | None]
    _watch: Watch

    def _more_to_do(self) -> None:
        """Note that there are items to claim, or results to look for."""

    def _check_nonce(self, ticket: Ticket, found: Found | None) -> None:
        if found is None or found.nonce != ticket.nonce:
            raise UnknownTicket(ticket.id, self._queue_name)

    async def cancel(self, ticket: AnyTicket) -> bool:
        """Cancel an item that no handler has yet; return whether that was in time.

        Who waits for it gets ``ItemCancelled``.

        Raises:
            UnknownTicket: If there is no such item.
            QueueUnavailable: If the file cannot be used.
        """
        number = ticket_id(ticket)
        await self._open()
        if isinstance(ticket, Ticket) and ticket.nonce is not None:
            self._check_nonce(ticket, await self._lookups.submit(number))
        cancelled = await self._store.cancel(number)
        if cancelled is None:
            raise UnknownTicket(number, self._queue_name)
        if cancelled:
            self._waiters.fail(number, lambda: ItemCancelled(number))
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
        await self._open()
        rows = await self._store.dead_letters(cursor or 0, limit)
        letters: list[DeadLetter[T | Any]] = []
        for row in rows:
            try:
                item: Any = self._items.decode(row.payload)
            except ValueError:
                item = decode_roughly(row.payload)
            error = decode_error(row.error, row.id, row.attempts)
            letters.append(
                DeadLetter(row.id, item, error, row.attempts, row.enqueued_at, row.died_at)
            )
        return letters

    async def requeue(self, ids: Iterable[AnyTicket]) -> int:
        """Make dead letters ready again, with all their attempts; return how many there were."""
        numbers = [ticket_id(ticket) for ticket in ids]
        await self._open()
        count = await self._store.requeue(numbers)
        self._more_to_do()
        return count

    async def purge(self, ids: Iterable[AnyTicket]) -> int:
        """Remove items that have ended, dead letters above all; return how many were removed."""
        numbers = [ticket_id(ticket) for ticket in ids]
        await self._open()
        return await self._store.purge(numbers)

    async def pause(self) -> None:
        """Start no more items, in any process, until ``resume()``; it holds across restarts.

        Items may still be enqueued, and batches in flight go on.
        """
        await self._open()
        await self._store.pause(True)
        self._watch.look_anew()

    async def resume(self) -> None:
        """End a pause."""
        await self._open()
        await self._store.pause(False)
        self._watch.look_anew()
        self._more_to_do()

    async def stats(self) -> QueueStats:
        """Return the queue's counts, read from the disk in one transaction.

        Raises:
            QueueUnavailable: If the file cannot be used.
        """
        await self._open()
        return await self._store.stats()
