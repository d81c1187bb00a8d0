"""A job's items on their way to the disk: read once, in bounded memory, whole or not at all."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterable, Generator
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio
import anyio.lowlevel

from microbatch._pure.exceptions import ItemError
from microbatch.durable._file.codec import encode_error, encode_roughly
from microbatch.durable._file.job_records import Chunk
from microbatch.durable._file.job_steps import INVALID
from microbatch.durable.errors import IdempotencyConflict, JobRejected

if TYPE_CHECKING:
    from collections.abc import Callable

    from microbatch.durable._file.codec import Codec
    from microbatch.durable._file.job_records import Begun, NewJob

    from .service import Service

#: Items, bytes of them, and items that do not fit, in one transaction: the write lock is held for some 20 ms.
CHUNK_ITEMS = 5_000
CHUNK_BYTES = 1 << 20
CHUNK_REFUSED = 500

#: Items after which the others have a turn.
TURN_ITEMS = 1_000

#: Items that do not fit, of which the error tells.
TOLD_MAX = 1_000

#: Characters of a client's id.
ID_CHARACTERS_MAX = 128

#: Rows of ids that are read at once to confirm that one comes twice.
CONFIRM_ROWS = 50

#: Hashes lie in so many arrays, by their lowest bits: each is looked through at once.
PARTS = 256

#: Stands for an item of a job that will be rejected: only its id is still wanted.
_NOTHING = b"\xc0"


def hash_of(text: str) -> int:
    """Return 64 bits: Python's own hash, which nobody outside can aim at."""
    return hash(text) & 0xFFFF_FFFF_FFFF_FFFF


class Reading(NamedTuple):
    """How a job's source is read.

    Attributes:
        items: How items read back.
        item_id: Gives an item's id of the client's.
        rejects: Whether one item that does not fit rejects all.
    """

    items: Codec[Any]
    item_id: Callable[[Any], Any] | None
    rejects: bool


class JobIntake:
    """Brings one job's items to the disk.

    Args:
        service: The queue.
        begun: The job.
        reading: How its source is read.
        queue: The queue's name, for people.

    Attributes:
        count: How many items it has so far.
    """

    def __init__(self, service: Service, begun: Begun, reading: Reading, queue: str) -> None:
        self._service = service
        self._job = begun.number
        self._encode = reading.items.encode
        self._item_id = reading.item_id
        self._rejects = reading.rejects
        self._queue = queue
        self._trace: bytes | None = None
        self.count = 0
        self._staged = 0
        self._size = 0
        self._payloads: list[bytes] = []
        self._refused: dict[int, bytes] = {}
        self._ids: list[str | None] = []
        self._hashes = [array("Q") for _ in range(PARTS)]
        self._rejected: list[tuple[int, str | None, str]] = []
        self._invalid = 0

    async def read(self, source: Any, trace: bytes | None) -> None:
        """Read all items, which were sent in a context.

        Raises:
            TypeError: If an id is no str.
            ValueError: If an id is of the wrong form, or comes twice.
            JobRejected: If items do not fit.
            QueueFull: If there is no room.
            Exception: What the source, or ``item_id``, raises.
        """
        self._trace = trace
        try:
            await self._read(source)
        finally:  # what a generator holds must not wait for the collector if the call fails
            if isinstance(source, AsyncGenerator):
                await source.aclose()
            elif isinstance(source, Generator):
                source.close()
        if self._payloads:
            await self._stage()
        await self._refuse_twins()
        if self._invalid and self._rejects:
            raise JobRejected(self._queue, self._rejected, self._invalid)

    async def _read(self, source: Any) -> None:
        if isinstance(source, AsyncIterable):
            async for item in source:
                if self._take(item):
                    await self._stage()
                elif self.count % TURN_ITEMS == 0:
                    await anyio.lowlevel.checkpoint()
        else:
            for item in source:
                if self._take(item):
                    await self._stage()
                elif self.count % TURN_ITEMS == 0:
                    await anyio.lowlevel.checkpoint()

    def _take(self, item: Any) -> bool:
        """Take one item; tell whether it is time to write."""
        try:
            payload, _ = self._encode(item)
        except (TypeError, ValueError) as error:
            self._take_invalid(item, error)
        else:
            if self._item_id is not None:
                self._note_id(self._item_id(item))
            if self._invalid and self._rejects:
                payload = _NOTHING
            self._payloads.append(payload)
            self._size += len(payload)
        self.count += 1
        if self._invalid and self._rejects and self._item_id is None:
            self._payloads.clear()  # nobody will need it
            return False
        return (
            len(self._payloads) >= CHUNK_ITEMS
            or self._size >= CHUNK_BYTES
            or len(self._refused) >= CHUNK_REFUSED
        )

    def _take_invalid(self, item: Any, error: Exception) -> None:
        self._invalid += 1
        if isinstance(item, ItemError):  # it stands for an item that its source could not make
            error = item
        known: str | None = None
        if self._item_id is not None:
            try:
                found = self._item_id(item)
            except Exception:  # noqa: BLE001 - it was made for items that fit
                self._ids.append(None)
            else:
                self._note_id(found)
                known = found
        if self._rejects:
            if len(self._rejected) < TOLD_MAX:
                self._rejected.append((self.count, known, str(error)))
            payload = _NOTHING
        else:
            payload = encode_roughly(item)
            stored = encode_error(error, code=INVALID)
            self._refused[len(self._payloads)] = stored
            self._size += len(stored)
        self._payloads.append(payload)
        self._size += len(payload)

    def _note_id(self, found: Any) -> None:
        if not isinstance(found, str):
            message = f"item_id must return a str, got {found!r} for item {self.count}"
            raise TypeError(message)
        if not 1 <= len(found) <= ID_CHARACTERS_MAX or not found.isprintable():
            message = (
                f"item_id must return 1 to {ID_CHARACTERS_MAX} printable characters, "
                f"got {found!r} for item {self.count}"
            )
            raise ValueError(message)
        number = hash_of(found)
        self._hashes[number % PARTS].append(number)
        self._ids.append(found)
        self._size += len(found)

    async def _stage(self) -> None:
        chunk = Chunk(
            self._staged,
            self._payloads,
            self._refused,
            self._ids if self._item_id is not None else None,
            self._trace,
        )
        size, self._size = self._size, 0
        self._payloads, self._refused, self._ids = [], {}, []
        self._staged += len(chunk.payloads)
        self._service.intake.check_open()  # a close between two of these would never answer
        await self._service.store.jobs.stage(self._job, chunk, size)

    # Ids that come twice

    async def _refuse_twins(self) -> None:
        twins: set[int] = set()
        for part in self._hashes:
            if len(set(part)) != len(part):
                twins.update(number for number, count in Counter(part).items() if count > 1)
        if twins:
            await self._confirm(twins)

    async def _confirm(self, twins: set[int]) -> None:
        """Look on the disk whether equal hashes are equal ids."""
        seen: dict[str, int] = {}
        at = 0
        while rows := await self._service.store.jobs.ids_from(self._job, at, CONFIRM_ROWS):
            for first, ids in rows:
                for position, one in enumerate(ids, first):
                    if one is None or hash_of(one) not in twins:
                        continue
                    if one in seen:
                        message = f"the id {one!r} comes twice: items {seen[one]} and {position}"
                        raise ValueError(message)
                    seen[one] = position
                at = first + len(ids)


async def begin_job(service: Service, new: NewJob, pause: float) -> tuple[Begun, bool]:
    """Begin a job; return it, and whether it is a new one.

    While another call brings a job with the same key it waits until that is seen, or gone.

    Raises:
        IdempotencyConflict: If the key belongs to a job with another fingerprint.
    """
    while True:
        try:
            begun = await service.store.jobs.begin(new)
        except BaseException:
            # It may have begun all the same, and nobody else knows of it: its key would be taken for ever.
            service.forget_job_soon(new.uid)
            raise
        if not begun.busy:
            break
        await anyio.sleep(pause)
    if begun.conflict:
        assert new.key is not None  # noqa: S101 - it is the key's job
        raise IdempotencyConflict(new.key, begun.uid)
    return begun, not begun.repeated
