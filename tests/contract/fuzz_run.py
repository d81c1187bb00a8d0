"""Runs a program in an event loop of its own, in virtual time, and records what callers and handlers saw."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import logging
import sys
from typing import TYPE_CHECKING, Any

import anyio
import sniffio
import trio
from fuzz_callers import Callers
from fuzz_handler import PLACE, Handlers
from fuzz_look import looked
from fuzz_program import Item
from fuzz_record import TURNS, CallbackError, Close, Flush, Stamp
from support import backend_options

from microbatch import (
    AdaptiveSize,
    Backoff,
    Batcher,
    BatcherClosed,
    HandlerTimeout,
    Retry,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from fuzz_program import Program

LOOPS = ["asyncio", "eager", "trio"] if sys.version_info >= (3, 12) else ["asyncio", "trio"]

#: Virtual seconds after which all that a program starts has ended, unless something hangs.
END = 5_000.0


class Leave(Exception):
    """Leaves ``async with`` by an exception."""


class _Turns(trio.abc.Instrument):
    count = 0

    def before_io_wait(self, timeout: float) -> None:
        self.count += 1


class Run(Callers):
    """One program in one event loop."""

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        self.handlers = Handlers(self)
        self.batcher: Any = None
        self.leave = anyio.Event()
        self.left: Any = None
        self.host: Any = None
        self.extra: list[Any] = []  # cancels of flushes
        self.closing_tasks: list[Any] = []

    # --- where and when ----------------------------------------------------------------------------------------

    def now(self) -> Stamp:
        self.seq += 1
        if self.trio:
            return Stamp(self.seq, self.turns.count, trio.current_time() - self.began)
        return Stamp(self.seq, self.loop.polls, self.loop.time() - self.began)

    def start(self, function: Callable[[], Awaitable[None]], context: contextvars.Context) -> Any:
        """Start a task in a context; return what cancels it."""
        if self.trio:
            scope = trio.CancelScope()

            async def within() -> None:
                with scope:
                    await function()

            context.run(self.nursery.start_soon, within)
            return scope.cancel
        task = context.run(self.loop.create_task, function())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task.cancel

    def alive(self) -> int:
        if self.trio:
            return trio.lowlevel.current_statistics().tasks_living
        return len(asyncio.all_tasks())

    def timers(self) -> float:
        """How many timers are armed in the event loop; on trio, when the next one ends."""
        if self.trio:
            return trio.current_time() + trio.lowlevel.current_statistics().seconds_to_next_deadline
        return len(self.loop.timers())

    async def main(self, loop: str) -> None:
        self.trio = sniffio.current_async_library() == "trio"
        self.began = 0.0
        if self.trio:
            self.turns = _Turns()
            trio.lowlevel.add_instrument(self.turns)
            self.began = trio.current_time()
            async with trio.open_nursery() as self.nursery:
                await self.steps()
            return
        self.loop: Any = asyncio.get_running_loop()
        self.loop.set_exception_handler(self.complain)
        self.tasks: set[Any] = set()
        if loop == "eager":
            self.loop.set_task_factory(asyncio.eager_task_factory)
        await self.steps()

    def complain(self, _: Any, what: dict[str, Any]) -> None:
        if what["message"].endswith("exception was never retrieved"):
            self.unawaited.append(repr(what["exception"]))
        else:
            self.problems.append(f"left over: the event loop complains: {what}")

    # --- the program -------------------------------------------------------------------------------------------

    async def steps(self) -> None:
        PLACE.set("driver")
        self.base = contextvars.copy_context()
        before = self.alive(), self.timers()
        self.batcher = Batcher(self.handlers.chosen(), **self.arguments())
        if self.settings.entered:
            self.host = self.start(self.hosting, contextvars.copy_context())
            await self.turn(2)
        for op in self.program.ops:
            done = getattr(self, f"do_{op[0]}")(*op[1:])
            if done is not None:
                await done
            if self.program.looks:
                self.do_look()
        if self.program.quiet and self.close is None:
            await self.calm()
            self.all_ended("by itself")
        self.do_close()
        await self.finish(before)

    async def finish(self, before: Any) -> None:
        await self.calm()
        if self.close is None or self.close.done is None:
            self.problems.append("closing: it never returned")
        for caller in self.callers:
            if caller.kind == "held" and caller.pending is not None:
                self.await_held(caller)
        await self.turn(16)
        if any(caller.dropped for caller in self.callers):
            gc.collect()  # what nobody awaited is told when it is deleted
        self.all_ended("after the close")
        self.final = self.batcher.stats()
        late = Item(-1)
        for task in (self.batcher.submit(late), self.batcher.submit_many([late])):
            try:
                await task
            except BatcherClosed:
                continue
            except Exception as error:
                self.problems.append(f"closing: a submit after it got {error!r}")
            else:
                self.problems.append("closing: a submit after it was let in")
        if (after := (self.alive(), self.timers())) != before:
            self.problems.append(f"left over: tasks and timers are {after}, not {before}")
        if self.trio:
            self.nursery.cancel_scope.cancel()

    async def calm(self) -> None:
        """Give everything time to end; then nothing may wake the event loop any more."""
        await anyio.sleep(END / 10)
        calm = self.now()
        await anyio.sleep(END)
        if self.now().turn > calm.turn + TURNS:
            self.problems.append("left over: something wakes an idle event loop")

    def all_ended(self, when: str) -> None:
        for life in self.lives:
            if (
                life.sent
                and life.end is None
                and not life.caller.dropped
                and not life.caller.pending
            ):
                self.problems.append(f"ends once: {life} never ended, {when}")

    async def turn(self, count: int) -> None:
        for _ in range(count):
            await anyio.lowlevel.checkpoint()

    def arguments(self) -> dict[str, Any]:
        one = self.settings

        def callback(name: str, value: Callable[[Item], Any]) -> Callable[[Item], Any]:
            def called(item: Item) -> Any:
                if item.bad == name:
                    raise CallbackError(name)
                if item.inside and item not in self.crawled:
                    self.crawled.add(item)
                    self.from_inside(item)
                return value(item)

            return called

        retried: Any = (ConnectionError, HandlerTimeout) if one.retry_timeouts else ConnectionError
        backoff = Backoff(initial=one.initial, maximum=one.maximum, jitter=0.0)
        return {
            "max_batch_size": AdaptiveSize(1, one.size, target=1.0) if one.adaptive else one.size,
            "max_wait": one.wait,
            "max_concurrency": one.slots,
            "max_pending": one.room,
            "on_full": "reject" if one.reject else "wait",
            "weigh": callback("weigh", lambda item: item.weight) if self.weighed() else None,
            "max_batch_weight": one.batch_weight,
            "max_pending_weight": one.room_weight,
            "partition": callback("partition", lambda item: item.part) if one.parts else None,
            "partition_concurrency": one.part_slots if one.parts else None,
            "coalesce": callback("coalesce", lambda item: item.key) if one.coalesce else None,
            "retry": Retry(on=retried, attempts=one.attempts, backoff=backoff, holds=one.holds)
            if one.attempts
            else None,
            "handler_timeout": one.timeout,
            "drain_timeout": None,
            "cancel_abandoned": one.abandon,
            "capture_context": one.contexts,
            "telemetry": False,
        }

    # --- what else is done ---------------------------------------------------------------------------------

    async def do_turns(self, count: int) -> None:
        await self.turn(count)

    async def do_sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)

    def do_flush(self) -> None:
        async def flush() -> None:
            record = Flush(self.now())
            self.flushes.append(record)
            try:
                await self.batcher.flush()
            except Exception as error:
                record.error = error
            except BaseException:
                record.cancelled = True
                raise
            finally:
                record.done = self.now()

        self.extra.append(self.start(flush, contextvars.copy_context()))

    def do_cancel_flush(self) -> None:
        if self.extra:
            self.extra.pop()()

    def do_look(self) -> None:
        self.problems += looked(self, self.batcher.stats(), self.now())

    # --- closing -----------------------------------------------------------------------------------------------

    def do_close(self) -> None:
        if self.closing_tasks:
            return
        way, seconds = self.program.way, self.program.seconds
        if way in {"leave", "fail", "leave_cancelled"} and self.settings.entered:
            self.closing_tasks.append(None)
            self.left = way
            if way == "leave_cancelled":
                self.begin_close(None, at_once=True)
                self.host()
            else:
                self.leave.set()
            return
        self.closing_tasks.append(
            self.start(lambda: self.closes(way, seconds), contextvars.copy_context())
        )

    def begin_close(self, deadline: float | None, *, at_once: bool = False) -> Close:
        now = self.now()
        self.close = Close(now, None if deadline is None else now.time + deadline)
        if at_once:
            self.close.at_once = now
        return self.close

    async def closes(self, way: str, seconds: float) -> None:
        close = self.begin_close(None if way == "drain" else seconds)
        try:
            if way == "deadline":
                await self.batcher.aclose(seconds)
            elif way == "cancelled":
                with anyio.move_on_after(seconds):
                    await self.batcher.aclose()
            else:
                await self.batcher.aclose()
        except Exception as error:
            close.error = error
        close.done = self.now()
        self.leave.set()  # whoever entered it leaves too

    async def hosting(self) -> None:
        PLACE.set("host")
        try:
            async with self.batcher:
                await self.leave.wait()
                if self.left == "fail":
                    self.begin_close(None, at_once=True)
                    raise Leave
                if self.left == "leave":
                    self.begin_close(None)
        except Leave:
            pass
        except Exception as error:
            if self.close:
                self.close.error = error
        finally:
            if self.close and self.left:
                self.close.done = self.now()


class _Log(logging.Handler):
    def __init__(self, run: Run) -> None:
        super().__init__(logging.WARNING)
        self.run = run

    def emit(self, record: logging.LogRecord) -> None:
        self.run.log.append(f"{record.name}: {record.getMessage()}")


@functools.cache
def _freeze() -> None:
    """Spare each collection a look at what was there before the first program."""
    gc.freeze()


def recorded(program: Program, loop: str) -> Run:
    """Run it, and return what was seen."""
    run = Run(program)
    log = _Log(run)
    logger = logging.getLogger("microbatch")
    logger.addHandler(log)
    propagate, logger.propagate = logger.propagate, False
    backend, options = backend_options("trio" if loop == "trio" else "asyncio")
    if loop == "trio":  # its order of tasks is random by intent, and only its inside has the seed
        trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING = True  # noqa: SLF001 - trio's
        trio._core._run._r.seed(program.seed)  # noqa: SLF001 - trio's

    async def bounded() -> None:
        with anyio.fail_after(10 * END):
            await run.main(loop)

    _freeze()
    try:
        contextvars.Context().run(anyio.run, bounded, backend=backend, backend_options=options)
    except (Exception, asyncio.CancelledError) as error:
        run.problems.append(f"run: it ended with {error!r}")
    finally:
        gc.collect()  # what is told of a program comes in its own time
        logger.removeHandler(log)
        logger.propagate = propagate
    return run
