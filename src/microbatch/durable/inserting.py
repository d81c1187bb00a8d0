"""New items on their way into the file: groups with keys and priorities, or payloads in bulk.

Generators that yield statements and are sent their rows, because the connection may be the application's own
(`joining`), and an aiosqlite one is awaited.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import store as sql
from .errors import IdempotencyConflict, QueueFull
from .records import Appended, NewItem, State, Stored, Take

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence
    from pathlib import Path

    from .limits import Limits

#: Attempts, consumer and claim of an item that no consumer has.
_NOBODY = (0, None, None)

#: A statement for whoever has the connection: its text, its parameters, and whether it runs for many.
Step = tuple[str, Any, bool]


def enqueueing(  # noqa: PLR0917 - passed on by position in two places
    queue: int,
    name: str,
    path: Path,
    now: float,
    limits: Limits,
    requests: Sequence[Sequence[NewItem]],
    take: Take | None,
) -> Generator[Step, Any, list[list[Stored] | Exception]]:
    """Store groups of items (`Session.enqueue`), on whatever connection runs these statements."""
    take, last_id, room, full = yield from _admission(queue, path, now, limits, take)
    insertion = _Insertion(last_id)
    for items in requests:
        insertion.start()
        try:
            for item in items:
                before = None
                if item.key is not None:
                    before = insertion.keys.get(item.key)
                    if before is None:
                        stored = yield sql.KEY, (queue, item.key, now), False
                        before = stored[0] if stored else None
                insertion.add(item, before)
            if full and insertion.size:
                raise QueueFull(name, "max_file_bytes", limits.max_file_bytes or 0)
            if insertion.size > room:
                raise QueueFull(name, "max_depth", limits.max_depth)
        except (QueueFull, IdempotencyConflict) as error:
            insertion.refuse(error)
        else:
            room -= insertion.size
            insertion.accept()
    taken = insertion.first(take.room) if take is not None else frozenset()
    if insertion.rows:
        rows, counts = insertion.table(queue, now, take, taken)
        for start, size in _parts(len(rows)):
            chosen = rows[start : start + size]
            yield sql.INSERT[size], [value for row in chosen for value in row], False
        yield sql.SET_LAST_ID, (insertion.last_id,), False
        yield sql.COUNT, (*counts, queue), False
    if insertion.keys:
        expires = now + limits.key_ttl
        yield (
            sql.SET_KEY,
            [(queue, key, *owner, expires) for key, owner in insertion.keys.items()],
            True,
        )
    return insertion.stored(taken)


def appending(  # noqa: PLR0917
    queue: int, path: Path, now: float, limits: Limits, payloads: Sequence[bytes], take: Take | None
) -> Generator[Step, Any, Appended]:
    """Store items that have nothing but a payload (`Session.append`): the usual way, and the cheapest."""
    take, last_id, room, full = yield from _admission(queue, path, now, limits, take)
    accepted = 0 if full else max(0, min(room, len(payloads)))
    taken = 0 if take is None else min(take.room, accepted)
    counts = [0] * len(State)
    counts[State.CLAIMED], counts[State.READY] = taken, accepted - taken
    if take is not None:
        claimed = (State.CLAIMED, 1, take.consumer, take.claim)
        yield from _append(queue, now, last_id + 1, payloads[:taken], claimed)
    ready = (State.READY, *_NOBODY)
    yield from _append(queue, now, last_id + taken + 1, payloads[taken:accepted], ready)
    if accepted:
        yield sql.SET_LAST_ID, (last_id + accepted,), False
        yield sql.COUNT, (*counts, queue), False
    return Appended(last_id + 1, accepted, taken, "max_file_bytes" if full else "max_depth")


def _append(
    queue: int, now: float, first_id: int, payloads: Sequence[bytes], owner: tuple[Any, ...]
) -> Generator[Step, Any, None]:
    state, attempts, consumer, claim = owner
    for start, size in _parts(len(payloads)):
        values: list[Any] = []
        chosen = payloads[start : start + size]
        for row, payload in enumerate(chosen, first_id + start):
            values += (row, queue, int(state), now, attempts, consumer, claim, now, payload)
        yield sql.APPEND[size], values, False


def _parts(total: int) -> Iterator[tuple[int, int]]:
    """Cut so many rows into parts of the sizes that there are statements for."""
    start = 0
    for size in sql.ROWS:
        while total - start >= size:
            yield start, size
            start += size


def _admission(
    queue: int, path: Path, now: float, limits: Limits, take: Take | None
) -> Generator[Step, Any, tuple[Take | None, int, int, bool]]:
    """Return who may take new items, the last id, the room, and whether the file is full."""
    ((paused, ready, scheduled, claimed),) = yield sql.QUEUE, (queue,), False
    if take is not None and not (yield sql.IS_CONSUMER, (take.consumer,), False):
        take = None  # see `Session.claim`
    if take is not None and not paused and not ready:
        overtaken = (yield sql.IS_DUE, (queue, now), False) if scheduled else []
        take = None if overtaken else take
    else:
        take = None
    ((last_id,),) = yield sql.LAST_ID, (), False
    full = False
    if limits.max_file_bytes is not None:
        pages = yield sql.PAGES_IN_USE, (), False
        full = pages[0][0] + sql.wal_size(path) >= limits.max_file_bytes
    return take, last_id, limits.max_depth - ready - scheduled - claimed, full


def joining_queue(name: str) -> Generator[Step, Any, tuple[int | None, str, int]]:
    """Return a queue's number, the file and the synchronous mode of a connection of the application's."""
    files = yield "PRAGMA database_list", (), False
    ((level,),) = yield "PRAGMA synchronous", (), False
    file = next(file for _, schema, file in files if schema == "main")
    if not (yield sql.HAS_TABLES, (), False):
        return None, file, level
    found = yield sql.QUEUE_ID, (name,), False
    return (found[0][0] if found else None), file, level


class _Insertion:
    """The rows of one enqueueing transaction, put together group by group."""

    def __init__(self, last_id: int) -> None:
        self.last_id = last_id
        self.rows: list[tuple[int, NewItem]] = []
        self.keys: dict[str, tuple[int, bytes]] = {}
        self._answers: list[list[Stored] | Exception] = []
        self._started = (0, last_id)
        self._ids: list[Stored] = []
        self._new_keys: list[str] = []

    @property
    def size(self) -> int:
        """Return how many rows the current group adds."""
        return len(self.rows) - self._started[0]

    def start(self) -> None:
        """Begin a group."""
        self._started = (len(self.rows), self.last_id)
        self._ids = []
        self._new_keys = []

    def add(self, item: NewItem, before: tuple[int, bytes] | None) -> None:
        """Add an item to the group, or repeat the id of the one that has its key already."""
        if before is not None:
            number, mark = before
            if mark != item.fingerprint:
                raise IdempotencyConflict(item.key or "", number)
            self._ids.append(Stored(number, repeated=True))
            return
        self.last_id += 1
        self.rows.append((self.last_id, item))
        self._ids.append(Stored(self.last_id))
        if item.key is not None:
            self.keys[item.key] = (self.last_id, item.fingerprint or b"")
            self._new_keys.append(item.key)

    def accept(self) -> None:
        """End the group."""
        self._answers.append(self._ids)

    def refuse(self, error: Exception) -> None:
        """End the group as if it had never been."""
        rows, self.last_id = self._started
        del self.rows[rows:]
        for key in self._new_keys:
            del self.keys[key]
        self._answers.append(error)

    def first(self, room: int) -> frozenset[int]:
        """Return the ids that a handler would get first, at most so many."""
        due = [(-item.priority, number) for number, item in self.rows if item.delay <= 0]
        if len(due) > room:
            due.sort()
        return frozenset(number for _, number in due[:room])

    def table(
        self, queue: int, now: float, take: Take | None, taken: frozenset[int]
    ) -> tuple[list[tuple[Any, ...]], list[int]]:
        """Return the rows for the disk, and how many there are in each state."""
        counts = [0] * len(State)
        rows = []
        for number, item in self.rows:
            payload, key, _, priority, delay, nonce, trace = item
            state = State.SCHEDULED if delay > 0 else State.READY
            owner: tuple[Any, ...] = _NOBODY
            if take is not None and number in taken:
                state, owner = State.CLAIMED, (1, take.consumer, take.claim)
            counts[state] += 1
            rows.append(
                (
                    number,
                    queue,
                    int(state),
                    priority,
                    now + delay,
                    *owner,
                    now,
                    payload,
                    key,
                    nonce,
                    trace,
                )
            )
        return rows, counts

    def stored(self, taken: frozenset[int]) -> list[list[Stored] | Exception]:
        """Return the answer for each group."""
        if not taken:
            return self._answers
        return [
            answer
            if isinstance(answer, Exception)
            else [
                stored._replace(taken=True)
                if stored.id in taken and not stored.repeated
                else stored
                for stored in answer
            ]
            for answer in self._answers
        ]
