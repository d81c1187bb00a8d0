"""The laws of ``stats()`` at any moment: its counts lie between what the reference knows for certain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fuzz_record import EPSILON, well_after

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fuzz_record import Record, Stamp


def looked(record: Record, stats: Any, now: Stamp) -> Iterator[str]:
    """Return what is wrong with these counts."""
    counts = (stats.buffered, stats.in_flight, stats.in_backoff, stats.waiting)
    if stats.pending != sum(counts[:3]) or min(counts) < 0:
        yield f"stats: they do not add up: {stats}"
    limit = record.settings.room
    if limit is not None and stats.pending > limit:
        yield f"room: {stats.pending} pending, max_pending is {limit}"
    if limit is not None and stats.in_backoff * 2 > max(limit, 2):
        yield f"retry: {stats.in_backoff} in back-off, max_pending is {limit}"
    if record.settings.reject and stats.waiting:
        yield f"room: who finds none is rejected: {stats}"
    if record.close:
        return
    yield from bounds(record, stats, now)
    running = record.holding(now)
    oldest = max((now.time - call.start.time for call in running), default=None)
    if oldest is not None and (stats.oldest_in_flight or 0.0) < oldest - EPSILON:
        yield f"stats: a handler call runs for {oldest}: {stats}"
    flying = sum(call.of(life) is None for call in running for life in call.lives)
    if stats.in_flight < flying:
        yield f"stats: {flying} items are in flight: {stats}"
    backing = sum(surely_in_backoff(record, life, now) for life in record.lives)
    if stats.in_backoff < backing:
        yield f"stats: {backing} items are in back-off: {stats}"


def bounds(record: Record, stats: Any, now: Stamp) -> Iterator[str]:
    if record.settings.coalesce:
        return  # sharers take no room
    least, most = record.least_pending(now)[0], record.most_pending(now)[0]
    if not least <= stats.pending <= most:
        yield f"stats: pending is not from {least} to {most}: {stats}"
    if stats.pending + stats.waiting > most:
        yield f"stats: more wait or are pending than {most}: {stats}"


def surely_in_backoff(record: Record, life: Any, now: Stamp) -> bool:
    due, given = record.due(life), life.last()
    if due is None or due <= now.time + EPSILON or life.cancelled or life.end:
        return False
    if record.bounded() and (
        life.caller.dropped or life.caller.kind in {"held", "dropped", "many", "report"}
    ):
        return False  # it may have failed at once, and nobody has been told
    return well_after(given.stamp, now) and not life.caller.expired(now.time)
