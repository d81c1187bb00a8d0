"""What the fuzzer saw, and the reference: what must be pending, given what callers did and the handler gave.

Written from the promises alone. Nothing here knows how a batcher does it. Where a promise leaves a few turns of the
event loop open (a batch is cut a moment before its handler begins), the reference knows two bounds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import microbatch
from microbatch import ItemError, RateLimited, Skipped

if TYPE_CHECKING:
    from fuzz_program import Item, Program

#: Turns that may pass between a cause and what it brings about: the cut, the handler's first line, a caller's end.
TURNS = 4
EPSILON = 1e-6


class Boom(Exception):
    """Raised by the handler for a whole batch."""


class Crash(BaseException):
    """What a handler must not raise."""


class CallbackError(Exception):
    """Raised by weigh, partition or coalesce."""


class Hollow(ItemError):
    """An ItemError whose author forgot super().__init__()."""

    def __init__(self, *tag: Any) -> None: ...


#: Made by the batcher, so their arguments are its own matter.
OURS = (
    microbatch.HandlerTimeout,
    microbatch.HandlerCrashed,
    microbatch.ResultCountError,
    TypeError,
)


def blank(kind: type[BaseException]) -> BaseException:
    """Return an exception that stands for any of its class."""
    return kind.__new__(kind)


class Stamp(NamedTuple):
    """When: the number of the event, the turn of the event loop, its clock."""

    seq: int
    turn: int
    time: float


def well_after(first: Stamp, then: Stamp) -> bool:
    """Whether what the first brings about is over by then."""
    return then.time > first.time + EPSILON or then.turn > first.turn + TURNS


class Given(NamedTuple):
    """What a handler call gave an item: a value, or an exception."""

    value: Any
    error: BaseException | None
    stamp: Stamp

    def fits(self, end: End) -> bool:
        if self.error is None:
            return end.kind == "value" and end.payload == self.value
        if end.kind != "error" or type(end.payload) is not type(self.error):
            return False
        return isinstance(self.error, OURS) or end.payload.args == self.error.args


class End(NamedTuple):
    """How a submission ended for its caller: "value", "error" or "cancelled"."""

    kind: str
    payload: Any
    stamp: Stamp
    attempts: int | None = None  # as the report says


class Call:
    """One handler call."""

    def __init__(self, number: int, lives: list[Life], start: Stamp) -> None:
        self.number = number
        self.lives = lives
        self.start = start
        self.given: dict[int, Given] = {}
        self.cancelled: Stamp | None = None
        self.gave_up: Stamp | None = None  # its time was over, as handler_timeout says
        self.end: Stamp | None = None
        self.info: dict[str, Any] = {}

    def of(self, life: Life) -> Given | None:
        return self.given.get(self.lives.index(life))

    def over(self) -> Stamp | None:
        """When it may have given up its slot at the earliest."""
        return min((one for one in (self.end, self.cancelled, self.gave_up) if one), default=None)


class Life:
    """One submission from its caller's call to its end."""

    def __init__(self, item: Item, caller: Caller) -> None:
        self.item = item
        self.caller = caller
        self.priority = item.priority
        self.sent: Stamp | None = None
        self.certain = False  # it had room at once, so it was buffered when it came
        self.accepted = False  # submit_nowait returned
        self.cancelled: Stamp | None = None
        self.limits: set[str] | None = None  # those that may have been reached when it came
        self.inner = False  # a callback submitted it while the batcher was asking about another
        self.crowded = False  # for certain there was no room for it when it came
        self.doubtful = False  # cancelled before its task began
        self.withdrawn = False  # for certain: cancelled when no batch can just have been cut
        self.end: End | None = None
        self.ends = 0
        self.calls: list[Call] = []

    def __repr__(self) -> str:
        return f"item {self.item.id}"

    def last(self) -> Given | None:
        return self.calls[-1].of(self) if self.calls else None


class Caller:
    def __init__(self, number: int, kind: str) -> None:
        self.number = number
        self.kind = kind
        self.lives: list[Life] = []
        self.begun = False
        self.cancel: Any = None
        self.pending: Any = None
        self.cancelled: Stamp | None = None
        self.done = False
        self.dropped = kind == "dropped"
        self.silenced = (
            False  # cancelled when it had failed already: asyncio does not tell of it, trio does
        )
        self.expires: float | None = None  # when its own timeout cancels it, on the clock

    def expired(self, time: float) -> bool:
        return self.expires is not None and time >= self.expires - EPSILON


class Flush:
    def __init__(self, began: Stamp) -> None:
        self.began = began
        self.done: Stamp | None = None
        self.error: BaseException | None = None
        self.cancelled = False


class Close:
    """The way that the batcher was closed: when it began, what cut it short, when it returned."""

    def __init__(self, began: Stamp, deadline: float | None) -> None:
        self.began = began
        self.deadline = deadline  # on the clock
        self.at_once: Stamp | None = None
        self.done: Stamp | None = None
        self.error: BaseException | None = None

    def cut(self) -> float | None:
        """When whatever is left ends, on the clock."""
        times = [self.at_once.time] if self.at_once else []
        return min([*times, self.deadline] if self.deadline is not None else times, default=None)


class Record:
    """All that callers and handlers saw of one program."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.settings = program.settings
        self.lives: list[Life] = []
        self.callers: list[Caller] = []
        self.calls: list[Call] = []
        self.flushes: list[Flush] = []
        self.close: Close | None = None
        self.problems: list[str] = []
        self.final: Any = None
        self.log: list[str] = []
        self.unawaited: list[
            str
        ] = []  # failures that nobody awaited, as the event loop or the log tells
        self.crawled: set[Item] = set()
        self.seq = 0

    # --- the reference -----------------------------------------------------------------------------------------

    def retryable(self, error: BaseException | None) -> bool:
        settings = self.settings
        if not settings.attempts or error is None:
            return False
        if isinstance(error, RateLimited):
            return False  # it is held instead
        if isinstance(error, microbatch.HandlerTimeout):
            return settings.retry_timeouts
        if isinstance(error, Hollow):
            return False
        if isinstance(error, ItemError) and error.retryable is not None:
            return error.retryable
        return isinstance(error, ConnectionError)

    def delay(self, error: BaseException, attempt: int) -> float:
        after = getattr(error, "retry_after", None)
        settings = self.settings
        return min(
            settings.maximum, settings.initial * 2.0 ** (attempt - 1) if after is None else after
        )

    def refused(self, given: Given | None) -> bool:
        """Whether a call gave it that the backend takes nothing now: then it is no attempt, and waits."""
        busy = given is not None and isinstance(given.error, RateLimited)
        return busy and self.settings.attempts > 0

    def attempt(self, life: Life, index: int) -> int:
        """Which attempt its call of that index is; behind the last one the next."""
        return 1 + sum(not self.refused(call.of(life)) for call in life.calls[:index])

    def goes_again(self, life: Life) -> bool:
        """Whether its last handler call is not its last, as far as Retry says; a refused one may be."""
        given = life.last()
        if self.refused(given):
            return True
        return (
            given is not None
            and self.retryable(given.error)
            and self.attempt(life, len(life.calls) - 1) < self.settings.attempts
        )

    def due(self, life: Life) -> float | None:
        given = life.last()
        if given is None or given.error is None or not self.goes_again(life):
            return None
        if self.refused(given):
            return None
        return given.stamp.time + self.delay(given.error, self.attempt(life, len(life.calls) - 1))

    def maybe_pending(self, life: Life, now: Stamp) -> bool:
        """Whether it may take room, or wait for it."""
        if life.sent is None or (life.end and life.end.kind != "cancelled"):
            return False
        if life.calls:
            call, given = life.calls[-1], life.last()
            left = given.stamp if given else call.gave_up or call.end
            if left is None:
                return True
            again = self.goes_again(life) or (given is None and self.settings.attempts > 0)
            if again and not life.cancelled:
                return True
            return not well_after(max(left, life.cancelled or left), now)
        if life.cancelled:
            return not life.withdrawn and not well_after(max(life.cancelled, life.sent), now)
        return True

    def surely_pending(self, life: Life, now: Stamp) -> bool:
        if life.sent is None or life.end or not (life.certain or life.accepted or life.calls):
            return False
        if life.caller.expired(now.time):
            return False
        if life.calls:
            call = life.calls[-1]
            gone = life.cancelled and self.settings.abandon
            return not (life.last() or self.may_be_over(call, now) or gone)
        return not life.cancelled

    def most_pending(self, now: Stamp) -> tuple[int, float]:
        lives = [life for life in self.lives if self.maybe_pending(life, now)]
        return len(lives), sum(life.item.weight for life in lives)

    def least_pending(self, now: Stamp) -> tuple[int, float]:
        lives = [life for life in self.lives if self.surely_pending(life, now)]
        return len(lives), sum(life.item.weight for life in lives)

    def reached(self, life: Life, now: Stamp) -> set[str]:
        """Which limits may leave no room for it; none if there is room, whatever the reference does not know."""
        count, weight = self.most_pending(now)
        limits = {
            "max_pending": (self.settings.room, count + 1),
            "max_pending_weight": (self.settings.room_weight, weight + life.item.weight - EPSILON),
        }
        return {
            name for name, (limit, much) in limits.items() if limit is not None and much > limit
        }

    def may_be_over(self, call: Call, now: Stamp) -> bool:
        """Whether it has ended, was cancelled, or should have been by now."""
        timeout = self.settings.timeout
        late = timeout is not None and now.time >= call.start.time + timeout - EPSILON
        return late or call.over() is not None

    def holding(self, now: Stamp) -> list[Call]:
        """The calls that surely hold a slot."""
        return [
            call
            for call in self.calls
            if not self.may_be_over(call, now)
            and not (
                self.settings.abandon
                and all(self.is_gone(one, call, now.time) for one in call.lives)
            )
        ]

    def all_slots_taken(self, now: Stamp) -> bool:
        return len(self.holding(now)) >= self.settings.slots

    def is_gone(self, life: Life, call: Call, time: float) -> bool:
        """Whether nobody waits for it in this call any more."""
        if call.of(life):
            return True
        group = self.group(life)
        begun = [
            other.start.seq for one in group for other in one.calls if other.number < call.number
        ]
        if len(group) > 1:  # what a Pending that nobody awaits has got is not seen
            group = [
                one
                for one in group
                if one.caller.kind not in {"held", "dropped"} and not one.caller.dropped
            ]
        waiting = [  # the others share a slot of an earlier call
            one
            for one in group
            if one.sent
            and max(begun, default=0) < one.sent.seq < call.start.seq
            and (call in one.calls or (not one.calls and (one.certain or one.accepted)))
        ]
        return all(one.cancelled or one.end or one.caller.expired(time) for one in waiting)

    def too_heavy(self, item: Item) -> bool:
        limits = (self.settings.batch_weight, self.settings.room_weight)
        return any(limit is not None and item.weight > limit for limit in limits)

    def bounded(self) -> bool:
        return self.settings.room is not None or self.settings.room_weight is not None

    def weighed(self) -> bool:
        return self.settings.batch_weight is not None or self.settings.room_weight is not None

    def refuses(self, item: Item) -> bool:
        """Whether a callback that is in use raises for it."""
        used = {
            "weigh": self.weighed(),
            "partition": self.settings.parts,
            "coalesce": self.settings.coalesce,
        }
        return used.get(item.bad, False)

    def group(self, life: Life) -> list[Life]:
        """Those that may share a slot with it, itself included."""
        if not self.settings.coalesce:
            return [life]
        return [one for one in self.lives if self.shared(one.item) == self.shared(life.item)]

    def shared(self, item: Item) -> Any:
        return (self.part(item), item.key)

    def part(self, item: Item) -> Any:
        return item.part if self.settings.parts else None


def made(fate: str, tag: tuple[int, int]) -> Any:
    """Return what the handler gives an item: a value that says which item and call, or an exception that does."""
    text = f"{tag[0]}/{tag[1]}"
    if fate == "ok":
        return tag
    plain = {"error": ValueError, "flaky": ConnectionError, "hollow": Hollow}.get(fate)
    if plain is not None:
        return plain(*tag)
    if fate == "skipped":
        return Skipped(text)
    if fate in {"busy", "lull"}:
        return RateLimited(text, retry_after=0.75 if fate == "busy" else None)
    retryable = {"again": True, "after": True, "never": False}.get(fate)
    error = ItemError(
        text, code="x", retryable=retryable, retry_after=0.75 if fate == "after" else None
    )
    if fate == "rubbish":
        error.code = []  # type: ignore[assignment]
    return error
