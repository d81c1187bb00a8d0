"""The laws of flush and close, and of what is left: counts, tasks, log lines."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from fuzz_hold import refusals
from fuzz_record import EPSILON, TURNS, well_after

from microbatch import BatcherClosed, HandlerStuck, HandlerTimeout, Skipped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fuzz_record import Call, Close, Life, Record, Stamp


def flushes(record: Record) -> Iterator[str]:
    for number, flush in enumerate(record.flushes):
        if flush.done is None:
            yield f"flush: {number} never returned"
        elif flush.error is not None:
            if not (isinstance(flush.error, BatcherClosed) and record.close):
                yield f"flush: {number} raised {flush.error!r}"
        elif not flush.cancelled:
            for life in record.lives:
                if surely_buffered(life, flush) and not resolved(
                    record, life, flush.done.seq, flush.done.time
                ):
                    yield f"flush: {number} returned before {life} was resolved"


def surely_buffered(life: Life, flush: Any) -> bool:
    began = flush.began
    if not life.sent or life.sent.seq > began.seq or not (life.certain or life.accepted):
        return False
    if life.cancelled or (life.end and life.end.stamp.seq < began.seq):
        return False
    return not life.calls or well_after(began, life.calls[0].start)


def resolved(record: Record, life: Life, seq: int, time: float) -> bool:
    if record.settings.coalesce or (life.end and life.end.stamp.seq < seq):
        return True
    close = record.close
    if close and (cut := close.cut()) is not None and cut <= time + EPSILON:
        return True
    given = life.last()
    if given is not None and isinstance(given.error, HandlerTimeout):
        return given.stamp.time <= time + EPSILON  # a handler sees its timeout after its callers do
    return given is not None and given.stamp.seq < seq


def abandoned(record: Record) -> Iterator[str]:
    """With cancel_abandoned a handler is cancelled once nobody waits for it."""
    if not record.settings.abandon or record.settings.coalesce:
        return
    for call in record.calls:
        left = [left_call(call, life) for life in call.lives]
        pairs = zip(call.lives, left, strict=True)
        gone = [life for life, stamp in pairs if stamp == life.cancelled and not life.doubtful]
        if call.cancelled or call.end is None or not gone or None in left:
            continue
        if max(stamp.time for stamp in left if stamp) < call.end.time - EPSILON:
            yield f"cancellation: call {call.number} went on though all its callers had gone"


def left_call(call: Call, life: Life) -> Stamp | None:
    """When its caller had its result or had gone, whichever came first."""
    given = call.of(life)
    return min((stamp for stamp in (given and given.stamp, life.cancelled) if stamp), default=None)


def closing(record: Record) -> Iterator[str]:
    close = record.close
    if close is None or close.done is None:
        return  # noted by the run
    if close.error is not None:
        yield f"closing: it raised {close.error!r}"
    cut = close.cut()
    for call in record.calls:
        if cut is not None and call.start.time > cut + EPSILON:
            yield f"closing: call {call.number} began after the end"
        if (
            cut is None
            and call.end
            and call.gave_up is None
            and call.end.seq > close.done.seq
            and not gone(call)
        ):
            yield f"closing: it returned before call {call.number}"
    if cut is not None and close.done.time > max(cut, close.began.time) + 5 + EPSILON:
        yield f"closing: it returned at {close.done.time}, what was left ended at {cut}"
    yield from after_close(record, close)


def gone(call: Call) -> bool:
    return bool(call.info.get("abandoned"))


def after_close(record: Record, close: Close) -> Iterator[str]:
    assert close.done is not None
    for life in record.lives:
        late_comer = (
            life.sent and life.sent.seq > close.began.seq and life.sent.turn > close.began.turn + 1
        )
        if late_comer and life.calls:
            yield f"closing: {life} came after it, and call {life.calls[0].number} has it"
        if late_comer and life.end and life.end.kind == "value":
            yield f"closing: {life} came after it and got {life.end.payload!r}"
        if (
            life.end
            and life.end.stamp.turn > close.done.turn + TURNS
            and life.caller.kind != "held"
        ) and not late_comer:
            yield f"closing: {life} ended after it had returned"


def totals(record: Record) -> Iterator[str]:
    stats = record.final
    if stats is None:
        return
    left = (stats.pending, stats.buffered, stats.in_flight, stats.in_backoff, stats.waiting)
    if any(left) or stats.oldest_in_flight is not None:
        yield f"stats: something is left: {stats}"
    seen = Counter(call.info.get("reason") for call in record.calls)
    if (stats.batches != len(record.calls) or dict(stats.reasons) != dict(seen)) and not any(
        life.end and isinstance(life.end.payload, HandlerStuck) for life in record.lives
    ):
        yield f"stats: {len(record.calls)} calls, {dict(seen)}: {stats}"
    if record.settings.coalesce or any(call.cancelled for call in record.calls):
        return
    if any(life.doubtful for life in record.lives):
        return
    dropped = any(life.caller.dropped or life.caller.kind == "held" for life in record.lives)
    if dropped and record.settings.attempts and (record.bounded() or refusals(record)):
        return  # where back-off holds half the room, or holds are over, an item fails, and nobody tells
    cut = record.close.cut() if record.close else None
    if cut is not None and any(
        call.end and abs(call.end.time - cut) < EPSILON for call in record.calls
    ):
        return  # two things at one moment
    handled = [life for life in record.lives if life.calls and life.last()]
    ended = [life for life in handled if not left_in_backoff(record, life)]
    errors = [life.last().error for life in ended]  # type: ignore[union-attr]
    failed = sum(error is not None and not isinstance(error, Skipped) for error in errors)
    if (stats.items, stats.failed) != (len(ended), failed):
        yield f"stats: {len(ended)} items were handled, {failed} failed: {stats}"


def left_in_backoff(record: Record, life: Life) -> bool:
    """Whether its caller, or the close, ended it before its next attempt."""
    given = life.last()
    assert given is not None
    left = life.cancelled
    if left and (left.seq < given.stamp.seq or life.caller.expired(given.stamp.time)):
        return False  # nobody waited for another attempt
    return record.goes_again(life) and not (life.end and given.fits(life.end))


def logs(record: Record) -> Iterator[str]:
    """A failure that nobody awaited is told once, and nothing else is complained of."""
    told = len(record.unawaited)
    for line in record.log:
        if line.endswith("exception of a Pending was never retrieved"):
            told += 1
        elif "items were pending" not in line:
            yield f"log: {line}"
    dropped = [life for life in record.lives if life.caller.dropped and life.accepted]
    failed = [
        life
        for life in dropped
        if (given := life.last()) and given.error and not record.goes_again(life)
    ]
    least = 0 if record.settings.coalesce else len(failed)
    most = len(dropped) + sum(caller.silenced for caller in record.callers)
    if not least <= told <= most:
        yield f"log: {told} failures that nobody awaited were told, there were {least} to {most}"


LAWS_OF_THE_END = [flushes, abandoned, closing, totals, logs]
