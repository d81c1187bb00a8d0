"""Code of users that runs inside of a submit, and calls the batcher itself: every item still ends exactly once."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from opentelemetry.sdk.trace import SpanProcessor
from support import BACKENDS, Gate, counted, outcome, turns
from telemetry_support import Sdk

from microbatch import Batcher, BatcherClosed, BatcherFull

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]

CALLBACKS: list[Callable[[Any], dict[str, Any]]] = [
    lambda called: {"weigh": lambda item: called(item, 1), "max_batch_weight": 100},
    lambda called: {"partition": lambda item: called(item, None)},
    lambda called: {"coalesce": lambda item: called(item, item)},
    lambda called: {"partition": lambda item: Key(lambda: called(item, None), 7)},
    lambda called: {"coalesce": lambda item: Key(lambda: called(item, None), item)},
]
every_callback = pytest.mark.parametrize(
    "callback", CALLBACKS, ids=["weigh", "partition", "coalesce", "partition_eq", "coalesce_eq"]
)


class Key:
    """A key that calls a function whenever it is compared with one of the same hash."""

    def __init__(self, called: Callable[[], object], value: object) -> None:
        self.called = called
        self.value = value

    def __hash__(self) -> int:
        return 1

    def __eq__(self, other: object) -> bool:
        self.called()
        return isinstance(other, Key) and self.value == other.value


class Once:
    """What a callback does besides its work: an action, the first time that it is asked about item 2."""

    def __init__(self) -> None:
        self.action: Callable[[], object] = lambda: None
        self.done = False

    def __call__(self, item: Any, result: Any) -> Any:
        if item == 2 and not self.done:
            self.done = True
            self.action()
        return result


async def entered(batcher: Batcher[Any, Any], way: str, *items: Any) -> list[Any]:
    """Hand in items and return their results or exceptions, whichever way."""

    async def enter(item: Any) -> Any:
        return await getattr(batcher, way)(item)

    if "many" not in way:
        return [await outcome(enter(item)) for item in items]
    try:
        report = await batcher.submit_many_report(items)
    except BatcherClosed as error:
        return [error] * len(items)
    return [one.value if one.ok else one.error for one in report]


#: Who steps a coroutine by hand can close in the midst of a call; under trio nobody can.
ACTIONS = [
    (backend, action)
    for backend in BACKENDS
    for action in ["submit", "cancel", "close", "flush"]
    if backend != "trio" or action in ("submit", "cancel")
]


@every_callback
@pytest.mark.parametrize(("backend_name", "action"), ACTIONS)
@pytest.mark.parametrize("way", ["submit", "submit_nowait", "submit_many_report"])
@pytest.mark.parametrize("room", [2, 3, 100])
async def test_a_callback_may_call_the_batcher(
    room: int, way: str, action: str, callback: Any
) -> None:
    """Every item ends once, with its own result or with an error, and nothing is left over."""
    once, handler = Once(), Gate()
    batcher: Batcher[Any, Any] = Batcher(
        handler, max_batch_size=1, max_pending=room, name="b", **callback(once)
    )
    first = batcher.submit_nowait(0)
    await turns()
    second = batcher.submit_nowait(1)
    inner: list[Any] = []

    def act() -> None:
        if action == "submit":
            inner.append(batcher.submit_nowait(9))
        elif action == "cancel":
            second.cancel()
        else:  # what would wait begins to
            call: Any = batcher.flush() if action == "flush" else batcher.aclose(0)
            with contextlib.suppress(StopIteration):
                call.send(None)
            call.close()

    once.action = act
    results: list[Any] = []

    async def enter() -> None:
        results.extend(await entered(batcher, way, 2, 3))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(enter)
        await turns()
        assert once.done or way != "submit_many_report"
        assert counted(batcher).pending <= room
        handler.opened.set()
    await batcher.aclose()
    ends = {0: await outcome(first), 2: results[0], 3: results[1]}
    if inner:
        ends[9] = await outcome(inner[0])
    if action == "close":
        assert isinstance(await outcome(second), BatcherClosed)
    for item, end in ends.items():
        assert handler.seen[item] <= 1
        if isinstance(end, Exception):
            assert isinstance(end, BatcherFull | BatcherClosed)
        else:
            assert (end, handler.seen[item]) == (item * 10, 1)
    assert handler.seen[1] == (action != "close" and (action != "cancel" or not once.done))
    assert counted(batcher).pending == counted(batcher).waiting == 0


@pytest.mark.parametrize("way", ["submit", "submit_nowait", "submit_many_report"])
@pytest.mark.parametrize("room", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("max_wait", [0.0, 1.0])
async def test_a_span_processor_may_submit(max_wait: float, room: int, way: str) -> None:
    """Telemetry that is sent through the batcher it tells of: the buffer is filled while a waiter is made."""
    sdk, handler = Sdk(), Gate()
    inner: list[Any] = []
    telemetry = sdk.telemetry(trace_items=True)
    batcher: Batcher[Any, Any] = Batcher(
        handler, max_wait=max_wait, max_pending=room, name="b", telemetry=telemetry
    )
    entering = False
    begun = 1

    class Exports(SpanProcessor):
        def on_start(self, span: Any, parent_context: Any = None) -> None:
            nonlocal entering, begun
            begun += span.name == "submit b"
            if not entering:
                entering = True
                with contextlib.suppress(BatcherFull):
                    inner.append(batcher.submit_nowait(9))
                entering = False

    results: list[Any] = []
    async with anyio.create_task_group() as tasks:
        results += [batcher.submit_nowait(0)]
        await turns()
        sdk.tracer_provider.add_span_processor(Exports())

        async def enter() -> None:
            results.extend(await entered(batcher, way, 1, 2, 3))

        tasks.start_soon(enter)
        await turns()
        assert counted(batcher).pending <= room
        handler.opened.set()
    await batcher.aclose()
    assert await results.pop(0) == 0
    for item, end in enumerate(results, 1):
        assert end == item * 10 or isinstance(end, BatcherFull)
    assert [await pending for pending in inner] == [90] * len(inner)
    assert max(handler.seen[item] for item in range(4)) == 1
    assert (counted(batcher).pending, len(sdk.spans("submit b"))) == (0, begun)


@pytest.mark.parametrize("backend_name", ["asyncio"])
async def test_a_callback_may_close_and_raise() -> None:
    """Its item has ended by the closing already, so what it raises is nobody's."""
    handler = Gate()

    def weigh(item: int) -> int:
        if item == 2:
            closing: Any = batcher.aclose(0)
            with contextlib.suppress(StopIteration):
                closing.send(None)
            raise LookupError(item)
        return 1

    batcher: Batcher[Any, Any] = Batcher(handler, weigh=weigh, max_batch_weight=10, name="b")
    report = await batcher.submit_many_report([1, 2, 3])
    assert [type(one.error) for one in report] == [BatcherClosed] * 3
    assert (handler.batches, counted(batcher).waiting) == ([], 0)


async def test_a_span_processor_may_cancel_who_waits_for_room() -> None:
    """On closing, the end of the first caller's span makes the second one leave: nobody leaves twice."""
    sdk, handler = Sdk(), Gate()
    telemetry = sdk.telemetry(trace_items=True)
    batcher: Batcher[Any, Any] = Batcher(handler, max_pending=1, name="b", telemetry=telemetry)
    scopes = [anyio.CancelScope() for _ in range(2)]
    ended: list[Any] = []

    class Cancels(SpanProcessor):
        def on_end(self, span: Any) -> None:
            for scope in scopes:
                scope.cancel()

    async def call(scope: anyio.CancelScope) -> None:
        with scope:
            ended.append(await outcome(batcher.submit(1)))
        ended.append(scope.cancelled_caught)

    async with anyio.create_task_group() as tasks:
        first = batcher.submit_nowait(0)
        for scope in scopes:
            tasks.start_soon(call, scope)
        await turns()
        assert counted(batcher).waiting == 2
        sdk.tracer_provider.add_span_processor(Cancels())
        await batcher.aclose(0)
    assert isinstance(await outcome(first), BatcherClosed)
    assert True in ended
    assert counted(batcher).waiting == 0


@pytest.mark.parametrize("way", ["submit_nowait", "submit_many_report"])
@pytest.mark.parametrize("backend_name", ["asyncio"])
async def test_a_span_processor_may_close(way: str) -> None:
    """The call that it was told of is refused, and its span ends."""
    sdk, handler = Sdk(), Gate()
    batcher: Batcher[Any, Any] = Batcher(handler, telemetry=sdk.telemetry(trace_items=True))
    begun: list[Any] = []

    class Closes(SpanProcessor):
        def on_start(self, span: Any, parent_context: Any = None) -> None:
            begun.append(span)
            closing: Any = batcher.aclose(0)
            with contextlib.suppress(StopIteration):
                closing.send(None)

    sdk.tracer_provider.add_span_processor(Closes())
    assert [type(end) for end in await entered(batcher, way, 1)] == [BatcherClosed]
    assert (handler.batches, counted(batcher).pending) == ([], 0)
    assert len(begun) == len(sdk.spans(f"submit {batcher.name}")) == 1
