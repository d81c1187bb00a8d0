"""Misuse: each error says the name, the rule and what came."""

from __future__ import annotations

import functools
import re
from decimal import Decimal
from fractions import Fraction
from typing import Any

import anyio
import numpy as np
import pytest
from support import Gate, Recorder, turns

from microbatch import AdaptiveSize, Backoff, Batcher, ResultCountError, Retry, batched

pytestmark = pytest.mark.timeout(180)


async def echo(items: list[Any]) -> list[Any]:
    return items


NOT_A_NUMBER = float("nan")
INFINITE = float("inf")

REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"max_batch_size": 0}, ValueError, "max_batch_size must be at least 1, got 0"),
    ({"max_batch_size": -5}, ValueError, "max_batch_size must be at least 1, got -5"),
    ({"max_batch_size": 2.5}, TypeError, "max_batch_size must be an int, got 2.5"),
    ({"max_batch_size": "100"}, TypeError, "max_batch_size must be an int, got '100'"),
    ({"max_batch_size": None}, TypeError, "max_batch_size must be an int, got None"),
    ({"max_batch_size": True}, TypeError, "max_batch_size must be an int, got True"),
    ({"max_wait": -0.1}, ValueError, "max_wait must be at least 0, got -0.1"),
    ({"max_wait": NOT_A_NUMBER}, ValueError, "max_wait must be finite, got nan"),
    ({"max_wait": INFINITE}, ValueError, "max_wait must be finite, got inf"),
    ({"max_wait": 10**400}, ValueError, "max_wait must be within a float's range, got an int of 1329 bits"),
    ({"max_wait": "1"}, TypeError, "max_wait must be a number, got '1'"),
    ({"max_wait": None}, TypeError, "max_wait must be a number, got None"),
    ({"max_wait": True}, TypeError, "max_wait must be a number, got True"),
    ({"max_concurrency": 0}, ValueError, "max_concurrency must be at least 1, got 0"),
    ({"max_concurrency": None}, TypeError, "max_concurrency must be an int, got None"),
    ({"max_concurrency": 1.0}, TypeError, "max_concurrency must be an int, got 1.0"),
    ({"max_pending": 0}, ValueError, "max_pending must be at least 1, got 0"),
    ({"max_pending": 1e4}, TypeError, "max_pending must be an int, got 10000.0"),
    ({"on_full": "drop"}, ValueError, "on_full must be 'wait' or 'reject', got 'drop'"),
    ({"on_full": None}, ValueError, "on_full must be 'wait' or 'reject', got None"),
    ({"weigh": 5}, TypeError, "weigh must be a function or None, got 5"),
    ({"weigh": len}, ValueError, "weigh needs max_batch_weight or max_pending_weight, got weigh=<built-in"),
    ({"max_batch_weight": 5}, ValueError, "max_batch_weight needs weigh"),
    ({"max_pending_weight": 5}, ValueError, "max_pending_weight needs weigh"),
    ({"weigh": len, "max_batch_weight": 0}, ValueError, "max_batch_weight must be greater than 0, got 0"),
    ({"weigh": len, "max_batch_weight": "5"}, TypeError, "max_batch_weight must be a number, got '5'"),
    ({"weigh": len, "max_pending_weight": -1}, ValueError, "max_pending_weight must be greater than 0, got -1"),
    ({"weigh": len, "max_pending_weight": NOT_A_NUMBER}, ValueError, "max_pending_weight must be finite, got nan"),
    ({"partition": "key"}, TypeError, "partition must be a function or None, got 'key'"),
    ({"partition_concurrency": 1}, ValueError, "partition_concurrency needs partition"),
    ({"partition": len, "partition_concurrency": 0}, ValueError, "partition_concurrency must be at least 1, got 0"),
    ({"partition": len, "partition_concurrency": "1"}, TypeError, "partition_concurrency must be an int, got '1'"),
    ({"coalesce": 1}, TypeError, "coalesce must be a function or None, got 1"),
    ({"retry": 3}, TypeError, "retry must be a Retry or None, got 3"),
    ({"retry": Retry}, TypeError, "retry must be a Retry or None, got "),
    ({"handler_timeout": 0}, ValueError, "handler_timeout must be greater than 0, got 0"),
    ({"handler_timeout": -1.0}, ValueError, "handler_timeout must be greater than 0, got -1.0"),
    ({"handler_timeout": NOT_A_NUMBER}, ValueError, "handler_timeout must be finite, got nan"),
    ({"handler_timeout": "30s"}, TypeError, "handler_timeout must be a number, got '30s'"),
    ({"drain_timeout": -1}, ValueError, "drain_timeout must be at least 0, got -1"),
    ({"drain_timeout": "1"}, TypeError, "drain_timeout must be a number, got '1'"),
    ({"cancel_abandoned": "yes"}, TypeError, "cancel_abandoned must be True or False, got 'yes'"),
    ({"capture_context": 1}, TypeError, "capture_context must be True or False, got 1"),
    ({"name": 5}, TypeError, "name must be a str or None, got 5"),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "error", "text"), REFUSED, ids=lambda value: str(value)[:60])
def test_a_bad_setting_is_refused_by_name_with_its_rule_and_what_came(
    settings: dict[str, Any], error: type[Exception], text: str
) -> None:
    """In the constructor, where the mistake stands, not in the first batch at night."""
    with pytest.raises(error, match="^" + re.escape(text)):
        Batcher(echo, **settings)


@pytest.mark.parametrize(("settings", "error", "text"), REFUSED, ids=lambda value: str(value)[:60])
def test_the_decorator_refuses_the_same(
    settings: dict[str, Any], error: type[Exception], text: str
) -> None:
    """It takes the same settings, so it has the same rules, and as early."""
    with pytest.raises(error, match="^" + re.escape(text)):
        batched(**settings)(echo)


@pytest.mark.parametrize("handler", [None, 5, "handler", [echo]], ids=["None", "5", "str", "list"])
def test_a_handler_that_cannot_be_called_is_refused(handler: Any) -> None:
    """`Batcher(handler())` is a common slip, too: it hands over a coroutine."""
    with pytest.raises(
        TypeError, match=r"^handler must be a function.*, got " + re.escape(repr(handler))
    ):
        Batcher(handler)


def test_a_coroutine_in_place_of_its_function_is_refused() -> None:
    """`Batcher(handler([]))`."""
    coroutine = echo([])
    with pytest.raises(TypeError, match="handler must be"):
        Batcher(coroutine)  # type: ignore[call-overload]
    coroutine.close()


def test_settings_are_keyword_only() -> None:
    """Batcher(handler, 100) would read as anything."""
    with pytest.raises(TypeError, match="positional"):
        Batcher(echo, 100)  # type: ignore[call-overload]


def test_an_unknown_setting_is_refused() -> None:
    """A typing error must not be a silent default."""
    with pytest.raises(TypeError, match="max_batchsize"):
        Batcher(echo, max_batchsize=100)  # type: ignore[call-overload]


@pytest.mark.parametrize("settings", [
    {"max_batch_size": 1}, {"max_batch_size": AdaptiveSize(1, 10)}, {"max_wait": 0}, {"max_wait": 5},
    {"max_pending": None}, {"max_pending": 1}, {"on_full": "reject"}, {"weigh": len, "max_batch_weight": 1}, {"handler_timeout": None},
    {"drain_timeout": 0}, {"partition": len, "partition_concurrency": None}, {"name": "x"},
], ids=" ".join)  # fmt: skip
def test_the_edges_of_the_ranges_are_accepted(settings: dict[str, Any]) -> None:
    """A rule that refuses too much is as wrong."""
    Batcher(echo, **settings)


@pytest.mark.parametrize(("make", "error", "text"), [
    (lambda: Backoff(initial=-1), ValueError, "initial must be at least 0, got -1"),
    (lambda: Backoff(factor=0.5), ValueError, "factor must be at least 1, got 0.5"),
    (lambda: Backoff(maximum=INFINITE), ValueError, "maximum must be finite, got inf"),
    (lambda: Backoff(jitter=1.5), ValueError, "jitter must be at most 1, got 1.5"),
    (lambda: Retry(on=ValueError, attempts=0), ValueError, "attempts must be at least 1, got 0"),
    (lambda: Retry(on=ValueError, attempts=2.0), TypeError, "attempts must be an int, got 2.0"),  # type: ignore[arg-type]
    (lambda: Retry(on=ValueError, backoff=1.0), TypeError, "backoff must be a Backoff, got 1.0"),  # type: ignore[arg-type]
    (lambda: Retry(on=()), ValueError, "on must name at least one exception class, got ()"),
    (lambda: Retry(on="ValueError"), TypeError, "on must be an exception class"),  # type: ignore[arg-type]
    (lambda: Retry(on=(ValueError, 3)), TypeError, "on must name subclasses of Exception, got 3"),  # type: ignore[arg-type]
    (lambda: Retry(on=KeyboardInterrupt), TypeError, "on must name subclasses of Exception, got <class"),  # type: ignore[arg-type]
    (lambda: AdaptiveSize(0, 5), ValueError, "minimum must be at least 1, got 0"),
    (lambda: AdaptiveSize(6, 5), ValueError, "maximum must be at least minimum=6, got 5"),
    (lambda: AdaptiveSize(1, 5, target=0), ValueError, "target must be greater than 0, got 0"),
    (lambda: AdaptiveSize(1, "5"), TypeError, "maximum must be an int, got '5'"),  # type: ignore[arg-type]
], ids=lambda value: value if isinstance(value, str) else "")  # fmt: skip
def test_parts_refuse_bad_settings_alike(make: Any, error: type[Exception], text: str) -> None:
    """The same form for all: name, rule, value."""
    with pytest.raises(error, match="^" + re.escape(text)):
        make()


def test_retry_needs_to_be_told_what_is_retryable() -> None:
    """No default fits: drivers' transient errors share no base class."""
    with pytest.raises(TypeError, match="'on'"):
        Retry()  # type: ignore[call-arg]


# --- calls ------------------------------------------------------------------------------------------------------


WAYS = ["submit", "submit_nowait", "submit_many", "submit_many_report"]


@pytest.mark.anyio
@pytest.mark.parametrize("buffered", [0, 1])
@pytest.mark.parametrize(
    "priority", ["1", [5], True, False, None, NOT_A_NUMBER, Decimal(0), 1j, "0"], ids=repr
)
@pytest.mark.parametrize("call", WAYS)
async def test_a_priority_that_is_no_number_is_refused(
    call: str, priority: Any, buffered: int
) -> None:
    """Mixed types would fail later, in somebody else's comparison; and each way refuses the same."""
    handler = Recorder()
    async with Batcher(handler, max_wait=1.0) as batcher:
        for item in range(buffered):  # the next one may be appended unasked
            batcher.submit_nowait(item).done()
        with pytest.raises(
            TypeError, match="^" + re.escape(f"priority must be a number, got {priority!r}")
        ):
            result = getattr(batcher, call)([1] if "many" in call else 1, priority=priority)
            if call != "submit_nowait":
                await result
        assert batcher.stats().pending == buffered
    assert handler.sizes == [1] * buffered


@pytest.mark.anyio
@pytest.mark.parametrize("call", WAYS)
async def test_a_priority_of_any_kind_of_number_is_accepted(call: str) -> None:
    """However large, and on each way: they are all compared as plain numbers."""
    handler = Gate()
    kinds = [float("-inf"), -0.5, 0.0, np.int64(1), Fraction(3, 2), 2, np.float32(2.5), 10**400]
    async with Batcher(handler, max_batch_size=1) as batcher, anyio.create_task_group() as tasks:
        pendings = [batcher.submit_nowait(-1)]
        await turns()
        for item, priority in enumerate(kinds):
            entered = functools.partial(getattr(batcher, call), priority=priority)
            if call == "submit_nowait":
                pendings.append(entered(item))
            else:
                tasks.start_soon(entered, [item] if "many" in call else item)
            await turns(2)
        handler.opened.set()
        for pending in pendings:
            assert await pending <= 70
    assert handler.batches == [[item] for item in [-1, *reversed(range(len(kinds)))]]


@pytest.mark.anyio
async def test_submit_many_refuses_what_cannot_be_iterated() -> None:
    """At the call, by name."""
    async with Batcher(echo) as batcher:
        with pytest.raises(TypeError, match="not iterable"):
            await batcher.submit_many(5)  # type: ignore[arg-type]


@pytest.mark.anyio
@pytest.mark.parametrize("call", ["submit_many", "submit_many_report"])
async def test_submit_many_reads_its_iterable_at_once(call: str) -> None:
    """Before anything is waited for: what comes later to the list, or reads the same file, is not in it."""
    async with Batcher(Recorder(), max_pending=2) as batcher:
        items = [1, 2, 3]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(getattr(batcher, call), items)
            while not batcher.stats().pending:
                await anyio.lowlevel.checkpoint()
            items.clear()
    assert batcher.stats().items == 3


@pytest.mark.anyio
async def test_an_iterator_that_raises_ends_submit_many_with_its_error() -> None:
    """What it had submitted is withdrawn: the caller has no place to get results for it."""

    def rows() -> Any:
        yield 1
        yield 2
        raise LookupError("line 3")

    handler = Recorder()
    async with Batcher(handler, max_wait=1.0) as batcher:
        with pytest.raises(LookupError, match="line 3"):
            await batcher.submit_many(rows())
        assert batcher.stats().pending == 0
    assert handler.batches == []


@pytest.mark.anyio
@pytest.mark.parametrize(("value", "error", "text"), [
    (-1, ValueError, "drain_timeout must be at least 0, got -1"),
    (NOT_A_NUMBER, ValueError, "drain_timeout must be finite, got nan"),
    ("1", TypeError, "drain_timeout must be a number, got '1'"),
], ids=repr)  # fmt: skip
async def test_a_bad_drain_timeout_does_not_close(value: Any, error: Any, text: str) -> None:
    """A refused call has no effect."""
    async with Batcher(echo) as batcher:
        with pytest.raises(error, match="^" + re.escape(text)):
            await batcher.aclose(drain_timeout=value)
        assert await batcher.submit(1) == 1


def test_submitting_without_a_loop_is_refused() -> None:
    """submit_nowait outside of any event loop has nobody to run the handler."""
    batcher = Batcher(echo, name="nowhere")
    with pytest.raises(RuntimeError, match=r"loop"):
        batcher.submit_nowait(1)
    assert batcher.stats().pending == 0


@pytest.mark.anyio
@pytest.mark.parametrize("timeout", [-1, "1", NOT_A_NUMBER], ids=repr)
@pytest.mark.real_time
async def test_submit_from_thread_checks_its_timeout(timeout: Any) -> None:
    """By name, before anything is submitted."""
    async with Batcher(echo) as batcher:
        await batcher.submit(1)
        with pytest.raises((TypeError, ValueError), match=r"^timeout must be"):
            await anyio.to_thread.run_sync(batcher.submit_from_thread, 1, timeout)
        assert batcher.stats().pending == 0


@pytest.mark.anyio
async def test_the_wrong_length_says_what_was_expected_and_what_came() -> None:
    """The most common mistake in a handler."""

    async def drops_one(items: list[int]) -> list[int]:
        return items[1:]

    async with Batcher(drops_one) as batcher:
        with pytest.raises(ResultCountError, match=r"one result for each of its 1 items, got 0"):
            await batcher.submit(1)
