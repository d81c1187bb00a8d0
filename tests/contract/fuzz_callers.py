"""Callers: each way in, what it is cancelled by, and how its submissions end."""

from __future__ import annotations

import contextvars
from typing import TYPE_CHECKING, Any

import anyio
from fuzz_handler import WHO
from fuzz_record import EPSILON, Caller, End, Life, Record

from microbatch import BatchFailed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from fuzz_program import Item
    from fuzz_record import Stamp


class Callers(Record):
    """The half of a run that calls a batcher."""

    batcher: Any
    trio: bool
    base: contextvars.Context
    now: Callable[[], Stamp]
    start: Callable[..., Any]

    def caller(self, kind: str, items: Any) -> Caller:
        caller = Caller(len(self.callers), kind)
        caller.lives = [Life(item, caller) for item in items]
        self.callers.append(caller)
        self.lives.extend(caller.lives)
        return caller

    def context(self, caller: Caller) -> contextvars.Context:
        context = self.base.copy()
        context.run(WHO.set, caller.number)
        return context

    def send(self, life: Life) -> None:
        """Note that it goes in now, and whether there is room for it."""
        now = self.now()
        usual = not (self.refuses(life.item) or self.too_heavy(life.item) or self.close)
        reached = self.reached(life, now)
        room = self.settings.room
        if room is not None and not self.settings.coalesce and not life.item.inside:
            life.crowded = self.least_pending(now)[0] >= room
        life.certain = usual and not life.cancelled and not reached
        life.limits = None if self.waits_in_line(life) else reached
        life.sent = now

    def waits_in_line(self, life: Life) -> bool:
        """Whether it may be refused later, when other limits are reached, or may share a slot."""
        return life.caller.kind in {"many", "report"} or self.settings.coalesce

    def ended(self, life: Life, kind: str, payload: Any, attempts: int | None = None) -> None:
        life.ends += 1
        if isinstance(payload, BaseException):
            payload.__traceback__ = None  # its frames would keep a Pending that nobody awaited
        life.end = End(kind, payload, self.now(), attempts)

    async def waits(self, caller: Caller, awaitable: Awaitable[Any]) -> None:
        (life,) = caller.lives
        try:
            result = await awaitable
        except Exception as error:
            self.ended(life, "error", error)
        except BaseException:
            self.ended(life, "cancelled", None)
            raise
        else:
            self.ended(life, "value", result)
        finally:
            caller.done = True

    def do_submit(self, item: Item) -> None:
        caller = self.caller("submit", [item])

        async def submit() -> None:
            caller.begun = True
            self.send(caller.lives[0])
            await self.waits(caller, self.batcher.submit(item, priority=item.priority))

        caller.cancel = self.start(submit, self.context(caller))

    def do_timed(self, item: Item, seconds: float) -> None:
        caller = self.caller("timed", [item])

        async def submit() -> None:
            caller.begun = True
            caller.expires = self.now().time + seconds
            with anyio.move_on_after(seconds) as scope:
                self.send(caller.lives[0])
                await self.waits(caller, self.batcher.submit(item, priority=item.priority))
            if scope.cancelled_caught and not caller.cancelled:
                caller.cancelled = caller.lives[0].cancelled = self.now()

        caller.cancel = self.start(submit, self.context(caller))

    def do_nowait(self, item: Item, kind: str = "nowait") -> None:
        caller = self.caller(kind, [item])
        (life,) = caller.lives
        count, weight = self.least_pending(self.now())
        self.send(life)
        try:
            context = contextvars.copy_context()  # inside a handler, the handler's
            context.run(WHO.set, caller.number)
            pending = context.run(self.batcher.submit_nowait, item, priority=item.priority)
        except Exception as error:
            self.ended(life, "error", error)
            caller.done = True
            return
        life.accepted = True
        if not (self.settings.coalesce or self.close or item.inside):
            self.judge_room("max_pending", count + 1, self.settings.room)
            self.judge_room("max_pending_weight", weight + item.weight, self.settings.room_weight)
        if kind == "nowait":

            async def wait() -> None:
                caller.begun = True
                await self.waits(caller, pending)

            caller.cancel = self.start(wait, self.context(caller))
        elif kind == "held":
            caller.pending = pending

    def judge_room(self, name: str, much: float, limit: float | None) -> None:
        if limit is not None and much > limit + EPSILON:
            self.problems.append(
                f"room: an item was let in, with {much} pending: {name} is {limit}"
            )

    def do_held(self, item: Item) -> None:
        self.do_nowait(item, "held")

    def do_dropped(self, item: Item) -> None:
        self.do_nowait(item, "dropped")

    def await_held(self, caller: Caller) -> None:
        pending, caller.pending = caller.pending, None
        if not pending.done():
            self.problems.append(
                f"ends once: {caller.lives[0]}'s Pending is not done after the close"
            )
        caller.cancel = self.start(lambda: self.waits(caller, pending), self.context(caller))

    def do_many(self, items: Any, *, report: bool = False) -> None:
        caller = self.caller("report" if report else "many", items)
        priority = items[0].priority if items else 0
        for life in caller.lives:
            life.priority = priority

        async def submit() -> None:
            caller.begun = True
            for life in caller.lives:
                self.send(life)
            try:
                if report:
                    outcomes = await self.batcher.submit_many_report(items, priority=priority)
                else:
                    results = await self.batcher.submit_many(items, priority=priority)
                    for life, result in zip(caller.lives, results, strict=True):
                        self.ended(life, "value", result)
                    return
            except BatchFailed as error:
                outcomes = error.report
            except Exception as error:
                for life in caller.lives:
                    self.ended(life, "error", error)
                return
            except BaseException:
                for life in caller.lives:
                    self.ended(life, "cancelled", None)
                raise
            finally:
                caller.done = True
            self.judge_report(caller, outcomes)

        caller.cancel = self.start(submit, self.context(caller))

    def do_report(self, items: Any) -> None:
        self.do_many(items, report=True)

    def judge_report(self, caller: Caller, report: Any) -> None:
        for index, (life, one) in enumerate(zip(caller.lives, report, strict=True)):
            if one.index != index or one.ok != (one.error is None):
                self.problems.append(f"report: {life} is {one}, at {index}")
            kind, payload = ("value", one.value) if one.ok else ("error", one.error)
            self.ended(life, kind, payload, one.attempts)
        sums = (
            report.total,
            report.succeeded + report.failed + report.skipped,
            sum(report.errors.values()),
        )
        if sums != (len(report), len(report), report.failed + report.skipped):
            self.problems.append(f"report: its sums are {sums} of {len(report)}")

    def do_cancel(self, number: int) -> None:
        live = [
            one for one in self.callers if not one.done and not one.cancelled and not one.dropped
        ]
        if live:
            self.cancel(live[number % len(live)])

    def from_inside(self, item: Item) -> None:
        """What a callback does to the batcher that is asking it about an item."""
        (life,) = (life for life in self.lives if life.item is item)
        for one in life.caller.lives:
            one.certain = False  # from here on the reference does not know what room there is
            one.crowded, one.limits = False, None
        if item.inside == "cancel":
            self.do_cancel_all("unseen", but=life.caller)
        elif item.child is not None and item.child not in self.crawled:
            self.crawled.add(item.child)
            self.do_nowait(item.child)
            self.lives[-1].inner = True
        life.sent = self.now()  # others may have come before it

    def do_cancel_all(self, which: str, but: Caller | None = None) -> None:
        for index, caller in enumerate(self.callers):
            if caller is but:
                continue
            seen = any(life.calls for life in caller.lives)
            leads = any(call.end is None and call.lives[0].caller is caller for call in self.calls)
            odd = index % 2 == 1
            chosen = {"all": True, "odd": odd, "seen": seen, "unseen": not seen, "lead": leads}[
                which
            ]
            if chosen and not (caller.done or caller.cancelled or caller.dropped):
                self.cancel(caller)

    def cancel(self, caller: Caller) -> None:
        caller.cancelled = now = self.now()
        if caller.kind == "nowait" and not caller.begun and not self.trio:
            caller.dropped = True  # its task never begins, so nobody awaits the Pending
        full = self.all_slots_taken(now)
        for life in caller.lives:
            if life.end is None and not caller.dropped:
                life.cancelled = now
                life.doubtful = not caller.begun
                life.withdrawn = caller.begun and not life.calls and full
        if caller.kind == "held":
            (life,) = caller.lives
            done, caller.pending, pending = caller.pending.done(), None, caller.pending
            life.withdrawn = not life.calls and full
            caller.done, caller.silenced = True, done
            self.ended(life, "cancelled", None)
            if pending.cancel() == done or not pending.done():
                self.problems.append(f"cancellation: {life}'s cancel() tells the wrong")
        else:
            caller.cancel()
            caller.cancel = None  # it keeps a Pending that nobody will await
