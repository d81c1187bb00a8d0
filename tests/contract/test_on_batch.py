"""Telemetry(on_batch=...): a function of the program's own is told what became of every batch."""

from __future__ import annotations

import contextvars
import typing
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import BACKENDS, Gate, Recorder, counted, outcome, outcomes, run, turns

from microbatch import (
    Backoff,
    Batcher,
    BatcherClosed,
    BatchRecord,
    ItemError,
    RateLimited,
    Retry,
    Skipped,
    Telemetry,
    batched,
    current_batch,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

Records = list[BatchRecord]


def told(**settings: Any) -> tuple[Records, Telemetry]:
    """Return the records that come in, and the setting that brings them."""
    records: Records = []
    return records, Telemetry(on_batch=records.append, **settings)


def ends(record: BatchRecord) -> tuple[int, int, int, int, int]:
    """Return succeeded, failed, skipped, retried, held: all of a batch, whatever becomes of it."""
    found = (record.succeeded, record.failed, record.skipped, record.retried, record.held)
    assert sum(found) == record.size
    assert sum(record.errors.values()) == record.failed + record.skipped
    return found


@pytest.mark.anyio
async def test_a_record_tells_what_became_of_a_batch() -> None:
    """Everything that a monitor of one's own needs, in the words of stats, reports and current_batch."""
    records, telemetry = told()

    async def handler(items: list[int]) -> list[Any]:
        await anyio.sleep(2.0)
        known = ItemError("no", code="unknown"), ItemError("no", code="unknown")
        return ["ok", "ok", *known, Skipped("seen"), KeyError("secret"), "ok"]

    async with Batcher(handler, max_wait=0.5, name="orders", telemetry=telemetry) as batcher:
        await outcomes(*(batcher.submit(item) for item in range(7)))
    assert records == [
        BatchRecord(
            name="orders",
            size=7,
            reason="wait",
            seconds=2.0,
            oldest_wait=0.5,
            succeeded=3,
            failed=3,
            skipped=1,
            retried=0,
            held=0,
            errors={"unknown": 2, "skipped": 1, "internal_error": 1},
        )
    ]
    assert typing.get_type_hints(BatchRecord)["errors"] == dict[str, int]


@pytest.mark.anyio
async def test_a_record_is_frozen_and_nobody_elses() -> None:
    """What one function does with its record no other sees."""
    records, telemetry = told()
    async with Batcher(Recorder(), telemetry=telemetry) as batcher:
        await batcher.submit(1)
        await batcher.submit(2)
    with pytest.raises(AttributeError):
        records[0].size = 5  # type: ignore[misc]
    records[0].errors["x"] = 1
    assert records[1].errors == {}


@pytest.mark.anyio
async def test_it_is_called_once_a_batch_after_it_ended_and_before_its_callers_go_on() -> None:
    """So whoever has a result finds its batch in the figures."""
    order: list[Any] = []

    def on_batch(record: BatchRecord) -> None:
        stats = counted(batcher)
        order.append(("batch", record.size, stats.in_flight, stats.batches, current_batch()))

    async def caller(item: int) -> None:
        await batcher.submit(item)
        order.append(item)

    async with (
        Batcher(
            Recorder(seconds=1.0), max_batch_size=2, telemetry=Telemetry(on_batch=on_batch)
        ) as batcher,
        anyio.create_task_group() as tasks,
    ):
        for item in range(3):
            tasks.start_soon(caller, item)
    assert [step for step in order if isinstance(step, tuple)] == [
        ("batch", 2, 0, 1, None),
        ("batch", 1, 0, 2, None),
    ]
    assert isinstance(order[0], tuple)
    assert isinstance(order[3], tuple)


@pytest.mark.anyio
@pytest.mark.parametrize("partitioned", [False, True])
async def test_items_that_go_again_are_told_apart_from_those_that_failed(partitioned: bool) -> None:
    """Else a business figure would count them twice."""
    records, telemetry = told()

    async def handler(items: list[int]) -> list[Any]:
        attempts = current_batch().attempts  # type: ignore[union-attr]
        return [
            OSError() if item < 2 and attempt < 3 - item else item
            for item, attempt in zip(items, attempts, strict=True)
        ]

    async with Batcher(
        handler,
        retry=Retry(on=OSError, attempts=2, backoff=Backoff(jitter=0.0)),
        partition=(lambda item: 0) if partitioned else None,
        telemetry=telemetry,
    ) as batcher:
        await outcomes(*(batcher.submit(item) for item in range(4)))
    assert [ends(record) for record in records] == [(2, 0, 0, 2, 0), (1, 1, 0, 0, 0)]
    assert [record.errors for record in records] == [{}, {"internal_error": 1}]


@pytest.mark.anyio
@pytest.mark.parametrize("whole", [False, True])
async def test_items_that_a_backend_refused_are_held_and_not_failed(whole: bool) -> None:
    """They go again with no attempt counted; only refusals without end make failures of them."""
    records, telemetry = told()
    windows = [True]

    async def handler(items: list[int]) -> list[Any]:
        if windows and windows.pop(0):
            if whole:
                raise RateLimited(retry_after=1.0)
            return [item if item == 0 else RateLimited(retry_after=1.0) for item in items]
        return items

    retry = Retry(on=OSError, holds=2)
    async with Batcher(handler, retry=retry, telemetry=telemetry) as batcher:
        await batcher.submit_many(range(3))
        windows += [True, True]
        await batcher.submit_many_report([5])
    counts = [ends(record) for record in records]
    assert counts[0] == ((0, 0, 0, 0, 3) if whole else (1, 0, 0, 0, 2))
    assert sum(one[0] for one in counts) == 3
    assert counts[-1] == (0, 1, 0, 0, 0)
    assert records[-1].errors == {"rate_limited": 1}
    assert all(record.errors == {} for record in records[:-1])


async def fails(items: list[int]) -> list[int]:
    raise ItemError("no", code="down")


async def hangs(items: list[int]) -> list[int]:
    await anyio.sleep_forever()
    return items


async def crashes(items: list[int]) -> list[int]:
    raise GeneratorExit


async def forgets(items: list[int]) -> list[int]:
    return items[1:]


async def yields(items: list[int]) -> AsyncIterator[tuple[int, int | Exception]]:
    yield 1, 1
    yield 0, ItemError("no", code="bad")


async def resolves(items: list[int]) -> list[int]:
    batch = current_batch()
    assert batch is not None
    batch.resolve(0, ItemError("no", code="bad"))
    return items


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("handler", "settings", "expected", "errors"),
    [
        (fails, {}, (0, 2, 0, 0, 0), {"down": 2}),
        (hangs, {"handler_timeout": 3.0}, (0, 2, 0, 0, 0), {"handler_timeout": 2}),
        (crashes, {}, (0, 2, 0, 0, 0), {"handler_crashed": 2}),
        (forgets, {}, (0, 2, 0, 0, 0), {"result_count_error": 2}),
        (yields, {}, (1, 1, 0, 0, 0), {"bad": 1}),
        (resolves, {}, (1, 1, 0, 0, 0), {"bad": 1}),
    ],
)
async def test_however_a_batch_ends_there_is_one_record(
    handler: Any, settings: Any, expected: Any, errors: dict[str, int]
) -> None:
    """A monitor that misses the bad ones is worse than none."""
    records, telemetry = told()
    async with Batcher(handler, telemetry=telemetry, **settings) as batcher:
        await outcomes(batcher.submit(1), batcher.submit(2))
    (record,) = records
    assert ends(record) == expected
    assert record.errors == errors


@pytest.mark.anyio
@pytest.mark.real_time
async def test_batches_of_plain_functions_are_told_of_in_the_loops_thread() -> None:
    """So what is told needs no lock."""
    records, telemetry = told()

    def handler(items: list[int]) -> list[Any]:
        return [ValueError(item) if item == 1 else item for item in items]

    async with Batcher(handler, telemetry=telemetry) as batcher:
        await outcomes(*map(batcher.submit, range(3)))
    assert [ends(record) for record in records] == [(2, 1, 0, 0, 0)]


@pytest.mark.anyio
async def test_a_batch_that_a_close_ends_has_a_record() -> None:
    """There and then, with what its callers got."""
    records, telemetry = told()
    gate = Gate()
    batcher = Batcher(gate, telemetry=telemetry)
    pending = [batcher.submit_nowait(item) for item in range(3)]
    await turns()
    await batcher.aclose(0)
    assert [type(await outcome(one)) for one in pending] == [BatcherClosed] * 3
    (record,) = records
    assert ends(record) == (0, 3, 0, 0, 0)
    assert record.errors == {"batcher_closed": 3}


@pytest.mark.anyio
async def test_a_caller_who_has_gone_changes_no_record() -> None:
    """The item was handled; the handler does not know who waits for it."""
    records, telemetry = told()
    gate = Gate()
    async with Batcher(gate, telemetry=telemetry) as batcher:
        pending = [batcher.submit_nowait(item) for item in range(3)]
        await turns()
        pending[0].cancel()
        gate.opened.set()
    assert [ends(record) for record in records] == [(3, 0, 0, 0, 0)]


FATES = {
    "value": lambda: 1,
    "error": ValueError,
    "code": lambda: ItemError("no", code="bad"),
    "skipped": lambda: Skipped("seen"),
    "retried": OSError,
}


@given(
    st.sampled_from(BACKENDS),
    st.lists(st.sampled_from(sorted(FATES)), min_size=1, max_size=30),
    st.integers(1, 7),
    st.booleans(),
)
def test_the_records_of_all_batches_add_up_to_the_report(
    backend: str, fates: list[str], size: int, early: bool
) -> None:
    """Whatever became of the items, however they were batched."""
    records, telemetry = told()

    async def handler(items: list[str]) -> list[Any]:
        results = [FATES[item]() for item in items]
        if early:
            current_batch().resolve(0, results[0])  # type: ignore[union-attr]
        return results

    async def main() -> None:
        async with Batcher(
            handler,
            max_batch_size=size,
            retry=Retry(on=OSError, attempts=2),
            telemetry=telemetry,
        ) as batcher:
            report = await batcher.submit_many_report(fates)
        total = [sum(column) for column in zip(*map(ends, records), strict=True)]
        assert total[:3] == [report.succeeded, report.failed, report.skipped]
        assert total[3] == fates.count("retried")
        errors: dict[str, int] = {}
        for record in records:
            for code, count in record.errors.items():
                errors[code] = errors.get(code, 0) + count
        assert errors == report.errors

    run(backend, main)


async def coroutine_function(record: BatchRecord) -> None:
    """Nobody would await it."""


async def async_generator(record: BatchRecord) -> AsyncIterator[int]:
    yield 1


def generator(record: BatchRecord) -> Any:
    yield 1


class Called:
    async def __call__(self, record: BatchRecord) -> None:
        """Nobody would await it."""


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (1, "on_batch must be a function or None, got 1"),
        (coroutine_function, "on_batch must be a plain function, got a coroutine function, coroutine_function: it is called in the event loop, and nobody would await it"),
        (partial(coroutine_function), "on_batch must be a plain function, got a coroutine function, coroutine_function: "),
        (Called(), "on_batch must be a plain function, got a coroutine function, Called: "),
        (async_generator, "on_batch must be a plain function, got a generator function, async_generator: "),
        (generator, "on_batch must be a plain function, got a generator function, generator: "),
    ],
)  # fmt: skip
def test_what_cannot_be_told_is_refused_by_name(wrong: Any, message: str) -> None:
    """In the constructor, not with the first batch."""
    with pytest.raises(TypeError) as caught:
        Telemetry(on_batch=wrong)
    assert str(caught.value).startswith(message)


tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody")


@pytest.mark.anyio
async def test_it_runs_in_a_copy_of_the_context_that_batches_run_in() -> None:
    """Never in a submitter's, nor in that of whoever closes; what it sets is gone with the batch."""
    seen: list[str] = []

    def on_batch(record: BatchRecord) -> None:
        seen.append(tenant.get())
        tenant.set("changed")

    async def caller(item: int) -> None:
        tenant.set(f"tenant {item}")
        await outcome(batcher.submit(item))

    tenant.set("service")
    batcher = Batcher(Gate(), max_batch_size=1, telemetry=Telemetry(on_batch=on_batch))
    async with anyio.create_task_group() as tasks, batcher:
        tenant.set("changed since")
        tasks.start_soon(caller, 1)
        await turns()
        await batcher.aclose(0)
    assert seen == ["service"]
    bare = Batcher(Recorder(), telemetry=Telemetry(on_batch=on_batch))
    await bare.submit(1)
    await bare.aclose()
    assert seen == ["service", "nobody"]


@pytest.mark.anyio
@pytest.mark.parametrize("failing", [False, True])
async def test_it_may_submit_to_its_own_batcher(failing: bool) -> None:
    """As a handler may: what is submitted there is the next batch."""

    def on_batch(record: BatchRecord) -> None:
        if record.size > 1:
            batcher.submit_nowait(100)

    handler = Recorder(fails={1} if failing else ())
    async with Batcher(handler, telemetry=Telemetry(on_batch=on_batch)) as batcher:
        await batcher.submit_many_report(range(3))
    assert handler.batches == [[0, 1, 2], [100]]


@pytest.mark.anyio
async def test_methods_and_functions_with_batched_have_it_too() -> None:
    """One telemetry setting for both."""
    records, telemetry = told()

    @batched(telemetry=telemetry)
    async def load(ids: list[int]) -> list[int]:
        return ids

    assert await load(1) == 1
    await load.aclose()
    assert [(record.name, record.size) for record in records] == [(load.batcher.name, 1)]
