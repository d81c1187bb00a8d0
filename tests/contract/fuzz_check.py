"""The laws: what must be true of every program's record, whatever was drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fuzz_close import LAWS_OF_THE_END
from fuzz_hold import LAWS_OF_HOLDS
from fuzz_order import LAWS_OF_ORDER
from fuzz_record import EPSILON, CallbackError, Crash, well_after
from fuzz_wait import LAWS_OF_WAITING

from microbatch import (
    BatcherClosed,
    BatcherFull,
    HandlerCrashed,
    HandlerStuck,
    HandlerTimeout,
    ItemTooHeavy,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fuzz_record import Call, Life, Record


def problems(record: Record) -> list[str]:
    """Return what is wrong, each line with its law's name in front; empty if all is well."""
    if record.problems and record.problems[-1].startswith("run:"):
        return record.problems  # it did not come to its end
    return record.problems + [line for law in LAWS for line in law(record)]


# --- how submissions end ----------------------------------------------------------------------------------------


def ends_once(record: Record) -> Iterator[str]:
    for life in record.lives:
        if life.ends > 1:
            yield f"ends once: {life} ended {life.ends} times"
        if life.end and life.end.kind == "cancelled" and not life.cancelled:
            yield f"ends once: {life} ended by a cancellation that nobody asked for"


def right_end(record: Record) -> Iterator[str]:
    """Each ends with what the last handler call gave it, at that very moment."""
    for life in record.lives:
        end = life.end
        if life.sent is None or end is None or end.kind == "cancelled":
            continue
        if end.kind == "error" and isinstance(end.payload, REFUSALS):
            for why in wrong_refusal(record, life):
                yield f"right end: {life} got {end.payload!r}: {why}"
            continue
        if life.crowded and record.settings.reject:
            yield f"room: {life} found none, and got {end.payload!r}"
        if must_be_refused(record, life):
            yield f"right end: {life} should have been refused, got {end.payload!r}"
        fitting = [call for call, given in given_to(record, life) if given.fits(end)]
        if not fitting:
            yield f"right end: {life} got {end.payload!r}, not what a call gave it: {given_to(record, life)}"
            continue
        _call, given = given_to(record, life)[-1]
        if not record.settings.coalesce:
            if not given.fits(end):
                yield f"right end: {life} got {end.payload!r} from call {fitting[-1].number}, not the last"
            attempts = record.attempt(life, len(life.calls) - 1)
            if end.attempts not in {None, attempts}:
                yield f"right end: {life}'s report has {end.attempts} attempts, of {attempts}"
            if life.caller.kind in {"submit", "nowait"} and differ(
                given.stamp.time, end.stamp.time
            ):
                yield f"right end: {life} ended at {end.stamp.time}, its result came at {given.stamp.time}"
        crashed = end.kind == "error" and isinstance(end.payload, HandlerCrashed)
        if crashed and not isinstance(end.payload.__cause__, Crash):
            yield f"right end: {life} got {end.payload!r} from {end.payload.__cause__!r}"


REFUSALS = (BatcherClosed, BatcherFull, ItemTooHeavy, CallbackError, HandlerStuck)


def differ(given: float, ended: float) -> bool:
    return abs(ended - given) > EPSILON


def given_to(record: Record, life: Life) -> list[Any]:
    """All that handler calls gave it, or one that it may share a slot with, while it waited."""
    assert life.sent is not None
    found = []
    for one in record.group(life):
        for call in one.calls:
            given = call.of(one)
            if given and life.sent.seq < call.start.seq and before_end(given, life):
                found.append((call, given))
    return sorted(found, key=lambda pair: pair[0].number)


def before_end(given: Any, life: Life) -> bool:
    """Whether it came in time; a handler sees its timeout after its callers do."""
    if life.end is None:
        return True
    if isinstance(given.error, HandlerTimeout):
        return given.stamp.time <= life.end.stamp.time + EPSILON
    return given.stamp.seq < life.end.stamp.seq


def must_be_refused(record: Record, life: Life) -> bool:
    return record.refuses(life.item) or record.too_heavy(life.item)


def wrong_refusal(record: Record, life: Life) -> Iterator[str]:
    """Why it should not have been refused like this."""
    assert life.end is not None
    error = life.end.payload
    if isinstance(error, BatcherClosed):
        yield from wrong_closed(record, life, error)
        return
    if isinstance(error, HandlerStuck):
        if stuck(record, life.end.stamp.time) <= 8:
            yield "no 9 calls are stuck"
        return
    if life.calls:
        yield "a handler had it"
    if isinstance(error, BatcherFull):
        yield from wrong_full(record, life, error)
    if isinstance(error, ItemTooHeavy) and not record.too_heavy(life.item):
        yield "it is not"
    if isinstance(error, CallbackError) and not record.refuses(life.item):
        yield "no callback raised"


def wrong_full(record: Record, life: Life, error: BatcherFull) -> Iterator[str]:
    assert life.sent is not None
    assert life.end is not None
    if not record.bounded():
        yield "there is no limit"
    if not record.settings.reject and life.caller.kind not in {"nowait", "held", "dropped"}:
        yield "it should wait"
    if life.certain and not record.settings.coalesce and not well_after(life.sent, life.end.stamp):
        yield "there was room"
    if life.limits and error.limit not in life.limits:
        yield f"the limit is {life.limits}"


def stuck(record: Record, time: float) -> int:
    """How many calls went on after their handler_timeout."""
    return sum(
        call.gave_up is not None
        and call.gave_up.time <= time + EPSILON
        and (call.end is None or call.end.time >= time - EPSILON)
        for call in record.calls
    )


def wrong_closed(record: Record, life: Life, error: BatcherClosed) -> Iterator[str]:
    close = record.close
    assert life.sent is not None
    assert life.end is not None
    if close is None:
        yield "nobody closed"
        return
    if not record.settings.coalesce:
        attempts = record.attempt(life, len(life.calls)) - 1
        if error.started != bool(attempts):
            yield f"started is {error.started}, it had {attempts} attempts"
        if life.end.attempts not in {None, attempts}:
            yield f"{life.end.attempts} attempts, of {attempts}"
    cut, time, kind = close.cut(), life.end.stamp.time, life.caller.kind
    if life.sent.seq > close.began.seq or kind == "held":  # those are awaited in the end
        return
    if cut is not None and time >= cut - EPSILON:
        if time > cut + EPSILON:
            yield "it ended late"
    elif life.calls or life.certain:
        yield "it had to be drained"
    elif kind not in {"many", "report"} and differ(close.began.time, time):
        yield "who waits for room ends at once"


# --- batches ----------------------------------------------------------------------------------------------------


def batches(record: Record) -> Iterator[str]:
    settings = record.settings
    for call in record.calls:
        items = [life.item for life in call.lives]
        weight, name = sum(item.weight for item in items), f"call {call.number}"
        if not 1 <= len(items) <= settings.size or call.info.get("size") != len(items):
            yield f"batch: {name} has {len(items)} items, max_batch_size is {settings.size}"
        if settings.batch_weight is not None and weight > settings.batch_weight + EPSILON:
            yield f"batch: {name} weighs {weight}"
        if {record.part(item) for item in items} != {call.info.get("partition")}:
            yield f"batch: {name} mixes partitions"
        if len(set(items)) != len(items):
            yield f"batch: {name} has an item twice"
        shared = [record.shared(item) for item in items]
        if settings.coalesce and not settings.attempts and len(set(shared)) != len(shared):
            yield f"coalesce: {name} has a key twice"
        attempts = [record.attempt(life, life.calls.index(call)) for life in call.lives]
        if call.info.get("attempts") != attempts:
            yield f"batch: {name} is told attempts {call.info.get('attempts')}, not {attempts}"
        if call.end is None:
            yield f"batch: {name} never ended"


def unseen(record: Record) -> Iterator[str]:
    """No handler sees an item that was withdrawn, refused or never sent."""
    for life in record.lives:
        for call in life.calls:
            if life.sent is None:
                yield f"withdrawn: call {call.number} has {life}, which nobody submitted"
            elif life.end and life.end.kind == "error" and life.end.stamp.seq < call.start.seq:
                yield f"withdrawn: call {call.number} has {life}, which had ended"
            elif life.end and life.end.kind == "value" and life.end.stamp.seq < call.start.seq:
                yield f"withdrawn: call {call.number} has {life}, which had its result"
            elif all(gone_before(one, call) for one in record.group(life)):
                yield f"withdrawn: call {call.number} has {life}, whose callers had gone"


def gone_before(life: Life, call: Call) -> bool:
    if life.sent is None or life.sent.seq > call.start.seq:
        return True
    left = life.cancelled
    if left is None:
        return life.end is not None and life.end.stamp.seq < call.start.seq
    if left.seq > call.start.seq:
        return False
    if life.doubtful:
        return well_after(max(left, life.sent), call.start)
    # A batch is cut in the turn in which its handler begins: before that an item is buffered.
    return life.withdrawn or call.start.turn > max(left, life.sent).turn


def slots(record: Record) -> Iterator[str]:
    settings = record.settings
    for call in record.calls:
        others = [one for one in record.calls[: call.number] if not freed(record, one, call)]
        if len(others) >= settings.slots:
            yield f"slots: call {call.number} begins beside {len(others)}"
        same = sum(
            record.part(one.lives[0].item) == record.part(call.lives[0].item) for one in others
        )
        if settings.part_slots is not None and same >= settings.part_slots:
            yield f"slots: call {call.number} begins beside {same} of its partition"


def freed(record: Record, one: Call, later: Call) -> bool:
    """Whether a call may have given up its slot when a later one began."""
    over = one.over()
    timeout = record.settings.timeout
    if over and over.seq < later.start.seq:
        return True
    if timeout and later.start.time >= one.start.time + timeout - EPSILON:
        return True
    if not record.settings.abandon:
        return False
    return all(
        (life.cancelled and life.cancelled.seq < later.start.seq)
        or ((given := one.of(life)) and given.stamp.seq < later.start.seq)
        for life in one.lives
    )


def reasons(record: Record) -> Iterator[str]:
    """What a batch says it left for was there, and no batch leaves before its time."""
    settings = record.settings
    for call in record.calls:
        reason, name = call.info.get("reason"), f"call {call.number} ({call.info.get('reason')})"
        closing = record.close and record.close.began.seq < call.start.seq
        flushed = any(one.began.seq < call.start.seq for one in record.flushes)
        full = len(call.lives) == settings.size or settings.adaptive
        fine = {
            "size": full,
            "weight": settings.batch_weight is not None,
            "wait": settings.wait > 0,
            "idle": settings.wait == 0 or record.bounded(),  # a full room brings no company
            "flush": flushed,
            "close": closing,
        }.get(reason or "", False)
        if not fine:
            yield f"reason: {name} has no such reason"
        if reason != "wait":
            continue
        sent = [life.sent.time for life in call.lives if life.sent and len(life.calls) == 1]
        # A batch has one time since when it waits: who has gone since then may have set it.
        gone = [
            life.sent.time
            for life in record.lives
            if life.sent and life.cancelled and not life.calls and life.sent.seq < call.start.seq
        ]
        oldest = call.start.time - min([*sent, *gone], default=0.0)
        if (
            len(sent) == len(call.lives)
            and oldest < settings.wait - EPSILON
            and not settings.coalesce
        ):
            yield f"reason: {name} left when its oldest item had waited {oldest}"


def contexts(record: Record) -> Iterator[str]:
    place = "host" if record.settings.entered else "empty"
    for call in record.calls:
        info, name = call.info, f"call {call.number}"
        if (info["who"], info["place"], info["mark"]) != (None, place, None):
            yield f"context: {name} runs in that of {info['who']}, {info['place']}, {info['mark']}"
        seen = info.get("contexts")
        if not call.cancelled and seen != info.get("contexts_at_end"):
            yield f"context: {name} has contexts {seen}, in the end {info.get('contexts_at_end')}"
        if (seen is not None) != record.settings.contexts:
            yield f"context: {name} has contexts {seen}"
        for life, who in zip(call.lives, seen or (), strict=False):
            if who not in {one.caller.number for one in record.group(life)}:
                yield f"context: {name} has caller {who}'s for {life} of caller {life.caller.number}"


# --- retry ------------------------------------------------------------------------------------------------------


def retries(record: Record) -> Iterator[str]:
    settings = record.settings
    for life in record.lives:
        if life.calls and record.attempt(life, len(life.calls) - 1) > max(settings.attempts, 1):
            yield f"retry: {life} was handled {len(life.calls)} times"
        for index, (before, after) in enumerate(zip(life.calls, life.calls[1:], strict=False)):
            given, attempt = before.of(life), record.attempt(life, index)
            if record.refused(given):
                continue
            if given is None or given.error is None or not record.retryable(given.error):
                yield f"retry: {life} goes again after {given}"
                continue
            due = given.stamp.time + record.delay(given.error, attempt)
            if after.start.time < due - EPSILON:
                yield f"retry: {life} goes again at {after.start.time}, due at {due}"
        if gave_up_early(record, life):
            yield f"retry: {life} failed at attempt {len(life.calls)} of {settings.attempts}"


def gave_up_early(record: Record, life: Life) -> bool:
    """Whether it failed with an error to try again after, though there was room for that."""
    settings = record.settings
    if (
        settings.coalesce
        or not record.goes_again(life)
        or life.cancelled
        or settings.room_weight is not None
        or record.refused(life.last())
    ):
        return False
    given = life.last()
    if given is None or life.end is None or not given.fits(life.end):
        return False
    if settings.room is None:
        return True
    waiting = 0
    for one in record.lives:
        waiting += any(
            (other := call.of(one)) is not None
            and record.retryable(other.error)
            and other.stamp.seq <= given.stamp.seq
            and (
                call is one.calls[-1]
                or one.calls[one.calls.index(call) + 1].start.seq > given.stamp.seq
            )
            for call in one.calls
        )
    return waiting * 2 <= settings.room


LAWS = [
    ends_once,
    right_end,
    batches,
    unseen,
    slots,
    reasons,
    contexts,
    retries,
    *LAWS_OF_HOLDS,
    *LAWS_OF_ORDER,
    *LAWS_OF_WAITING,
    *LAWS_OF_THE_END,
]
