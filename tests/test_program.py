"""Drawn programs drive the whole Batcher in virtual time against a naive model.

Each program is a list of steps: submit, sleep, cancel, flush ... It runs in one event loop; what the callers got and
what the handler saw is compared with what a model of a few lines says.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import counted, outcome, run, tasks_alive, turns

from microbatch import Backoff, Batcher, BatcherFull, Retry, current_batch

pytestmark = pytest.mark.timeout(60)


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


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@given(
    # Sleeps in steps of 0.4 s never end at the same moment as a window of 1 s.
    steps=st.lists(
        st.tuples(st.sampled_from([0.0, 0.4, 0.8, 2.0]), st.integers(0, 7)), max_size=12
    ),
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
    st.tuples(st.just("submit"), st.integers(0, 2)),
    st.tuples(st.just("submit_nowait"), st.integers(0, 2)),
    st.tuples(st.just("submit_many"), st.integers(0, 6)),
    st.tuples(st.just("cancel"), st.integers(0, 30)),
    st.tuples(st.just("sleep"), st.sampled_from([0.0, 0.3, 1.0, 3.0])),
    st.tuples(st.just("turns"), st.integers(1, 3)),
    st.tuples(st.just("flush"), st.just(0)),
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
        "partition": st.just(lambda item: item % 3),
        "partition_concurrency": st.just(1),
        "weigh": st.just(lambda item: item % 4),
        "coalesce": st.just(lambda item: item),
        "retry": st.just(
            Retry(on=ConnectionError, attempts=3, backoff=Backoff(initial=1.0, jitter=0.0))
        ),
        "handler_timeout": st.just(5.0),
        "cancel_abandoned": st.just(True),
        "capture_context": st.just(True),
    },
)


def behaviour(item: int) -> str:
    """What the handler does with an item, by its number."""
    return {3: "fails", 5: "flaky", 7: "hopeless"}.get(item % 11, "works")


def allowed(item: int, settings: dict[str, Any]) -> set[Any]:
    """The model: what the caller of an item may get, if nothing cancels it."""
    ends: set[Any] = {item * 10}
    if behaviour(item) == "fails":
        ends = {ValueError}
    elif behaviour(item) == "hopeless" or (behaviour(item) == "flaky" and "retry" not in settings):
        ends = {ConnectionError}
    elif behaviour(item) == "flaky":
        ends = {item * 10, ConnectionError}  # back-off may be full
    return ends | ({BatcherFull} if settings["max_pending"] else set())


class Checking:
    """The handler: keeps its limits in sight and remembers."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.seen: Counter[int] = Counter()
        self.order: list[int] = []
        self.running = 0
        self.running_in: Counter[Any] = Counter()

    async def __call__(self, items: list[int]) -> list[Any]:
        settings = self.settings
        batch = current_batch()
        assert batch is not None
        assert 1 <= len(items) <= settings["max_batch_size"]
        assert batch.size == len(items) == len(batch.attempts)
        partitions = {item % 3 if "partition" in settings else None for item in items}
        assert len(partitions) == 1
        (partition,) = partitions
        assert batch.partition == partition
        if "weigh" in settings:
            assert sum(item % 4 for item in items) <= settings["max_batch_weight"]
        self.seen.update(items)
        assert list(batch.attempts) == [self.seen[item] for item in items]
        self.order += [item for item in items if self.seen[item] == 1]
        self.running += 1
        self.running_in[partition] += 1
        assert self.running <= settings["max_concurrency"]
        if "partition_concurrency" in settings:
            assert self.running_in[partition] == 1
        try:
            await anyio.sleep((items[0] % 3) * 0.5)
        finally:
            self.running -= 1
            self.running_in[partition] -= 1
        return [self.result(item) for item in items]

    def result(self, item: int) -> Any:
        kind = behaviour(item)
        if kind == "fails":
            return ValueError(item)
        if kind == "hopeless" or (kind == "flaky" and self.seen[item] == 1):
            return ConnectionError(item)
        return item * 10


async def drive(steps: list[Any], settings: dict[str, Any]) -> None:
    handler = Checking(settings)
    ends: dict[int, list[Any]] = {}
    cancelled: set[int] = set()
    scopes: list[tuple[list[int], Any]] = []
    submitted: list[int] = []
    tasks_before = tasks_alive()
    batcher: Batcher[int, int] = Batcher(handler, **settings)

    async def one(item: int, scope: anyio.CancelScope, priority: int) -> None:
        with scope:
            ends[item].append(await outcome(batcher.submit(item, priority=priority)))

    async def one_pending(item: int, pending: Any, scope: anyio.CancelScope) -> None:
        with scope:
            ends[item].append(await outcome(pending))

    async def many(items: list[int], scope: anyio.CancelScope) -> None:
        with scope:
            report = await batcher.submit_many_report(items)
            for item, one in zip(items, report, strict=True):
                ends[item].append(one.value if one.ok else one.error)

    count = 0
    async with batcher, anyio.create_task_group() as tasks:
        for step, argument in steps:
            if step in ("submit", "submit_nowait", "submit_many"):
                items = list(range(count, count + (argument if step == "submit_many" else 1)))
                count += len(items)
                for item in items:
                    ends[item] = []
                scope = anyio.CancelScope()
                scopes.append((items, scope))
                submitted += items
                priority = 0 if settings.get("ordered") else argument
                if step == "submit":
                    tasks.start_soon(one, items[0], scope, priority)
                elif step == "submit_many":
                    tasks.start_soon(many, items, scope)
                else:
                    try:
                        pending = batcher.submit_nowait(items[0], priority=priority)
                    except BatcherFull as error:
                        ends[items[0]].append(error)
                    else:
                        tasks.start_soon(one_pending, items[0], pending, scope)
            elif step == "cancel" and scopes:
                items, scope = scopes[argument % len(scopes)]
                scope.cancel()
                cancelled.update(items)
            elif step == "sleep":
                await anyio.sleep(argument)
            elif step == "turns":
                await turns(argument)
            elif step == "flush":
                tasks.start_soon(batcher.flush)
            stats = counted(batcher)
            if settings["max_pending"]:
                assert stats.pending <= settings["max_pending"]
        await turns()
    for item, got in ends.items():
        assert len(got) <= 1, "ended twice"
        if got:
            end = got[0] if isinstance(got[0], int) else type(got[0])
            assert end in allowed(item, settings), (item, got)
        else:
            assert item in cancelled, f"{item} never ended"
        attempts = 3 if "retry" in settings and behaviour(item) in ("flaky", "hopeless") else 1
        assert handler.seen[item] <= attempts
        if got and not isinstance(got[0], BatcherFull):
            assert handler.seen[item] >= 1
        elif got:
            assert handler.seen[item] == 0
    stats = counted(batcher)
    assert (stats.pending, stats.waiting) == (0, 0)
    assert stats.items <= len(ends)
    assert stats.items >= sum(
        1 for got in ends.values() if got and not isinstance(got[0], BatcherFull)
    )
    await turns()
    assert tasks_alive() == tasks_before


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@given(steps=st.lists(STEPS, max_size=25), settings=SETTINGS)
def test_every_submit_ends_exactly_once_with_its_own_result(
    backend: str, steps: list[Any], settings: dict[str, Any]
) -> None:
    """Whatever is drawn: limits hold, books balance, closing leaves nothing behind."""
    if "weigh" in settings:
        settings = {**settings, "max_batch_weight": 6}
    if "partition" not in settings:
        settings = {key: value for key, value in settings.items() if key != "partition_concurrency"}
    run(backend, drive, steps, settings)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@given(
    gaps=st.lists(st.sampled_from([0.0, 0.0, 0.1, 0.7]), min_size=1, max_size=30),
    size=st.integers(1, 4),
    wait=st.sampled_from([0.0, 0.5]),
    partitions=st.integers(1, 3),
    cancelled=st.sets(st.integers(0, 29)),
)
def test_order_is_kept_and_nobody_waits_too_long(
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
