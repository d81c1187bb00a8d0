"""Parts: what all requests of one API share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from ._detached import Detached

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from microbatch._core.batcher import Batcher

    from ._collection import Collection
    from ._envelopes import WebhookTarget
    from ._exchange import Exchange, Work
    from ._operations import Operation
    from ._options import BatchOptions
    from ._rate import Buckets
    from ._reply import HTTPReply
    from ._routing import Route
    from ._settings import APISettings


class KeyStore(Protocol):
    """What remembers answers under Idempotency-Keys."""

    async def run(self, exchange: Exchange, work: Work) -> HTTPReply:
        """Do work once for each key.

        It is called in a task that outlives the request, and ends when the work has ended. A reply that is
        ``kept`` is stored, any other one, and an error, frees the key. The scope of a key is the principal, the
        route (``exchange.route.name``) and the key; the fingerprint is made of the method, the path, the query
        and ``exchange.body``.

        Args:
            exchange: The request; the key is one of its headers.
            work: Does what is asked for. It gets the key, or None where there is none.

        Raises:
            Problem: 400 if the key is malformed, or is required and missing; 409 if one with this key is
                running; 422 if the key belongs to other content; 503 if no more keys can be kept.
        """
        ...


class JobMaker(Protocol):
    """What makes jobs of requests, and answers for them."""

    async def make(
        self,
        exchange: Exchange,
        collection: Collection,
        operations: Sequence[Operation],
        options: BatchOptions,
        key: str | None,
        *,
        webhook: WebhookTarget | None = None,
    ) -> HTTPReply:
        """Make a job of a batch of creates, inside of `Exchange.once`.

        Everything is decided before: that it is to be a job, how many items it may have, which of them
        fit, and with ``mode: reject`` that all do.

        Args:
            exchange: The request: its principal owns the job, its headers tell whether to wait for its end.
            collection: Has the queue.
            operations: The items in their order; those with an ``error`` do not fit.
            options: ``ordered``, ``stop_on_error`` and ``mode`` count.
            key: The Idempotency-Key, or None.
            webhook: Where its end is to be told, if it is.

        Returns:
            202 with ``Location``, or 200 or 207 if the client wanted to wait and it has ended; `HTTPReply.job`
            says which job it is.

        Raises:
            Problem: 429 if its owner has too many; 503 if the queue is full.
        """
        ...

    async def state(self, exchange: Exchange, collection: str, identifier: str) -> HTTPReply:
        """Answer for a job that was made before, as it is now: for who sends a key again.

        Raises:
            Problem: 404 if it is gone.
        """
        ...

    def routes(self) -> Iterable[Route]:
        """Return the routes of jobs, imports and exports, for the collections that there are now."""
        ...


@dataclass(slots=True)
class APIParts:
    """What the API is made of.

    Attributes:
        settings: The API's settings.
        collections: The collections by their names.
        detached: Work that outlives its request.
        buckets: What each principal may still send; None without ``rate``.
        idempotency: Remembers answers under keys; None with ``idempotency="off"``.
        jobs: Makes jobs; None where no collection has a queue.
        atomic: Runs atomic batches.
        closing: True once the API is being closed: new work is refused.
    """

    settings: APISettings
    atomic: Batcher[Any, Any]
    collections: dict[str, Collection] = field(default_factory=dict)
    detached: Detached = field(default_factory=Detached)
    buckets: Buckets | None = None
    idempotency: KeyStore | None = None
    jobs: JobMaker | None = None
    closing: bool = False
