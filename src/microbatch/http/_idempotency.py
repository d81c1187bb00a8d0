"""Idempotency: what changes something is done once for each key, and answered alike each time."""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio
import msgspec

from microbatch._pure.exceptions import BatcherClosed
from microbatch.durable.answers import QueueAnswers
from microbatch.durable.errors import QueueUnavailable

from . import _keys
from ._problem import Problem
from ._reading import media_type_of
from ._remembering import AnswersInMemory
from ._reply import HTTPReply
from ._routing import path_of

if TYPE_CHECKING:
    from ._exchange import Exchange, Work
    from ._parts import APIParts
    from ._remembering import KeptAnswers

#: Seconds after which a request whose key is running may come again.
RUNNING_RETRY_AFTER = 1.0

#: Seconds after which a request may come again that found no room for its key, or its file not to be used.
FULL_RETRY_AFTER = 1.0

#: Bodies over so many bytes are kept compressed: JSON shrinks to a fifth, in about 10 ms for each MB.
COMPRESSED_OVER = 2_048

#: Routes on which a key is never required: what they do to a job can be done twice.
_OF_JOBS = "jobs."


class _Kept(NamedTuple):
    """A reply as it is kept."""

    status: int
    headers: dict[str, str]
    media_type: str | None
    body: bytes
    compressed: bool
    job: tuple[str, str] | None


class Idempotency:
    """Remembers under which keys requests came, and what they were answered with.

    Args:
        answers: Where that is kept.
        ttl: For how many seconds.
        required: Whether what changes something in a collection must have a key.
    """

    def __init__(self, answers: KeptAnswers, *, ttl: float, required: bool) -> None:
        self._answers = answers
        self._ttl = ttl
        self._required = required

    async def run(self, exchange: Exchange, work: Work) -> HTTPReply:
        """Do work once for each key; see `KeyStore.run`. Nothing may cancel it but the end of the process."""
        route = exchange.route
        key = _keys.key_of(exchange.request.headers.getlist("idempotency-key"))
        if key is None:
            if self._required and not route.name.startswith(_OF_JOBS):
                raise _keys.missing()
            return await work(None)
        # Whoever the key is from and whatever it is for: no two of those share one.
        stored = _keys.hash_of_parts(exchange.principal.id, route.name, key).hex()
        fingerprint = fingerprint_of(exchange)
        try:
            standing = await self._answers.begin(stored, fingerprint)
        except (QueueUnavailable, BatcherClosed) as error:
            raise Problem(
                503, "keys cannot be looked up now", retry_after=FULL_RETRY_AFTER, close=True
            ) from error
        if standing is None:
            raise Problem(
                503, "too many requests are under way", retry_after=FULL_RETRY_AFTER, close=True
            )
        if standing.token is None:
            return await self._known(exchange, standing.answer, same=standing.same)
        answer: bytes | None = None
        try:
            reply = await work(stored)
            if reply.kept:
                answer = kept_form(reply)
        finally:
            with anyio.CancelScope(shield=True):
                await self._answers.finish(stored, fingerprint, standing.token, answer, self._ttl)
        return reply

    async def _known(self, exchange: Exchange, answer: bytes | None, *, same: bool) -> HTTPReply:
        """Answer what comes with a key that is taken. A body that was to be read here is not."""
        close = exchange.route.body == "stream"
        if not same:
            raise Problem(
                422,
                "this Idempotency-Key came with another request before: use a new one for each",
                type="idempotency-key-reused",
                close=close,
            )
        if answer is None:
            raise Problem(
                409,
                "a request with this Idempotency-Key is running",
                type="idempotency-key-running",
                retry_after=RUNNING_RETRY_AFTER,
                close=close,
            )
        reply = reply_of(answer)
        jobs = exchange.parts.jobs
        if reply.job is not None and jobs is not None:
            try:
                now = await jobs.state(exchange, *reply.job)
            except Problem as problem:
                if problem.status != 404:
                    raise
                # It was deleted meanwhile: then what it was when it was made is all that can be told.
            else:
                reply = now
        headers = reply.headers | {"idempotent-replayed": "true"}
        if close:
            headers["connection"] = "close"
        return replace(reply, headers=headers)


def fingerprint_of(exchange: Exchange) -> bytes:
    """Return what stands for a request's content.

    Of a body that is read while it is handled, what is said of it: its media type, and ``Content-Digest``.
    """
    request, route = exchange.request, exchange.route
    path = path_of(request.scope).rstrip("/")
    query: bytes = request.scope.get("query_string", b"")
    if route.body == "stream":
        said = ", ".join(request.headers.getlist("content-digest"))
        return _keys.hash_of_parts(route.method, path, query, media_type_of(request), said)
    return _keys.hash_of_parts(route.method, path, query, exchange.body)


def kept_form(reply: HTTPReply) -> bytes:
    """Return a reply as it is kept."""
    body, compressed = reply.body, len(reply.body) > COMPRESSED_OVER
    if compressed:
        body = zlib.compress(body, 1)
    kept = _Kept(reply.status, reply.headers, reply.media_type, body, compressed, reply.job)
    return msgspec.msgpack.encode(kept)


def reply_of(answer: bytes) -> HTTPReply:
    """Return a reply that was kept."""
    kept = msgspec.msgpack.decode(answer, type=_Kept)
    return HTTPReply(
        status=kept.status,
        body=zlib.decompress(kept.body) if kept.compressed else kept.body,
        headers=kept.headers,
        media_type=kept.media_type,
        kept=True,
        job=kept.job,
    )


def idempotency_of(parts: APIParts) -> Idempotency | None:
    """Return what remembers the keys of an API, once its collections are known; None if that is off."""
    settings = parts.settings
    if settings.idempotency == "off":
        return None
    queue: Any = settings.idempotency_store
    if queue is None:
        queues = (one.settings.queue for one in parts.collections.values())
        queue = next((one for one in queues if one is not None), None)
    most = settings.idempotency_max
    return Idempotency(
        AnswersInMemory(most) if queue is None else QueueAnswers(queue, most),
        ttl=settings.idempotency_ttl,
        required=settings.idempotency == "required",
    )
