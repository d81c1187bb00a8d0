"""Exact counts of what a batcher holds and has done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from microbatch._pure.markup import table

if TYPE_CHECKING:
    from .engine import Engine


@dataclass(frozen=True, slots=True)
class BatcherStats:
    """What a batcher holds and has done, exact at the moment of the call.

    ``pending == buffered + in_flight + in_backoff``.

    Attributes:
        pending: Items accepted and not yet resolved.
        buffered: Items that wait for a batch.
        in_flight: Items in handler calls, without an outcome yet.
        waiting: Callers that wait for room.
        in_backoff: Items that failed and wait for their next attempt.
        held: Seconds until a backend that took nothing is asked again (``RateLimited``), of all partitions
            that wait the longest; 0 if none does. Their items are among the buffered ones.
        batches: Handler calls that have ended.
        items: Items whose handling has ended.
        failed: Those of them that failed; skipped ones are not counted here.
        reasons: Handler calls by the reason why their batch left.
        oldest_wait: Seconds that an item waited for its batch to leave: the longest of the last 16
            batches; None before the first. Like ``BatchInfo.oldest_wait``.
        oldest_in_flight: Seconds that the oldest running handler call has taken; None if none runs.
        stuck_threads: Worker threads that still run a handler call which was given up.
    """

    pending: int
    buffered: int
    in_flight: int
    waiting: int
    in_backoff: int
    held: float
    batches: int
    items: int
    failed: int
    reasons: dict[str, int]
    oldest_wait: float | None
    oldest_in_flight: float | None
    stuck_threads: int

    def _repr_html_(self) -> str:
        """Return what notebooks show: each figure, with seconds in milliseconds."""
        rows: list[tuple[str, object]] = []
        for name in self.__slots__:
            value = getattr(self, name)
            if name in {"held", "oldest_wait", "oldest_in_flight"}:
                value = "-" if value is None else f"{value * 1e3:,.1f} ms"
            elif name == "reasons":
                value = ", ".join(f"{reason}: {count:,}" for reason, count in value.items()) or "-"
            rows.append((name, value))
        return table("batcher", ("figure", "value"), rows)


def stats_of(engine: Engine) -> BatcherStats:
    """Count; in another thread than the loop's, callers that went a moment ago may still be counted."""
    loop, tally, dispatcher = engine.serving.loop, engine.tally, engine.dispatcher
    oldest: float | None = None
    if loop is not None:
        if loop.is_current():
            engine.sweep()
        elif loop.has_ended():
            engine.serving.lose_loop()
        runs = [slot.run for slot in list(dispatcher.slots.held)]
        started = [run.started for run in runs if run is not None and not run.ended]
        if started:
            oldest = max(0.0, loop.now() - min(started))
    buffered = engine.room.buffered()
    return BatcherStats(
        pending=buffered + tally.flying + tally.backing_off,
        buffered=buffered,
        in_flight=tally.flying,
        waiting=len(engine.room.line),
        in_backoff=tally.backing_off,
        held=engine.room.held(),
        batches=sum(tally.reasons.values()),
        items=tally.items,
        failed=tally.failed,
        reasons=dict(tally.reasons),
        oldest_wait=max(0.0, *tally.waits) if tally.waits else None,
        oldest_in_flight=oldest,
        stuck_threads=dispatcher.giving_up.threads(),
    )
