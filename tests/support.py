"""What many test files share: virtual time on every loop, a handler that remembers, small ways to wait.

Virtual time: a test that sleeps an hour ends at once. On asyncio and trio it is `microbatch.testing.virtual_time`, what
users have; on uvloop, whose timers are written in C, the timers are kept here and the clock jumps when nothing else is
runnable. That one jumps while a worker thread runs too, so what uses threads is marked ``real_time``.
"""

from __future__ import annotations

import asyncio
import heapq
import importlib.util
import math
import os
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import sniffio
import trio
from hypothesis import strategies as st

import microbatch
from microbatch.testing import virtual_time

if TYPE_CHECKING:
    from collections.abc import Iterator

HAS_UVLOOP = importlib.util.find_spec("uvloop") is not None
BACKENDS = ["asyncio", "uvloop", "trio"] if HAS_UVLOOP else ["asyncio", "trio"]

#: For programs that tests start in folders of their own: an absolute path to the very package under test.
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(microbatch.__file__).parents[1])}
ENVIRONMENT.pop("COVERAGE_PROCESS_START", None)


def scaled(count: int) -> int:
    """Return how much of a long run to do: what `.ci/run` has time for, times MICROBATCH_SOAK."""
    return max(1, int(count * float(os.environ.get("MICROBATCH_SOAK", "1"))))


class VirtualLoop(virtual_time("asyncio")["loop_factory"]):  # type: ignore[misc]
    """The public loop in virtual time, which also counts and shows what a test asks about."""

    def __init__(self) -> None:
        self.polls = 0
        self.stands_still = False
        super().__init__()

    def _run_once(self) -> None:
        self.polls += 1
        super()._run_once()

    def jump(self, seconds: float) -> None:
        if not self.stands_still:
            super().jump(seconds)

    def timers(self) -> list[asyncio.TimerHandle]:
        """Return the timers that are set."""
        return [timer for timer in self._scheduled if not timer.cancelled()]


if HAS_UVLOOP:
    import uvloop

    class VirtualUvloop(uvloop.Loop):
        """uvloop with timers of its own: they fire, and the clock jumps, when nothing else is runnable."""

        def __init__(self) -> None:
            super().__init__()
            self._now = 0.0
            self._timers: list[asyncio.TimerHandle] = []
            self._calls = 0
            self._cancelled = 0
            self._watching = False
            self.polls = 0
            self.stands_still = False

        def time(self) -> float:
            return self._now

        def timers(self) -> list[asyncio.TimerHandle]:
            """Return the timers that are set."""
            return [timer for timer in self._timers if not timer.cancelled()]

        def call_soon(self, callback: Any, *args: Any, context: Any = None) -> Any:
            self._calls += 1
            return super().call_soon(callback, *args, context=context)

        def call_soon_threadsafe(self, callback: Any, *args: Any, context: Any = None) -> Any:
            self._calls += 1
            return super().call_soon_threadsafe(callback, *args, context=context)

        def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> Any:
            return self.call_at(self._now + delay, callback, *args, context=context)

        def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> Any:
            timer = asyncio.TimerHandle(when, callback, args, self, context)
            heapq.heappush(self._timers, timer)
            self._watch()
            return timer

        def _timer_handle_cancelled(self, timer: asyncio.TimerHandle) -> None:
            """asyncio's timers report their cancellation here; their time may never come (``sleep_forever``)."""
            self._cancelled += 1
            if self._cancelled > 100 and self._cancelled > len(self._timers) // 2:
                self._timers = [timer for timer in self._timers if not timer.cancelled()]
                heapq.heapify(self._timers)
                self._cancelled = 0

        def _watch(self) -> None:
            if self._timers and not self._watching:
                self._watching = True
                super().call_soon(self._check, self._calls)

        def _check(self, calls: int) -> None:
            # This callback stood at the end of the queue. If nothing was added since, nothing is runnable.
            self._watching = False
            if calls == self._calls:
                while self._timers and self._timers[0].cancelled():
                    heapq.heappop(self._timers)
                if self._timers and not self.stands_still:
                    self.polls += 1
                    self._now = max(self._now, self._timers[0].when())
                while self._timers and self._timers[0].when() <= self._now:
                    timer = heapq.heappop(self._timers)
                    if not timer.cancelled():
                        timer._run()  # noqa: SLF001 - as asyncio's own loops do
            self._watch()


def backend_options(name: str, *, real_time: bool = False) -> tuple[str, dict[str, Any]]:
    """Return anyio's name of a backend and its options, in virtual time unless told otherwise."""
    if name == "trio":
        return "trio", {} if real_time else virtual_time("trio")
    if name == "uvloop":
        return "asyncio", {"loop_factory": uvloop.new_event_loop if real_time else VirtualUvloop}
    return "asyncio", {} if real_time else {"loop_factory": VirtualLoop}


def run(name: str, main: Any, *args: Any, real_time: bool = False) -> Any:
    """Run ``main(*args)`` in an event loop of its own: for tests that are about loops, and for Hypothesis.

    In virtual time a hang ends at once in a TimeoutError: the clock jumps to this bound when everything waits.
    """

    async def bounded() -> Any:
        with anyio.fail_after(120 if real_time else 100_000):
            return await main(*args)

    backend, options = backend_options(name, real_time=real_time)
    return anyio.run(bounded, backend=backend, backend_options=options)


def stop_the_clock() -> None:
    """Let no more time pass in this event loop, which runs in virtual time: what waits for it waits for ever."""
    if sniffio.current_async_library() == "trio":
        clock: Any = trio.lowlevel.current_clock()
        clock.autojump_threshold = math.inf
    else:
        loop: Any = asyncio.get_running_loop()
        loop.stands_still = True


async def turns(count: int = 16) -> None:
    """Let every runnable task run, without any time passing."""
    for _ in range(count):
        await anyio.lowlevel.checkpoint()


async def outcome(awaitable: Any) -> Any:
    """Await and return the result, or the exception in its place."""
    try:
        return await awaitable
    except Exception as error:
        return error


async def outcomes(*awaitables: Any) -> list[Any]:
    """Await each in a task of its own; results or exceptions in the order of the arguments."""
    results: list[Any] = [None] * len(awaitables)

    async def wait(index: int, awaitable: Any) -> None:
        results[index] = await outcome(awaitable)

    async with anyio.create_task_group() as tasks:
        for index, awaitable in enumerate(awaitables):
            tasks.start_soon(wait, index, awaitable)
    return results


def leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield what an exception group has inside, groups within it opened too; of any other error itself."""
    if isinstance(error, BaseExceptionGroup):
        for member in error.exceptions:
            yield from leaves(member)
    else:
        yield error


def in_thread(function: Any, *args: Any) -> tuple[threading.Thread, list[Any]]:
    """Start a thread; its result, or the exception, comes into the list."""
    results: list[Any] = []

    def work() -> None:
        try:
            results.append(function(*args))
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, results


def tasks_alive() -> int:
    """Return how many tasks live in this event loop, system tasks included."""
    if sniffio.current_async_library() == "trio":
        return trio.lowlevel.current_statistics().tasks_living
    return len(asyncio.all_tasks())


def counted(batcher: Any) -> Any:
    """Return the batcher's stats, having checked what must hold between its counts at every moment."""
    stats = batcher.stats()
    assert stats.pending == stats.buffered + stats.in_flight + stats.in_backoff, stats
    assert min(stats.buffered, stats.in_flight, stats.in_backoff, stats.waiting) >= 0, stats
    assert 0 <= stats.failed <= stats.items, stats
    return stats


class Caller:
    """A waiter: done before its time when its caller has gone."""

    def __init__(self) -> None:
        self.gone = False

    def done(self) -> bool:
        return self.gone


class Recorder:
    """A handler that returns ten times each item and keeps what it was given and why.

    Args:
        seconds: How long each call takes.
        fails: Items that fail alone, each with ``ValueError(item)``.
    """

    def __init__(self, seconds: float = 0.0, fails: Any = ()) -> None:
        self.seconds = seconds
        self.fails = fails
        self.batches: list[list[Any]] = []
        self.reasons: list[str] = []
        self.started: list[float] = []
        self.running = 0
        self.peak = 0

    async def __call__(self, items: list[Any]) -> list[Any]:
        batch = microbatch.current_batch()
        assert batch is not None
        assert batch.size == len(items)
        self.batches.append(list(items))
        self.reasons.append(batch.reason)
        self.started.append(anyio.current_time())
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            await anyio.sleep(self.seconds)
        finally:
            self.running -= 1
        return [ValueError(item) if item in self.fails else item * 10 for item in items]

    @property
    def sizes(self) -> list[int]:
        return [len(batch) for batch in self.batches]

    @property
    def seen(self) -> Counter[Any]:
        return Counter(item for batch in self.batches for item in batch)


class Gate(Recorder):
    """A handler that waits until it is opened, whatever the time."""

    def __init__(self, fails: Any = ()) -> None:
        super().__init__(fails=fails)
        self.opened = anyio.Event()

    async def __call__(self, items: list[Any]) -> list[Any]:
        batch = microbatch.current_batch()
        assert batch is not None
        self.batches.append(list(items))
        self.reasons.append(batch.reason)
        await self.opened.wait()
        return [ValueError(item) if item in self.fails else item * 10 for item in items]


def programs(steps: st.SearchStrategy[Any], longest: int) -> st.SearchStrategy[list[Any]]:
    """Draw programs of at most so many steps, which are long enough to come to states that take many of them.

    Lists that Hypothesis draws have six elements on average, whatever their ``max_size``: these are lists of lists.
    """
    parts = st.lists(st.lists(steps, max_size=20), max_size=max(2, longest // 5))
    return parts.map(lambda some: [step for part in some for step in part][:longest])
