"""Layers under a Batcher: who goes on when, what the handler knows of its batch, and decorators from elsewhere."""

from __future__ import annotations

import contextlib
import math
import sqlite3
from typing import TYPE_CHECKING, Any

import anyio
import circuitbreaker
import pytest
import stamina
from support import outcome, outcomes

from microbatch import (
    Backoff,
    BatchAborted,
    Batcher,
    ItemError,
    Retry,
    Skipped,
    WouldDeadlock,
    current_batch,
)
from microbatch.layers import (
    atomic,
    bisecting,
    by_key,
    per_item,
    rate_limited,
    routed,
    validated,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.anyio


async def timed(batcher: Any, items: list[Any]) -> list[tuple[float, Any]]:
    """Submit each item by a caller of its own; return when it went on and with what."""
    began = anyio.current_time()
    times: list[Any] = [None] * len(items)
    pending = [batcher.submit_nowait(item) for item in items]  # trio starts tasks in any order

    async def call(index: int) -> None:
        result = await outcome(pending[index])
        times[index] = (round(anyio.current_time() - began, 6), result)

    async with anyio.create_task_group() as tasks:
        for index in range(len(items)):
            tasks.start_soon(call, index)
    return times


def kinds(results: list[Any]) -> list[Any]:
    return [type(r).__name__ if isinstance(r, Exception) else r for r in results]


# --- early outcomes ---------------------------------------------------------------------------------------------


async def test_callers_of_a_part_go_on_before_the_next_part_is_done() -> None:
    """Each call takes a second: the poison is out after four, each part a call after the one before it."""

    async def handler(items: list[int]) -> list[int]:
        await anyio.sleep(1)
        if 0 in items:
            raise ValueError(0)
        return items

    async with Batcher(bisecting(handler), max_batch_size=8) as batcher:
        times = await timed(batcher, list(range(8)))
    assert [at for at, _ in times] == [4, 5, 6, 6, 7, 7, 7, 7]
    assert kinds([result for _, result in times]) == ["ValueError", *range(1, 8)]
    assert batcher.stats().batches == 1
    assert batcher.stats().failed == 1


async def test_one_poison_item_of_64_costs_63_callers_nothing() -> None:
    """And the handler 13 calls at most."""
    calls = 0

    async def handler(items: list[int]) -> list[int]:
        nonlocal calls
        calls += 1
        if 17 in items:
            raise ValueError(17)
        return items

    async with Batcher(bisecting(handler), max_batch_size=64) as batcher:
        report = await batcher.submit_many_report(range(64))
    assert (report.succeeded, report.failed) == (63, 1)
    assert calls <= 2 * math.log2(64) + 1


async def test_each_item_of_per_item_goes_on_as_soon_as_it_is_done() -> None:
    """A slow one holds nobody up."""

    async def fetch(seconds: int) -> int:
        batch = current_batch()
        assert batch is not None
        assert batch.size == 1
        await anyio.sleep(seconds)
        return seconds

    async with Batcher(per_item(fetch)) as batcher:
        assert await timed(batcher, [3, 1, 2]) == [(3, 3), (1, 1), (2, 2)]


async def test_bad_items_hear_at_once_while_the_good_ones_run() -> None:
    """Validation takes no time; the handler does."""

    async def handler(items: list[int]) -> list[int]:
        await anyio.sleep(5)
        return items

    def check(item: int) -> None:
        if item < 0:
            raise ItemError("negative")

    async with Batcher(validated(handler, check)) as batcher:
        times = await timed(batcher, [1, -1, 2])
    assert [at for at, _ in times] == [5, 0, 5]


async def test_a_bad_item_keeps_its_own_error_when_the_handler_raises() -> None:
    """It was told before the handler was called."""

    async def handler(items: list[int]) -> list[int]:
        raise ConnectionAbortedError

    def check(item: int) -> None:
        if item < 0:
            raise ItemError("negative", code="negative")

    async with Batcher(validated(handler, check)) as batcher:
        report = await batcher.submit_many_report([1, -1])
    assert [o.code for o in report] == ["internal_error", "negative"]


async def test_each_kind_of_routed_goes_on_when_its_handler_is_done() -> None:
    """Creates after one second, deletes after two more; what is of no kind at once."""

    def taking(seconds: int) -> Any:
        async def handler(items: list[str]) -> list[str]:
            await anyio.sleep(seconds)
            return items

        return handler

    route = routed({"create": taking(1), "delete": taking(2)}, by=str)
    async with Batcher(route) as batcher:
        times = await timed(batcher, ["delete", "create", "drop"])
    assert [at for at, _ in times] == [3, 1, 0]


async def test_nobodys_outcome_is_out_before_an_atomic_batch_is_decided() -> None:
    """per_item inside would let the first go with a success that is then undone."""

    async def write(item: int) -> int:
        await anyio.sleep(item)
        if item == 3:
            raise ValueError(3)
        return item

    async with Batcher(atomic(per_item(write))) as batcher:
        times = await timed(batcher, [1, 2, 3])
        assert [at for at, _ in times] == [3, 3, 3]
        assert kinds([result for _, result in times]) == [
            "BatchAborted",
            "BatchAborted",
            "ValueError",
        ]
        assert await timed(batcher, [1, 2]) == [(2, 1), (2, 2)]


async def test_what_a_handler_resolves_inside_atomic_counts_at_the_end() -> None:
    """In the place of what it returns; twice is its mistake, after the end nobody listens."""
    seen: list[Any] = []
    late: list[Any] = []

    async def handler(items: list[int]) -> list[int]:
        batch = current_batch()
        assert batch is not None
        late.append(batch)
        seen.append((batch.size, batch.reason, batch.attempts, batch.partition))
        batch.resolve(0, "early")
        with pytest.raises(RuntimeError, match="item 0 of the batch has its outcome already"):
            batch.resolve(0, "again")
        return [0, 0]

    settings: Any = {"max_batch_size": 2, "partition": lambda item: "p"}
    async with Batcher(atomic(handler), **settings) as batcher:
        assert await batcher.submit_many([1, 2]) == ["early", 0]
    assert seen == [(2, "size", (1, 1), "p")]
    with pytest.raises(RuntimeError):
        late[0].resolve(1, "late")


async def test_atomic_of_a_part_knows_its_part() -> None:
    """Inside routed the view is narrowed already; the indices stay right."""
    seen: list[Any] = []

    async def handler(items: list[str]) -> list[Any]:
        batch = current_batch()
        assert batch is not None
        seen.append((items, batch.size, batch.attempts))
        batch.resolve(1, Skipped("second"))
        return list(items)

    route = routed({"a": atomic(handler), "b": atomic(handler)}, by=lambda item: item[0])
    async with Batcher(route, retry=Retry(on=ValueError)) as batcher:
        report = await batcher.submit_many_report(["a1", "b1", "a2", "b2"])
    assert [o.value or o.code for o in report] == ["a1", "b1", "skipped", "skipped"]
    assert seen == [(["a1", "a2"], 2, (1, 1)), (["b1", "b2"], 2, (1, 1))]


async def test_waiting_on_the_own_batcher_is_refused_inside_atomic_too() -> None:
    """The batch within the batch does not hide whose it is."""

    async def handler(items: list[int]) -> list[Any]:
        return [await outcome(batcher.submit(9)) for _ in items]

    async with Batcher(atomic(handler)) as batcher:
        with pytest.raises(WouldDeadlock):
            await batcher.submit(1)


# --- views of the batch -----------------------------------------------------------------------------------------


async def test_each_layer_narrows_what_the_handler_sees_of_its_batch() -> None:
    """Validated, routed, halved: the handler sees its own part, and resolves by its own indices."""
    sizes: list[int] = []

    async def handler(items: list[int]) -> list[Any]:
        batch = current_batch()
        assert batch is not None
        assert batch.size == len(items) == len(batch.attempts)
        sizes.append(batch.size)
        if 6 in items and len(items) > 1:
            raise ValueError
        if items[0] == 2:
            batch.resolve(0, "two, early")
        return [item * 10 for item in items]

    def check(item: int) -> None:
        if item == 4:
            raise ItemError("four")

    layered = validated(
        routed({0: bisecting(handler), 1: handler}, by=lambda item: item % 2), check
    )
    async with Batcher(layered) as batcher:
        report = await batcher.submit_many_report([1, 2, 3, 4, 6, 8])
    assert [o.value for o in report] == [10, "two, early", 30, None, 60, 80]
    assert sizes == [3, 1, 2, 1, 1, 2]


async def test_by_key_serves_single_reads_from_one_bulk_read() -> None:
    """Three callers, one of whom asks for what is not there."""
    reads: list[list[int]] = []

    async def find(ids: list[int]) -> dict[int, str]:
        reads.append(ids)
        return {1: "one", 2: "two"}

    async with Batcher(by_key(find)) as batcher:
        results = await outcomes(batcher.submit(2), batcher.submit(1), batcher.submit(3))
    assert kinds(results) == ["two", "one", "ItemNotFound"]
    assert len(reads) == 1


async def test_a_batcher_keeps_to_the_rate_however_many_callers_there_are() -> None:
    """1000 items in batches of 100, one call every half second: the last starts after 4.5 s."""
    starts: list[float] = []

    async def handler(items: list[int]) -> None:
        starts.append(anyio.current_time())

    began = anyio.current_time()
    async with Batcher(rate_limited(handler, 2), max_batch_size=100, max_concurrency=4) as batcher:
        await batcher.submit_many(range(1000))
    assert [start - began for start in starts] == pytest.approx([n / 2 for n in range(10)])


async def test_only_failed_items_go_again_through_the_layers() -> None:
    """Retry is the batcher's, around them all; the rate holds for second attempts too."""
    calls: list[tuple[float, list[int]]] = []

    async def handler(items: list[int]) -> list[Any]:
        batch = current_batch()
        assert batch is not None
        calls.append((anyio.current_time() - began, items))
        return [
            ItemError("busy", retryable=True) if i == 2 and batch.attempts[n] == 1 else i
            for n, i in enumerate(items)
        ]

    began = anyio.current_time()
    retry = Retry(on=ConnectionError, backoff=Backoff(initial=0.25, jitter=0))
    async with Batcher(rate_limited(handler, 1), retry=retry) as batcher:
        assert await batcher.submit_many([1, 2, 3]) == [1, 2, 3]
    assert calls == [(0, [1, 2, 3]), (pytest.approx(1), [2])]


# --- a database -------------------------------------------------------------------------------------------------


class Shop:
    """Orders that take from a stock, in SQLite: atomic or with a savepoint for each."""

    def __init__(self) -> None:
        self.db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        self.db.execute("CREATE TABLE stock (sku TEXT PRIMARY KEY, left INTEGER CHECK (left >= 0))")
        self.db.execute("INSERT INTO stock VALUES ('tea', 5), ('ink', 1)")

    @contextlib.asynccontextmanager
    async def transaction(self) -> Any:
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self.db.execute("ROLLBACK")
            raise
        self.db.execute("COMMIT")

    async def order(self, skus: list[str]) -> list[Any]:
        results: list[Any] = []
        for sku in skus:
            self.db.execute("SAVEPOINT item")
            try:
                self.db.execute("UPDATE stock SET left = left - 1 WHERE sku = ?", (sku,))
            except sqlite3.IntegrityError:
                self.db.execute("ROLLBACK TO item")
                results.append(ItemError(f"no {sku} left", code="sold_out"))
            else:
                results.append(sku)
            self.db.execute("RELEASE item")
        return results

    def stock(self) -> dict[str, int]:
        return dict(self.db.execute("SELECT sku, left FROM stock"))


@pytest.fixture
def shop() -> Iterator[Shop]:
    shop = Shop()
    yield shop
    shop.db.close()


async def test_a_failed_atomic_batch_leaves_the_table_unchanged(shop: Shop) -> None:
    """All or nothing: the second ink fails the order of tea too."""
    async with Batcher(atomic(shop.order, transaction=shop.transaction)) as batcher:
        report = await batcher.submit_many_report(["tea", "ink", "ink"])
        assert report.errors == {"batch_aborted": 2, "sold_out": 1}
        assert isinstance(report[0].error, BatchAborted)
        assert report[0].error.index == 2
        assert shop.stock() == {"tea": 5, "ink": 1}
        await batcher.submit_many(["tea", "ink"])
    assert shop.stock() == {"tea": 4, "ink": 0}


async def test_with_a_savepoint_for_each_item_one_transaction_gives_single_results(
    shop: Shop,
) -> None:
    """The second ink fails; tea before and after it is committed. The stock is never negative."""

    async def order(skus: list[str]) -> list[Any]:
        async with shop.transaction():
            return await shop.order(skus)

    async with Batcher(order) as batcher:
        report = await batcher.submit_many_report(["tea", "ink", "ink", "tea"])
    assert [o.ok for o in report] == [True, True, False, True]
    assert shop.stock() == {"tea": 3, "ink": 0}


# --- decorators from elsewhere ----------------------------------------------------------------------------------


class Backend:
    """Fails as long as it is down."""

    def __init__(self) -> None:
        self.calls = 0
        self.down = True

    async def __call__(self, items: list[int]) -> list[int]:
        self.calls += 1
        if self.down:
            raise ConnectionRefusedError
        return items


async def test_a_circuit_breaker_fits_around_a_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Open: callers fail at once, without a call. Half open: one batch goes through and closes it."""
    now = 0.0
    monkeypatch.setattr(circuitbreaker, "monotonic", lambda: now)
    backend = Backend()

    @circuitbreaker.circuit(failure_threshold=3, recovery_timeout=30)
    async def handler(items: list[int]) -> list[int]:
        return await backend(items)

    async with Batcher(handler, max_batch_size=10) as batcher:
        for _ in range(3):
            report = await batcher.submit_many_report(range(10))
            assert {type(o.error) for o in report} == {ConnectionRefusedError}
        assert backend.calls == 3

        report = await batcher.submit_many_report(range(10))
        assert {type(o.error) for o in report} == {circuitbreaker.CircuitBreakerError}
        assert backend.calls == 3

        now = 31.0
        assert (await batcher.submit_many_report(range(10))).failed == 10
        assert backend.calls == 4
        assert (await batcher.submit_many_report(range(10))).failed == 10
        assert backend.calls == 4

        now, backend.down = 62.0, False
        assert await batcher.submit_many(range(20)) == list(range(20))
        assert backend.calls == 6


async def test_a_breaker_inside_bisecting_counts_parts_and_outside_counts_batches() -> None:
    """So it belongs outside: a poison item must not open it."""
    backend = Backend()
    backend.down = False

    async def poisoned(items: list[int]) -> list[int]:
        if 3 in items:
            raise ValueError(3)
        return await backend(items)

    breaker = circuitbreaker.CircuitBreaker(failure_threshold=2, name="outside")
    async with Batcher(breaker(bisecting(poisoned, isolate_on=ValueError))) as batcher:
        assert (await batcher.submit_many_report(range(8))).failed == 1
        assert breaker.closed
        assert breaker.failure_count == 0


async def test_a_retry_library_fits_around_a_handler() -> None:
    """It repeats the whole call, inside the batch's slot; microbatch's own Retry repeats single items."""
    backend = Backend()

    @stamina.retry(on=ConnectionError, attempts=3, wait_initial=1, wait_jitter=0)
    async def handler(items: list[int]) -> list[int]:
        backend.down = backend.calls < 2
        return await backend(items)

    began = anyio.current_time()
    async with Batcher(handler) as batcher:
        assert await batcher.submit_many([1, 2, 3]) == [1, 2, 3]
    assert backend.calls == 3
    assert anyio.current_time() - began == pytest.approx(1 + 2)


async def test_a_retry_library_goes_between_layers() -> None:
    """A layered handler is only an async function: rate-limited attempts, and what fails alone at last."""
    backend = Backend()
    tried = stamina.retry(on=ConnectionError, attempts=2, wait_initial=0.1, wait_jitter=0)
    layered = bisecting(tried(rate_limited(backend, 1)), isolate_on=ValueError)
    async with Batcher(layered) as batcher:
        report = await batcher.submit_many_report([1, 2])
    assert {type(o.error) for o in report} == {ConnectionRefusedError}
    assert backend.calls == 2
