"""New jobs: their settings, checked; and the two ways to make one, of a source and of another job's items."""

from __future__ import annotations

import hashlib
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from microbatch._pure import checks
from microbatch.durable._file.job_records import Chunk, NewJob
from microbatch.durable.errors import ResultsExpired

from .job_ids import draw_job_id
from .job_intake import JobIntake, Reading, begin_job
from .requests import check_key, check_order

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from microbatch.durable._file.codec import Codec
    from microbatch.durable._file.job_records import Begun, Recipe

    from .service import Service

#: Bytes of encoded metadata.
METADATA_BYTES_MAX = 16_384

_OWNER_CHARACTERS_MAX = 1_000
_WHOLE_MAX = 2**63 - 1

#: Items of another job that are copied at once.
COPIED = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJobSettings:
    """What `enqueue_job` takes beside the items."""

    key: str | None = None
    fingerprint: bytes | str | None = None
    owner: str | None = None
    metadata: Any = None
    priority: int = 0
    delay: float = 0
    item_id: Callable[[Any], str] | None = None
    invalid: str = "reject"
    batch_size: int | None = None
    ordered: bool = False
    max_failures: int | None = None
    deadline: float | None = None

    def check(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            TypeError: If one has the wrong type.
            ValueError: If one is out of its range.
        """
        if self.key is not None:
            check_key(self.key)
        fingerprint: Any = self.fingerprint
        if fingerprint is not None and not isinstance(fingerprint, bytes | str):
            message = f"fingerprint must be bytes, a str or None, got {fingerprint!r}"
            raise TypeError(message)
        check_owner(self.owner)
        check_order(self.priority, self.delay)
        checks.function("item_id", self.item_id)
        if self.invalid not in ("reject", "fail"):
            message = f"invalid must be 'reject' or 'fail', got {self.invalid!r}"
            raise ValueError(message)
        for name, minimum in (("batch_size", 1), ("max_failures", 0)):
            value = getattr(self, name)
            if value is not None and checks.whole_number(name, value, minimum) > _WHOLE_MAX:
                message = f"{name} must fit into 64 bits, got {value}"
                raise ValueError(message)
        checks.flag("ordered", self.ordered)
        if self.deadline is not None:
            checks.number("deadline", self.deadline, above=0)

    def new(self) -> NewJob:
        """Return the job as the file takes it.

        Raises:
            TypeError: If the metadata has no JSON form.
            ValueError: If it is too long.
        """
        return NewJob(
            uid=draw_job_id(),
            owner=self.owner,
            key=self.key,
            fingerprint=digest(self.fingerprint),
            metadata=encode_metadata(self.metadata),
            priority=self.priority,
            delay=float(self.delay),
            batch_size=self.batch_size,
            ordered=self.ordered,
            named=self.item_id is not None,
            max_failures=self.max_failures,
            lasts=None if self.deadline is None else float(self.deadline),
        )


def check_owner(owner: Any) -> None:
    """Refuse what can be no owner.

    Raises:
        TypeError: If it is neither a str nor None.
        ValueError: If it is too long, empty, or has characters that cannot be printed.
    """
    if owner is None:
        return
    if not isinstance(owner, str):
        message = f"owner must be a str or None, got {owner!r}"
        raise TypeError(message)
    if not 1 <= len(owner) <= _OWNER_CHARACTERS_MAX or not owner.isprintable():
        message = f"owner must be 1 to {_OWNER_CHARACTERS_MAX} printable characters, got {owner!r}"
        raise ValueError(message)


def digest(fingerprint: bytes | str | None) -> bytes | None:
    """Return what is kept of a fingerprint: 32 bytes, whatever its length."""
    if fingerprint is None:
        return None
    if isinstance(fingerprint, str):
        fingerprint = fingerprint.encode("utf-8", "surrogatepass")
    return hashlib.sha256(fingerprint).digest()


def encode_metadata(metadata: Any) -> str | None:
    """Return metadata as JSON text.

    Raises:
        TypeError: If it is no dict of str to what has a JSON form.
        ValueError: If it is too long, or has what JSON has not.
    """
    if metadata is None:
        return None
    if not isinstance(metadata, dict) or not all(isinstance(name, str) for name in metadata):
        message = f"metadata must be a dict with keys of str, or None, got {metadata!r}"
        raise TypeError(message)
    try:
        text = json.dumps(metadata, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
        size = len(text.encode("utf-8"))
    except (TypeError, ValueError, RecursionError) as error:
        message = f"metadata must have a JSON form: {error}"
        raise type(error)(message) if type(error) is TypeError else ValueError(message) from error
    if size > METADATA_BYTES_MAX:
        message = f"metadata must be at most {METADATA_BYTES_MAX} bytes of JSON, got {size}"
        raise ValueError(message)
    return text


async def enqueue_job_of(
    service: Service, source: Any, settings: NewJobSettings, codec: Codec[Any], queue: str
) -> str:
    """Make a job of a source's items, whole or not at all; return its id."""
    new = settings.new()
    begun, is_new = await begin_job(service, new, service.poll_interval)
    if not is_new:
        return begun.uid
    reading = Reading(codec, settings.item_id, settings.invalid == "reject")
    async with _coming_in(service, begun):
        intake = JobIntake(service, begun, reading, queue)
        with service.sending(lambda: intake.count, begun.uid) as trace:
            await intake.read(source, trace)
            service.intake.check_open()
            await service.store.jobs.show(begun.number, intake.count)
    return begun.uid


@asynccontextmanager
async def _coming_in(service: Service, begun: Begun) -> AsyncIterator[None]:
    """Remove a job that does not get as far as to be seen; let one that does begin once the call is over."""
    try:
        yield
    except Exception:
        await service.drop_job(begun.number)
        raise
    except BaseException:
        service.drop_job_soon(begun.number)
        raise
    finally:
        service.release_job_soon(begun.number)


async def retry_job(
    service: Service,
    of: str,
    recipe: Recipe,
    settings: NewJobSettings,
    queue: str,
    *,
    retryable_only: bool,
) -> str:
    """Make a job of what did not end well in another one; return its id.

    Raises:
        ResultsExpired: If that one's items go while they are read.
    """
    new = NewJob(
        uid=draw_job_id(),
        owner=recipe.owner,
        key=settings.key,
        # Else the same key for another job's items would give this one's.
        fingerprint=digest(f"retry {of} {retryable_only}"),
        metadata=recipe.metadata,
        retry_of=of,
        priority=recipe.priority,
        batch_size=recipe.batch_size,
        ordered=bool(recipe.ordered),
        named=bool(recipe.named),
        max_failures=recipe.max_failures,
    )
    begun, is_new = await begin_job(service, new, service.poll_interval)
    if not is_new:
        return begun.uid
    jobs = service.store.jobs
    count = 0
    async with _coming_in(service, begun):
        after: int | None = -1
        with service.sending(lambda: count, begun.uid) as trace:
            while after is not None:
                some = await jobs.leftovers(recipe, after, COPIED, retryable_only=retryable_only)
                after = some.after
                if some.payloads:
                    service.intake.check_open()
                    chunk = Chunk(count, some.payloads, {}, some.ids, trace)
                    await jobs.stage(begun.number, chunk, sum(map(len, some.payloads)))
                    count += len(some.payloads)
            service.intake.check_open()
            left = await jobs.recipe(of, recipe.owner)
            if left is None or not left.kept:  # some of it may have gone before it was read
                raise ResultsExpired(of, queue)
            await jobs.show(begun.number, count)
    return begun.uid
