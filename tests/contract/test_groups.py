"""Task groups inside handlers and transactions: what they wrap is found, and goes where it belongs."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
import trio
from opentelemetry.sdk.trace import SpanProcessor
from support import Recorder, leaves, outcome, outcomes, run, stop_the_clock, turns
from telemetry_support import Sdk

from microbatch import BatchAborted, Batcher, HandlerCrashed, current_batch
from microbatch.layers import atomic, per_item

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.timeout(180)


class Nested:
    """A handler that waits inside a task group, and may make something else of its cancellation."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.calls = 0

    async def __call__(self, items: list[int]) -> None:
        self.calls += 1
        try:
            if self.kind == "nursery":
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(trio.sleep_forever)
                    await self._wait()
            elif self.kind == "asyncio":
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(asyncio.sleep(3600))
                    await self._wait()
            else:
                async with anyio.create_task_group() as group:
                    group.start_soon(anyio.sleep_forever)
                    await self._wait()
        except BaseException as error:
            if self.kind == "own error":
                raise LookupError("could not roll back") from error
            raise

    async def _wait(self) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            if self.kind == "mixed":
                raise ValueError


@pytest.mark.asyncio_logs
@pytest.mark.parametrize("kind", ["native", "anyio", "mixed", "own error"])
def test_no_batch_begins_while_the_run_is_being_cancelled(backend_name: str, kind: str) -> None:
    """A group is no cancellation to look at, so the next batches began in a loop that was ending."""
    if kind == "native":
        kind = "nursery" if backend_name == "trio" else "asyncio"
    handler = Nested(kind)

    async def main() -> None:
        batcher = Batcher(handler, max_batch_size=1)
        for item in range(5):
            pending.append(batcher.submit_nowait(item))
        await turns()
        stop_the_clock()  # else it jumps over the pause that follows a cancellation

    pending: list[Any] = []
    run(backend_name, main)
    assert handler.calls == 1


async def raises(error: type[BaseException]) -> None:
    raise error


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("way", ["task group", "nested", "generator", "per_item"])
@pytest.mark.asyncio_logs
def test_what_must_end_the_program_does_so_from_inside_a_group(
    backend_name: str, kind: Any, way: str
) -> None:
    """A task of the handler's that called sys.exit() ended its batch alone, and the program went on."""
    ended: list[Any] = []

    async def handler(items: list[int]) -> None:
        async with anyio.create_task_group() as tasks:
            if way == "nested":
                async with anyio.create_task_group() as inner:
                    inner.start_soon(raises, kind)
            tasks.start_soon(raises, kind)

    async def generator(items: list[int]) -> Any:
        await handler(items)
        yield 0, 0

    async def one(item: int) -> None:
        await handler([item])

    made: Any = {"generator": generator, "per_item": per_item(one)}.get(way, handler)

    async def main() -> None:
        async with Batcher[int, None](made) as batcher:
            ended.append(await outcome(batcher.submit(1)))
            await anyio.sleep(1)
            ended.append("survived")

    with pytest.raises(BaseException) as caught:
        run(backend_name, main)
    assert kind in {type(leaf) for leaf in leaves(caught.value)}
    if ended:
        assert type(ended[0]) is HandlerCrashed
    # trio lets nothing but Ctrl-C out of a task that is nobody's child: SystemExit waits for the close.
    assert "survived" not in ended or (backend_name, kind) == ("trio", SystemExit)


@pytest.mark.anyio
async def test_a_group_of_an_items_own_cancellations_fails_that_item_alone() -> None:
    """A function of one item may cancel what it has started, and fail by it."""
    cancelled = anyio.get_cancelled_exc_class()

    async def one(item: int) -> int:
        if item == 1:
            # trio's cannot be made by hand, but kept from an earlier time.
            with anyio.CancelScope() as scope:
                scope.cancel()
                try:
                    await anyio.lowlevel.checkpoint()
                except cancelled as error:
                    kept = error
            raise BaseExceptionGroup("own", [kept])
        return item

    good, bad, mate = await per_item(one)([0, 1, 2])
    assert (good, mate) == (0, 2)
    assert type(bad) is HandlerCrashed


# --- transactions with a task group -----------------------------------------------------------------------------


class Log:
    """A transaction around which a task group stands, as drivers that keep a connection alive have."""

    def __init__(self, kind: str = "anyio", depth: int = 1) -> None:
        self.kind = kind
        self.depth = depth
        self.ended: list[str] = []

    @contextlib.asynccontextmanager
    async def __call__(self) -> AsyncIterator[None]:
        try:
            async with contextlib.AsyncExitStack() as stack:
                for _ in range(self.depth):
                    await stack.enter_async_context(anyio.create_task_group())
                yield
        except BaseException as error:
            self.ended.append(type(error).__name__)
            raise
        self.ended.append("commit")


@pytest.mark.anyio
@pytest.mark.parametrize("depth", [0, 1, 3])
async def test_a_transaction_with_a_task_group_leaves_the_outcomes_as_they_are(depth: int) -> None:
    """The group wrapped BatchAborted, so every caller got a group and nobody the item's own error."""
    transaction = Log(depth=depth)
    layered = atomic(Recorder(fails=(1,)), transaction=transaction)
    async with Batcher(layered) as batcher:
        first, bad, last = await outcomes(*[batcher.submit_nowait(item) for item in range(3)])
        assert [type(first), type(bad), type(last)] == [BatchAborted, ValueError, BatchAborted]
        assert first.index == 1
        assert await batcher.submit(5) == 50
    assert transaction.ended == ["ExceptionGroup" if depth else "BatchAborted", "commit"]


@pytest.mark.anyio
async def test_a_handlers_error_comes_out_of_such_a_transaction_as_it_is() -> None:
    """Its very type is promised, with its cause and its frames."""

    async def handler(items: list[int]) -> None:
        raise LookupError("no table") from OSError("disk")

    async with Batcher(atomic(handler, transaction=Log(depth=2))) as batcher:
        error = await outcome(batcher.submit(1))
    assert type(error) is LookupError
    assert repr(error.__cause__) == "OSError('disk')"
    frames = []
    trace = error.__traceback__
    while trace is not None:
        frames.append(trace.tb_frame.f_code.co_name)
        trace = trace.tb_next
    assert frames[-1] == "handler"


@pytest.mark.anyio
async def test_what_else_the_transactions_group_raises_is_raised() -> None:
    """A connection that was lost beside an aborted item is news for everybody."""

    @contextlib.asynccontextmanager
    async def transaction() -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            try:
                yield
            finally:
                tasks.start_soon(raises, ConnectionError)

    for handler in (Recorder(fails=(1,)), Recorder()):
        async with Batcher(atomic(handler, transaction=transaction)) as batcher:
            error = await outcome(batcher.submit(1))
        assert type(error) is ExceptionGroup
        assert ConnectionError in {type(leaf) for leaf in leaves(error)}


# --- resolve() from threads --------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.real_time
@pytest.mark.parametrize("layer", [lambda handler: handler, atomic], ids=["bare", "atomic"])
async def test_a_second_resolve_from_the_handlers_thread_is_refused_at_once(layer: Any) -> None:
    """Until the loop had a turn nobody knew of the first one: the second was silent."""
    messages: list[str] = []

    def handler(items: list[int]) -> list[int]:
        batch = current_batch()
        assert batch is not None
        for result in ("first", None):
            try:
                batch.resolve(0, result)
            except RuntimeError as error:
                messages.append(str(error))
        return items

    async with Batcher[int, Any](layer(handler)) as batcher:
        assert await outcomes(*[batcher.submit_nowait(item) for item in (1, 2)]) == ["first", 2]
    (message,) = messages
    assert message.endswith("item 0 of the batch has its outcome already")


@pytest.mark.anyio
@pytest.mark.real_time
async def test_of_many_threads_that_resolve_an_item_one_succeeds() -> None:
    """The handler may share its work out; each of its threads learns whether its result counted."""
    won: list[int] = []
    lost: list[int] = []
    barrier = threading.Barrier(8)

    async def handler(items: list[int]) -> list[int]:
        batch = current_batch()
        assert batch is not None

        def work(number: int) -> None:
            barrier.wait(60)
            try:
                batch.resolve(0, number)
                won.append(number)
            except RuntimeError:
                lost.append(number)

        async with anyio.create_task_group() as tasks:
            for number in range(8):
                tasks.start_soon(anyio.to_thread.run_sync, work, number)
        ended.set()
        return [99]

    async with Batcher(handler) as batcher:
        for _ in range(20):
            won.clear()
            lost.clear()
            ended = anyio.Event()
            result = await batcher.submit(1)
            await ended.wait()
            assert [result] == won
            assert len(lost) == 7


@pytest.mark.anyio
@pytest.mark.real_time
@pytest.mark.parametrize("end", ["return", "raise", "same index"])
async def test_what_a_thread_resolved_counts_though_the_handler_ends_before_the_loops_turn(
    end: str,
) -> None:
    """resolve() has returned, so the outcome is out: what the handler says afterwards comes too late."""
    refused: list[str] = []

    async def handler(items: list[int]) -> list[Any]:
        batch = current_batch()
        assert batch is not None
        # Blocks the loop until the thread is done, so that it cannot have had a turn.
        thread = threading.Thread(target=batch.resolve, args=(0, "early"))
        thread.start()
        thread.join(60)
        if end == "same index":
            with contextlib.suppress(RuntimeError):
                batch.resolve(0, "late")
                refused.append("nothing")
        if end == "raise":
            raise LookupError
        return ["late", "late"]

    async with Batcher(handler) as batcher:
        first, second = await outcomes(*[batcher.submit_nowait(item) for item in (1, 2)])
        await turns()
    assert first == "early"
    assert second == "late" or type(second) is LookupError
    assert refused == []


@pytest.mark.anyio
@pytest.mark.real_time
async def test_a_generator_may_not_yield_what_a_thread_has_resolved() -> None:
    """It came twice, whichever the loop hears of first; nobody gets both."""

    async def handler(items: list[int]) -> Any:
        batch = current_batch()
        assert batch is not None
        thread = threading.Thread(target=batch.resolve, args=(0, "thread"))
        thread.start()
        thread.join(60)
        yield 0, "generator"
        yield 1, "one"

    async with Batcher[int, Any](handler) as batcher:
        first, second = await outcomes(*[batcher.submit_nowait(item) for item in (1, 2)])
        await turns()
    assert first == "thread"
    assert "index 0 came twice" in str(second)


@pytest.mark.anyio
@pytest.mark.real_time
async def test_what_a_thread_resolved_counts_though_the_generator_is_stopped_and_closes_slowly() -> (
    None
):
    """The promise is kept when the others fail, and not again when the loop hears of it."""

    async def handler(items: list[int]) -> Any:
        batch = current_batch()
        assert batch is not None
        try:
            thread = threading.Thread(target=batch.resolve, args=(0, "thread"))
            thread.start()
            thread.join(60)
            yield 9, "out of range"
        finally:
            await turns()

    async with Batcher[int, Any](handler) as batcher:
        first, second = await outcomes(*[batcher.submit_nowait(item) for item in (1, 2)])
        await turns()
        assert batcher.stats().items == 2
    assert first == "thread"
    assert "index 9 is out of range" in str(second)


class Resolving(SpanProcessor):
    """Lets a thread resolve an item in the middle of the delivery of the others' results."""

    def __init__(self) -> None:
        self.resolve: Any = None
        self.refused: list[str] = []

    def on_end(self, span: Any) -> None:
        resolve, self.resolve = self.resolve, None
        if resolve is not None:

            def work() -> None:
                try:
                    resolve(1, "thread")
                except RuntimeError as error:
                    self.refused.append(str(error))

            thread = threading.Thread(target=work)
            thread.start()
            thread.join(60)


@pytest.mark.anyio
@pytest.mark.real_time
async def test_a_thread_that_resolves_while_results_go_out_is_refused() -> None:
    """It must not believe that its result counts."""
    sdk = Sdk()
    processor = Resolving()
    sdk.tracer_provider.add_span_processor(processor)

    async def handler(items: list[int]) -> list[int]:
        batch = current_batch()
        assert batch is not None
        processor.resolve = batch.resolve
        return items

    async with Batcher(handler, telemetry=sdk.telemetry(trace_items=True)) as batcher:
        assert await outcomes(*[batcher.submit_nowait(item) for item in (1, 2)]) == [1, 2]
    (message,) = processor.refused
    assert message.endswith("item 1 of the batch has its outcome already")
