"""The fuzzer's handlers: they do what the items of a batch say, and note all that they see and give."""

from __future__ import annotations

import contextvars
from typing import TYPE_CHECKING, Any

import anyio
from fuzz_program import Item
from fuzz_record import EPSILON, Boom, Call, Crash, Given, blank, made

from microbatch import (
    BatcherClosed,
    HandlerCrashed,
    HandlerTimeout,
    ResultCountError,
    WouldDeadlock,
    current_batch,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fuzz_run import Run

WHO: contextvars.ContextVar[Any] = contextvars.ContextVar("WHO", default=None)
PLACE: contextvars.ContextVar[Any] = contextvars.ContextVar("PLACE", default="empty")
MARK: contextvars.ContextVar[Any] = contextvars.ContextVar("MARK", default=None)


class Later:
    """An awaitable, which is no result."""

    def __await__(self) -> Any:
        yield


class Handlers:
    def __init__(self, run: Run) -> None:
        self.run = run

    def chosen(self) -> Any:
        return {"list": self.listing, "resolve": self.resolving, "generate": self.generating}[
            self.run.settings.kind
        ]

    # --- notes -------------------------------------------------------------------------------------------------

    def begin(self, items: list[Item]) -> Call:
        run, batch = self.run, current_batch()
        by_item = {life.item: life for life in run.lives}
        call = Call(len(run.calls), [by_item[item] for item in items], run.now())
        for life in call.lives:
            life.calls.append(call)
        run.calls.append(call)
        if batch is None:
            run.problems.append(f"batch: call {call.number} has no current_batch()")
        else:
            call.info = {
                "size": batch.size,
                "reason": batch.reason,
                "partition": batch.partition,
                "attempts": list(batch.attempts),
                "contexts": self.contexts(),
            }
        call.info |= {"who": WHO.get(), "place": PLACE.get(), "mark": MARK.get()}
        MARK.set(call.number)
        return call

    def contexts(self) -> Any:
        batch = current_batch()
        if batch is None or batch.contexts is None:
            return None
        return [None if context is None else context.get(WHO) for context in batch.contexts]

    def note(self, call: Call, index: int, value: Any, error: BaseException | None = None) -> None:
        if call.cancelled is None and index not in call.given:
            call.given[index] = Given(value, error, self.run.now())

    def give(self, call: Call, index: int) -> Any:
        life = call.lives[index]
        attempt = len(life.calls)
        fate = life.item.fates[min(attempt, len(life.item.fates)) - 1]
        result = made(fate, (life.item.id, call.number))
        error = result if isinstance(result, Exception) else None
        self.note(call, index, None if error else result, error)
        return result

    def all(self, call: Call, value: Any, error: BaseException | None = None) -> None:
        """Note what all get that have nothing yet."""
        for index in range(len(call.lives)):
            self.note(call, index, value, error)

    def end(self, call: Call) -> None:
        call.info["contexts_at_end"] = self.contexts()
        call.end = self.run.now()

    # --- behaviour ---------------------------------------------------------------------------------------------

    async def sleep(self, call: Call, seconds: float) -> None:
        """Sleep, and note it if that is cancelled; one that is stubborn then stays for a while."""
        try:
            await anyio.sleep(seconds)
        except BaseException:
            self.cut(call)
            whim = call.lives[0].item.whim
            if whim == "cleaning":
                await self.stay(1.0)
            if whim == "stubborn":
                await self.stay(40.0)
                return
            raise

    async def stay(self, seconds: float) -> None:
        end = anyio.current_time() + seconds
        while (left := end - anyio.current_time()) > EPSILON:
            try:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(left)
            except BaseException:  # cancelled once more, and no more impressed
                continue

    def cut(self, call: Call) -> None:
        """Cancelled: what those get that have nothing yet is the reason's matter."""
        if call.cancelled:
            return  # once more: it is stubborn
        now = self.run.now()
        timeout, closing = self.run.settings.timeout, self.run.close
        if timeout and abs(now.time - call.start.time - timeout) < EPSILON:
            self.all(call, None, blank(HandlerTimeout))
            call.gave_up = now
        elif closing and (cut := closing.cut()) is not None and now.time >= cut - EPSILON:
            call.info["closed"] = True
        else:
            call.info["abandoned"] = True
            alive = [one for one in call.lives if not self.run.is_gone(one, call, now.time)]
            if alive or not self.run.settings.abandon:
                self.run.problems.append(
                    f"cancellation: call {call.number} was cancelled, {alive} wait for it"
                )
        call.cancelled = now

    async def work(self, call: Call) -> None:
        item = call.lives[0].item
        timed = self.run.settings.timeout is not None
        seconds = (
            {"hang": 900.0, "stubborn": 900.0}.get(item.whim, item.seconds)
            if timed
            else item.seconds
        )
        if item.whim == "crawl" and item.child is not None and item.child not in self.run.crawled:
            self.run.crawled.add(item.child)
            self.run.do_nowait(item.child)
        if item.whim == "deadlock":
            await self.wait_on_itself()
        await self.sleep(call, seconds)

    async def wait_on_itself(self) -> None:
        batcher = self.run.batcher
        for name, arguments in (
            ("submit", [Item(-1)]),
            ("submit_many", [[Item(-1)]]),
            ("flush", []),
            ("aclose", []),
        ):
            try:
                await getattr(batcher, name)(*arguments)
            except WouldDeadlock:
                continue
            except BatcherClosed:
                if self.run.close:
                    continue
            self.run.problems.append(f"deadlock: {name}() inside a handler was let in")

    def misbehave(self, call: Call) -> Any:
        """Do to the batch what its first item says; return None if that is nothing."""
        whim = call.lives[0].item.whim
        tag = (call.lives[0].item.id, call.number)
        if whim in {"raise", "flaky", "busy", "base"}:
            kind = {"raise": Boom, "flaky": ConnectionError, "base": Crash}.get(whim)
            error = made("busy", tag) if kind is None else kind(*tag)
            self.all(call, None, blank(HandlerCrashed) if whim == "base" else error)
            raise error
        return whim

    def rubbish(self, call: Call, whim: str, results: list[Any]) -> Any:
        """Return what is no list of results, having noted the error that all get."""
        count = len(call.lives)
        wrong = {"short": results[:-1], "long": [*results, 0]}.get(whim)
        if wrong is not None:
            self.all(call, None, blank(ResultCountError))
            return wrong
        self.all(call, None, TypeError())
        return {
            "text": "x" * count,
            "mapping": dict.fromkeys(range(count)),
            "number": count,
            "awaitables": [Later() for _ in range(count)],
        }[whim]

    def finish(self, call: Call) -> Any:
        whim = self.misbehave(call)
        count = len(call.lives)
        if whim == "none":
            self.all(call, None)
            return None
        if whim in {"short", "long", "text", "mapping", "number", "awaitables"}:
            return self.rubbish(call, whim, [0] * count)
        return [None if index in call.given else self.give(call, index) for index in range(count)]

    async def listing(self, items: list[Item]) -> Any:
        call = self.begin(items)
        try:
            await self.work(call)
            return self.finish(call)
        finally:
            self.end(call)

    async def resolving(self, items: list[Item]) -> Any:
        call = self.begin(items)
        batch: Any = current_batch()
        try:
            for index in reversed(range(1, len(items))):
                await self.sleep(call, 0.25)
                if call.cancelled is None:
                    batch.resolve(index, self.give(call, index))
            await self.work(call)
            return self.finish(call)
        finally:
            self.end(call)

    async def generating(self, items: list[Item]) -> AsyncIterator[tuple[int, Any]]:
        call = self.begin(items)
        count = len(items)
        whim = items[0].whim
        try:
            for index in reversed(range(count)):
                if index == 0:
                    await self.work(call)
                    self.misbehave(call)
                    if whim == "short":
                        self.all(call, None, blank(ResultCountError))
                        return
                    if whim in {"long", "text"}:
                        self.all(call, None, blank(ResultCountError))
                        yield (count if whim == "long" else -1), 0
                        self.run.problems.append(
                            f"generator: call {call.number} went on after a wrong index"
                        )
                else:
                    await self.sleep(call, 0.25)
                yield index, self.give(call, index)
        finally:
            self.end(call)
