"""Drawn programs drive the whole Batcher in virtual time against a naive model.

Each program is a list of steps: submit, sleep, cancel, flush ... It runs in one event loop; what the callers got and
what the handler saw is compared with what a model of a few lines says.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import BACKENDS, counted, outcome, programs, run, scaled, tasks_alive, turns

from microbatch import (
    Backoff,
    Batcher,
    BatcherClosed,
    BatcherFull,
    HandlerCrashed,
    HandlerTimeout,
    ItemTooHeavy,
    Retry,
    current_batch,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

#: MICROBATCH_EXAMPLES (see conftest.py) may ask for many more than the quick run draws.
pytestmark = pytest.mark.timeout(max(180, settings.default.max_examples // 5))


# --- exact: which batches go, when and why ----------------------------------------------------------------------


def expected_batches(steps: list[Any], size: int, wait: float) -> list[tuple[float, list[int]]]:
    """The model: with slots for all, a batch goes when it is full or its oldest item has waited long enough."""
    batches: list[tuple[float, list[int]]] = []
    buffer: list[int] = []
    now = oldest = 0.0
    count = 0
    for sleep, items in steps:
        if buffer and oldest + wait < now + sleep:
            batches.append((oldest + wait, buffer))
            buffer = []
        now += sleep
        for item in range(count, count + items):
            oldest = oldest if buffer else now
            buffer.append(item)
            if len(buffer) == size:
                batches.append((now, buffer))
                buffer = []
        count += items
    return [*batches, (now, buffer)] if buffer else batches


@pytest.mark.parametrize("backend", BACKENDS)
@given(
    # Sleeps in steps of 0.4 s never end at the same moment as a window of 1 s.
    steps=programs(st.tuples(st.sampled_from([0.0, 0.4, 0.8, 2.0]), st.integers(0, 7)), 12),
    size=st.integers(1, 5),
)
def test_batches_are_those_of_the_model(backend: str, steps: list[Any], size: int) -> None:
    """Their items, their order and the moment that each goes."""

    async def main() -> list[tuple[float, list[int]]]:
        seen: list[tuple[float, list[int]]] = []
        start = anyio.current_time()

        async def handler(items: list[int]) -> list[int]:
            seen.append((round(anyio.current_time() - start, 3), list(items)))
            return items

        async with Batcher(
            handler, max_batch_size=size, max_wait=1.0, max_concurrency=1000
        ) as batcher:
            count = 0
            for sleep, items in steps:
                await anyio.sleep(sleep)
                for item in range(count, count + items):
                    batcher.submit_nowait(item)
                count += items
                await turns(4)
        return seen

    seen = run(backend, main)
    assert seen == [
        (round(moment, 3), items) for moment, items in expected_batches(steps, size, 1.0)
    ]


# --- laws: whatever happens, everybody ends once ----------------------------------------------------------------

STEPS = st.one_of(
    st.tuples(st.sampled_from(["submit", "submit_nowait"]), st.integers(0, 2)),
    st.tuples(st.just("submit_many"), st.integers(0, 6)),
    st.tuples(st.just("cancel"), st.integers(0, 30)),
    st.tuples(st.just("sleep"), st.sampled_from([0.0, 0.3, 1.0, 3.0])),
    st.tuples(st.just("turns"), st.integers(1, 3)),
    st.tuples(st.just("flush"), st.just(0)),
    st.tuples(st.just("close"), st.sampled_from([0.0, 2.0, 30.0])),
)

SETTINGS = st.fixed_dictionaries(
    {
        "max_batch_size": st.integers(1, 5),
        "max_wait": st.sampled_from([0.0, 0.5, 2.0]),
        "max_concurrency": st.integers(1, 3),
        "max_pending": st.sampled_from([None, 1, 2, 5]),
        "on_full": st.sampled_from(["wait", "reject"]),
    },
    optional={
        "partition": st.just(lambda item: item.value % 3),
        "weigh": st.just(lambda item: item.value % 4),
        "max_pending_weight": st.sampled_from([6, 10]),
        "coalesce": st.just(lambda item: item.value),
        "retry": st.just(
            Retry(on=ConnectionError, attempts=3, backoff=Backoff(initial=1.0, jitter=0.0))
        ),
        "handler_timeout": st.just(5.0),
        "cancel_abandoned": st.just(True),
        "capture_context": st.just(True),
    },
)


class Boom(BaseException):
    """What a handler must not raise."""


class Item(NamedTuple):
    """One submission; those of equal value are interchangeable."""

    number: int
    value: int


class Handler:
    """Keeps its limits in sight, misbehaves by the items' values, and notes what each caller must get.

    ``fates`` is the model: by item the end that its last handler call gave it.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.calls: Counter[Item] = Counter()
        self.fates: dict[Item, Any] = {}
        self.running: list[
            tuple[Any, float]
        ] = []  # partition and the moment at which the timeout frees the slot

    def begin(self, items: list[Item]) -> Any:
        settings, batch = self.settings, current_batch()
        assert batch is not None
        assert 1 <= len(items) == batch.size <= settings["max_batch_size"]
        assert {item.value % 3 if "partition" in settings else None for item in items} == {
            batch.partition
        }
        if "weigh" in settings:
            assert sum(item.value % 4 for item in items) <= settings["max_batch_weight"]
        if "coalesce" in settings and "retry" not in settings:
            assert len({item.value for item in items}) == len(items)
        self.calls.update(items)
        assert list(batch.attempts) == [self.calls[item] for item in items]
        now = anyio.current_time()
        call = (batch.partition, now + settings.get("handler_timeout", 1e9))
        self.running.append(call)
        held = [partition for partition, frees in self.running if frees > now + 1e-6]
        assert len(held) <= settings["max_concurrency"]
        if "partition_concurrency" in settings:
            assert held.count(batch.partition) == 1
        return batch, call

    def result(self, item: Item) -> Any:
        kind = item.value % 11
        if kind == 3:
            return self.note(item, ValueError())
        if kind == 7 or (kind == 5 and self.calls[item] == 1):
            return self.note(item, ConnectionError())
        return self.note(item, item.value * 10)

    def note(self, item: Item, end: Any) -> Any:
        self.fates[item] = type(end) if isinstance(end, BaseException) else end
        return end

    async def misbehave(self, items: list[Item]) -> None:
        kinds = {item.value % 11 for item in items}
        if 9 in kinds and "handler_timeout" in self.settings:
            self.fates.update(dict.fromkeys(items, HandlerTimeout))
            await anyio.sleep_forever()
        if 10 in kinds:
            self.fates.update(dict.fromkeys(items, LookupError))
            raise LookupError
        if 8 in kinds:
            self.fates.update(dict.fromkeys(items, HandlerCrashed))
            raise Boom

    async def listing(self, items: list[Item]) -> list[Any]:
        _, call = self.begin(items)
        try:
            await anyio.sleep((items[0].value % 3) * 0.5)
            await self.misbehave(items)
            return [self.result(item) for item in items]
        finally:
            self.running.remove(call)

    async def resolving(self, items: list[Item]) -> list[Any]:
        batch, call = self.begin(items)
        try:
            for index in range(0, len(items), 2):
                batch.resolve(index, self.result(items[index]))
                await anyio.sleep(0.2)
            await self.misbehave(items[1::2])
            return [
                None if index % 2 == 0 else self.result(item) for index, item in enumerate(items)
            ]
        finally:
            self.running.remove(call)

    async def generating(self, items: list[Item]) -> AsyncIterator[tuple[int, Any]]:
        _, call = self.begin(items)
        try:
            for index in reversed(range(len(items))):
                await anyio.sleep(0.2)
                if index == 0:
                    await self.misbehave(items[:1])
                yield index, self.result(items[index])
        finally:
            self.running.remove(call)


class Program:
    """Runs the steps; afterwards every submission has ended once, or was cancelled."""

    def __init__(self, handler: Handler, batcher: Any, tasks: Any) -> None:
        self.handler = handler
        self.batcher = batcher
        self.tasks = tasks
        self.ends: dict[Item, list[Any]] = {}
        self.scopes: list[tuple[list[Item], anyio.CancelScope]] = []
        self.cancelled: set[Item] = set()
        self.closed = False

    def new(self, count: int) -> tuple[list[Item], anyio.CancelScope]:
        start = len(self.ends)
        # Every third value comes twice, for coalescing.
        items = [
            Item(number, number - 1 if number % 3 == 2 else number)
            for number in range(start, start + count)
        ]
        self.ends.update((item, []) for item in items)
        self.scopes.append((items, anyio.CancelScope()))
        return self.scopes[-1]

    async def wait(self, item: Item, awaitable: Any, scope: anyio.CancelScope) -> None:
        with scope:
            self.ends[item].append(await outcome(awaitable))

    async def wait_for_many(self, items: list[Item], scope: anyio.CancelScope) -> None:
        with scope:
            report: Any = await outcome(self.batcher.submit_many_report(items))
            for index, item in enumerate(items):
                one = report if isinstance(report, Exception) else report[index]
                self.ends[item].append(one if one is report else one.value if one.ok else one.error)

    def submit(self, priority: int) -> None:
        (item,), scope = self.new(1)
        # Called here, in order; started in a task of its own.
        self.tasks.start_soon(self.wait, item, self.batcher.submit(item, priority=priority), scope)

    def submit_nowait(self, priority: int) -> None:
        (item,), scope = self.new(1)
        try:
            pending = self.batcher.submit_nowait(item, priority=priority)
        except (BatcherFull, BatcherClosed, ItemTooHeavy) as error:
            self.ends[item].append(error)
        else:
            self.tasks.start_soon(self.wait, item, pending, scope)

    def submit_many(self, count: int) -> None:
        self.tasks.start_soon(self.wait_for_many, *self.new(count))

    def cancel(self, which: int) -> None:
        if self.scopes:
            items, scope = self.scopes[which % len(self.scopes)]
            scope.cancel()
            self.cancelled.update(items)

    def flush(self, _: int) -> None:
        self.tasks.start_soon(self.batcher.flush)

    def close(self, seconds: float) -> None:
        self.closed = True
        self.tasks.start_soon(self.batcher.aclose, seconds)

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)

    async def turns(self, count: int) -> None:
        await turns(count)

    async def step(self, name: str, argument: Any) -> None:
        done = getattr(self, name)(argument)
        if done is not None:
            await done
        stats = counted(self.batcher)
        limit = self.handler.settings["max_pending"]
        assert limit is None or stats.pending <= limit

    def judge(self) -> None:
        for item, got in self.ends.items():
            assert len(got) <= 1, f"{item} ended twice"
            if not got:
                assert item in self.cancelled, f"{item} never ended"
                continue
            end = type(got[0]) if isinstance(got[0], Exception) else got[0]
            sharers = [item]
            if "coalesce" in self.handler.settings:
                sharers = [other for other in self.ends if other.value == item.value]
            fates = {self.handler.fates.get(one) for one in sharers}
            if end is BatcherFull:
                assert (
                    self.handler.settings["max_pending"]
                    or "max_pending_weight" in self.handler.settings
                )
                assert not self.handler.calls[item]
            elif end is BatcherClosed:
                assert self.closed
                assert (
                    got[0].started
                    or not self.handler.calls[item]
                    or "retry" in self.handler.settings
                )
            else:
                assert end in fates, (item, got, fates)
        attempts = 3 if "retry" in self.handler.settings else 1
        assert all(calls <= attempts for calls in self.handler.calls.values())
        stats = counted(self.batcher)
        assert (stats.pending, stats.waiting) == (0, 0)
        assert stats.items <= len(self.ends)


async def drive(steps: list[Any], settings: dict[str, Any], kind: str) -> None:
    handler = Handler(settings)
    before = tasks_alive()
    batcher: Batcher[Any, Any] = Batcher(getattr(handler, kind), **settings)
    try:
        async with batcher, anyio.create_task_group() as tasks:
            program = Program(handler, batcher, tasks)
            for name, argument in steps:
                await program.step(name, argument)
    except BatcherClosed:
        assert program.closed  # a flush found it closed
    await turns()
    program.judge()
    assert tasks_alive() == before


PROGRAMS = st.fixed_dictionaries(
    {
        "steps": programs(STEPS, 40),
        "settings": SETTINGS,
        "serial": st.booleans(),
        "kind": st.sampled_from(["listing", "listing", "resolving", "generating"]),
    }
)


def run_program(backend: str, program: dict[str, Any]) -> None:
    settings = dict(program["settings"])
    if "weigh" in settings:
        settings["max_batch_weight"] = 6
    else:
        settings.pop("max_pending_weight", None)
    if "partition" in settings and program["serial"]:
        settings["partition_concurrency"] = 1
    run(backend, drive, program["steps"], settings, program["kind"])


@pytest.mark.parametrize("backend", BACKENDS)
@given(program=PROGRAMS)
def test_every_submit_ends_exactly_once_with_its_own_result(
    backend: str, program: dict[str, Any]
) -> None:
    """Whatever is drawn: limits hold, books balance, closing leaves nothing behind."""
    run_program(backend, program)


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=scaled(1000))
@given(program=PROGRAMS)
def test_a_thousand_programs_end_every_submit_exactly_once(
    backend: str, program: dict[str, Any]
) -> None:
    """Rare interleavings need many programs: one in thousands has shown a hang before."""
    run_program(backend, program)


@pytest.mark.parametrize("backend", BACKENDS)
@given(
    gaps=programs(st.sampled_from([0.0, 0.0, 0.1, 0.7]), 30),
    size=st.integers(1, 4),
    wait=st.sampled_from([0.0, 0.5]),
    partitions=st.integers(1, 3),
    cancelled=st.sets(st.integers(0, 29)),
)
def test_order_is_kept_and_nobody_waits_too_long(  # noqa: PLR0917 - drawn
    backend: str, gaps: list[float], size: int, wait: float, partitions: int, cancelled: set[int]
) -> None:
    """Within a partition first come is first served; with free slots no item waits longer than max_wait."""

    async def main() -> None:
        submitted: dict[int, float] = {}
        waited: dict[int, float] = {}
        order: dict[int, list[int]] = {}

        async def handler(items: list[int]) -> list[int]:
            for item in items:
                waited[item] = anyio.current_time() - submitted[item]
                order.setdefault(item % partitions, []).append(item)
            return items

        async with Batcher(
            handler,
            max_batch_size=size,
            max_wait=wait,
            max_concurrency=100,
            partition=lambda item: item % partitions,
        ) as batcher:
            for item, gap in enumerate(gaps):
                await anyio.sleep(gap)
                submitted[item] = anyio.current_time()
                pending = batcher.submit_nowait(item)
                if item in cancelled:
                    await turns(item % 3)
                    pending.cancel()
            await anyio.sleep(10)
            assert all(seconds <= wait + 0.002 for seconds in waited.values())
            assert all(items == sorted(items) for items in order.values())
            assert set(waited) >= set(submitted) - cancelled

    run(backend, main)
