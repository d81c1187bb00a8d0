"""One running batch: all state of one handler call."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from microbatch._pure.reason import Reason

if TYPE_CHECKING:
    from collections.abc import MutableMapping, Sequence
    from contextvars import Context

    from microbatch._loops.protocol import Handle
    from microbatch._telemetry.kinds import Kind

    from .entry import Entry
    from .waiters import Group

__all__ = ["Reason", "Run"]


class Run:
    """All state of one handler call, made when its batch is cut.

    Attributes:
        items: The items; the handler owns the list.
        waiters: Who waits for each item; None where the outcome is out already.
        reason: Why the batch left.
        size: How many items there were.
        left: How many have no outcome yet.
        entries: More about each item, where the batcher keeps more.
        scope: What cancels the handler alone, where the batcher may want to.
        attempts: Each item's attempt, where entries do not tell, or no longer.
        contexts: Each item's context, if the batcher captures them.
        keys: Each item's idempotency key, in durable mode.
        job: The job of its items, in durable mode, if they are all of one.
        item_ids: The ids that the clients gave to the items of jobs, in durable mode.
        lane: Whose batch it is, where there are partitions.
        weight: What its items weigh together, in units.
        gone: How many of the callers still waited for have gone.
        threads: 1 while a worker thread is busy with it.
        started: When it was cut, by the loop's clock.
        early: True once a single item got its outcome.
        uniform: True if all waiters are of one type.
        group: Whose members all its waiters are, as long as nobody looked at one.
        first: The first one's index there.
        ended: True once every item has its outcome.
        cancelled: True once the handler was told to stop.
        decided: True once the rest of its items get their outcomes.
        promised: What other threads resolved items with, in a tuple, until the loop has had a turn.
        teaches: False once there is nothing for an ``AdaptiveSize`` to learn from it.
        outer: The run that this one runs inside of.
        owner: The batcher.
        slot: Where it runs; None once the handler has come back.
        timer: Rings when ``handler_timeout`` has passed.
        since: When its oldest item came, by the loop's clock, or a little before.
        record: What telemetry keeps of it.
        error: What the call as a whole failed with.
        errors: How many items failed, by kind; None without any.
        fallen: Who waited for those: kept until its end is told of, see `Books.close`.
        retried: The same for those that are sent again.
        held: How many were refused because the backend said "not now", and go again.
        origins: In durable mode the trace context and id of each item.
        era: How many holds its partition had when it began.
        probing: True if it is the probe of a partition whose backend took nothing.
        began_hold: True if its partition is held for what it was refused.
        spent: True if there were too many refusals in a row, so that its refused items fail.
    """

    # Defaults stand on the class: a run of one item is made as often as an item.
    entries: list[Entry] | None = None
    lane: Any = None
    weight: int = 0
    gone: int = 0
    threads: int = 0
    started: float = 0.0
    early: bool = False
    uniform: bool = False
    group: Group | None = None
    first: int = 0
    ended: bool = False
    cancelled: bool = False
    teaches: bool = True
    decided: bool = False
    promised: MutableMapping[int, tuple[Any]] = MappingProxyType({})  # type: ignore[assignment]
    outer: Run | None = None
    owner: Any = None
    slot: Any = None
    timer: Handle | None = None
    scope: Any = None
    attempts: Sequence[int] | None = None
    contexts: Sequence[Context | None] | None = None
    keys: Sequence[str | None] | None = None
    job: str | None = None
    item_ids: Sequence[str | None] | None = None
    since: float = 0.0
    record: Any = None
    error: Kind | None = None
    errors: dict[Kind, int] | None = None
    fallen: list[Any] | None = None
    retried: dict[Kind, int] | None = None
    held: int = 0
    origins: Sequence[tuple[bytes | None, int]] | None = None
    era: int = 0
    probing: bool = False
    began_hold: bool = False
    spent: bool = False

    def __init__(self, items: list[Any], waiters: list[Any], reason: Reason) -> None:
        self.items: list[Any] = items
        self.waiters: list[Any] = waiters
        self.reason: Reason = reason
        self.size: int = len(items)
        self.left: int = self.size
