"""Telemetry: spans with links, figures, gauges; with the SDK's in-memory exporter and reader, no globals."""

from __future__ import annotations

import gc
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.trace import SpanProcessor, sampling
from opentelemetry.trace import NoOpTracerProvider, SpanKind, StatusCode, get_current_span
from support import Gate, Recorder, outcome, outcomes, turns
from telemetry_support import Sdk, observer_in, plain

from microbatch import (
    Backoff,
    Batcher,
    BatcherClosed,
    BatcherFull,
    ItemError,
    Retry,
    Skipped,
    Telemetry,
    __version__,
    current_batch,
)
from microbatch._core.engine import Engine
from microbatch._core.rules import Rules
from microbatch._telemetry import names
from microbatch._telemetry.kinds import FULL
from microbatch._telemetry.observer import observer_of

pytestmark = pytest.mark.anyio

SCHEMA = "https://opentelemetry.io/schemas/1.44.0"


async def echo(items: list[Any]) -> list[Any]:
    return items


async def under(sdk: Sdk, name: str, submit: Any, *items: Any) -> Any:
    """Submit inside a span of the caller's own."""
    with sdk.tracer.start_as_current_span(name):
        return await submit(*items)


# Spans


async def test_a_batch_is_a_root_span_linked_to_every_submitter() -> None:
    """With five parents none is the right one: links are what batches have in the conventions."""
    sdk = Sdk()
    async with Batcher(echo, name="orders", telemetry=sdk.telemetry()) as batcher:
        await outcomes(*[under(sdk, f"request {i}", batcher.submit, i) for i in range(5)])
    (span,) = sdk.spans("process orders")
    requests = {s.context.span_id for s in sdk.all_spans() if s.name.startswith("request")}
    assert span.parent is None
    assert {link.context.span_id for link in span.links} == requests
    assert len(span.links) == 5
    assert span.kind is SpanKind.INTERNAL
    assert plain(span.attributes) == {
        "microbatch.batcher.name": "orders",
        "microbatch.batch.size": 5,
        "microbatch.flush.reason": "idle",
        "microbatch.attempt": 1,
        "microbatch.batch.failed_items": 0,
        "microbatch.batch.wait": 0.0,
    }
    assert span.status.status_code is StatusCode.UNSET
    scope = span.instrumentation_scope
    assert (scope.name, scope.version, scope.schema_url) == ("microbatch", __version__, SCHEMA)


async def test_the_span_that_triggers_a_flush_does_not_become_the_parent() -> None:
    """A task started by the last caller would inherit its context: one caller as everybody's parent."""
    sdk = Sdk()
    async with Batcher(echo, max_batch_size=2, telemetry=sdk.telemetry()) as batcher:
        first = batcher.submit_nowait(1)
        await under(sdk, "the trigger", batcher.submit, 2)
        await first
        with sdk.tracer.start_as_current_span("flushes"):
            third = batcher.submit_nowait(3)
            await batcher.flush()
        await third
    one, two = sdk.spans("process echo")
    assert (one.parent, two.parent) == (None, None)
    (trigger,), (flushes,) = sdk.spans("the trigger"), sdk.spans("flushes")
    assert [link.context.span_id for link in one.links] == [trigger.context.span_id]
    assert [link.context.span_id for link in two.links] == [flushes.context.span_id]
    assert one.context.trace_id != trigger.context.trace_id


async def test_the_span_in_which_it_was_opened_does_not_become_the_parent() -> None:
    """Batches run in copies of that context; a start-up span would hold all traces of the program."""
    sdk = Sdk()
    with sdk.tracer.start_as_current_span("start-up"):
        async with Batcher(echo, telemetry=sdk.telemetry()) as batcher:
            await batcher.submit(1)
    (span,) = sdk.spans("process echo")
    assert span.parent is None


async def test_no_more_than_128_submitters_are_linked_and_the_rest_are_counted() -> None:
    """The SDK would keep the last 128 and say nothing of the others."""
    sdk = Sdk()
    async with Batcher(echo, max_batch_size=300, telemetry=sdk.telemetry()) as batcher:
        await outcomes(*[under(sdk, str(i), batcher.submit, i) for i in range(300)])
    (span,) = sdk.spans("process echo")
    assert len(span.links) == 128
    assert span.attributes["microbatch.links.dropped"] == 172
    assert span.dropped_links == 0


async def test_callers_of_one_span_are_one_link() -> None:
    """A request that submits a hundred items is one submitter."""
    sdk = Sdk()
    async with Batcher(echo, telemetry=sdk.telemetry()) as batcher:
        with sdk.tracer.start_as_current_span("request"):
            await outcomes(*[batcher.submit(i) for i in range(100)])
            await batcher.submit_many(range(200))
    spans = sdk.spans("process echo")
    assert [len(span.links) for span in spans] == [1, 1, 1]


@pytest.mark.real_time
async def test_the_handlers_own_spans_stand_inside_the_batchs() -> None:
    """So a query shows in the batch that made it, threads included."""
    sdk = Sdk()

    async def handler(items: list[int]) -> list[int]:
        with sdk.tracer.start_as_current_span("query"):
            await anyio.lowlevel.checkpoint()
        await anyio.to_thread.run_sync(lambda: sdk.tracer.start_span("in a thread").end())
        return items

    async with Batcher(handler, name="b", telemetry=sdk.telemetry()) as batcher:
        await under(sdk, "request", batcher.submit, 1)
    (batch,) = sdk.spans("process b")
    for name in ("query", "in a thread"):
        (inner,) = sdk.spans(name)
        assert inner.parent.span_id == batch.context.span_id


async def test_outside_the_handler_no_context_is_changed() -> None:
    """What is attached belongs to the batch's own context alone."""
    sdk = Sdk()
    async with Batcher(echo, telemetry=sdk.telemetry()) as batcher:
        with sdk.tracer.start_as_current_span("request") as request:
            await batcher.submit(1)
            assert get_current_span() is request
        await batcher.submit(2)
        assert not get_current_span().get_span_context().is_valid
    first, second = sdk.spans("process echo")
    assert first.context.trace_id != second.context.trace_id
    assert second.links == ()


async def test_a_failed_call_is_an_error_of_the_same_type_on_span_and_duration() -> None:
    """A dashboard joins the two by it."""
    sdk = Sdk()

    async def handler(items: list[int]) -> list[int]:
        raise KeyError("secret")

    async with Batcher(handler, telemetry=sdk.telemetry()) as batcher:
        await outcomes(batcher.submit(1), batcher.submit(2))
    (span,) = [s for s in sdk.all_spans() if s.name.startswith("process")]
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes["error.type"] == "KeyError"
    assert span.attributes["microbatch.batch.failed_items"] == 2
    (point,) = sdk.points("microbatch.batch.duration")
    assert point.attributes["error.type"] == "KeyError"
    assert sdk.counts("microbatch.items") == {"KeyError": 2}
    assert "secret" not in span.to_json()


async def test_a_partial_failure_is_no_failure_of_the_call() -> None:
    """The call did its work; the counter says what became of the items."""
    sdk = Sdk()
    async with Batcher(Recorder(fails={2}), telemetry=sdk.telemetry()) as batcher:
        await outcomes(*[batcher.submit(i) for i in range(4)])
    (span,) = [s for s in sdk.all_spans() if s.name.startswith("process")]
    assert span.status.status_code is StatusCode.UNSET
    assert "error.type" not in span.attributes
    assert span.attributes["microbatch.batch.failed_items"] == 1
    (point,) = sdk.points("microbatch.batch.duration")
    assert "error.type" not in point.attributes
    assert sdk.counts("microbatch.items") == {None: 3, "ValueError": 1}


async def test_a_generator_that_raises_fails_the_call_as_a_whole() -> None:
    """Its callers are failed before it is closed, on a way of their own."""
    sdk = Sdk()

    async def handler(items: list[int]) -> Any:
        yield 0, "ok"
        raise OSError("gone")

    async with Batcher(handler, telemetry=sdk.telemetry()) as batcher:
        await outcomes(batcher.submit(1), batcher.submit(2), batcher.submit(3))
    (span,) = [s for s in sdk.all_spans() if s.name.startswith("process")]
    assert span.attributes["error.type"] == "OSError"
    assert sdk.counts("microbatch.items") == {None: 1, "OSError": 2}


async def test_a_timeout_is_named_so_and_ends_the_span_on_time() -> None:
    """Though the handler goes on: that's what the callers saw."""
    sdk = Sdk()
    async with Batcher(Gate(), handler_timeout=2.0, telemetry=sdk.telemetry()) as batcher:
        assert isinstance(await outcome(batcher.submit(1)), TimeoutError)
    (span,) = [s for s in sdk.all_spans() if s.name.startswith("process")]
    assert span.attributes["error.type"] == "timeout"
    assert span.status.status_code is StatusCode.ERROR
    (point,) = sdk.points("microbatch.batch.duration")
    assert point.sum == pytest.approx(2.0)


async def test_a_handler_that_crashes_is_told_as_its_callers_see_it() -> None:
    """What is raised in them is HandlerCrashed."""
    sdk = Sdk()

    async def handler(items: list[int]) -> list[int]:
        raise GeneratorExit

    async with Batcher(handler, telemetry=sdk.telemetry()) as batcher:
        await outcome(batcher.submit(1))
    (span,) = [s for s in sdk.all_spans() if s.name.startswith("process")]
    assert span.attributes["error.type"] == "microbatch.errors.HandlerCrashed"


async def test_each_retry_is_a_span_with_its_attempt() -> None:
    """Retried items are counted apart: they have no outcome yet."""
    sdk = Sdk()
    retry = Retry(on=ValueError, attempts=3, backoff=Backoff(initial=1.0, jitter=0.0))
    async with Batcher(Recorder(fails={1}), retry=retry, telemetry=sdk.telemetry()) as batcher:
        with sdk.tracer.start_as_current_span("request") as request:
            await outcomes(batcher.submit(1), batcher.submit(2))
    spans = [s for s in sdk.all_spans() if s.name.startswith("process")]
    assert [s.attributes["microbatch.attempt"] for s in spans] == [1, 2, 3]
    assert [s.attributes["microbatch.batch.failed_items"] for s in spans] == [0, 0, 1]
    assert {s.links[0].context.span_id for s in spans} == {request.get_span_context().span_id}
    assert sdk.counts("microbatch.retries") == {"ValueError": 2}
    assert sdk.counts("microbatch.items") == {None: 1, "ValueError": 1}


async def test_a_withdrawn_items_caller_is_not_linked() -> None:
    """Its item was in no batch."""
    sdk = Sdk()
    handler = Gate()
    async with Batcher(handler, telemetry=sdk.telemetry()) as batcher:
        first = batcher.submit_nowait(0)
        await turns()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(under, sdk, "stays", batcher.submit, 1)
            tasks.start_soon(under, sdk, "goes", partial(_left, batcher), 2)
            await turns()
            handler.opened.set()
        await first
    (_, second) = [s for s in sdk.all_spans() if s.name.startswith("process")]
    (stays,) = sdk.spans("stays")
    assert [link.context.span_id for link in second.links] == [stays.context.span_id]


async def _left(batcher: Batcher[Any, Any], item: Any) -> None:
    with anyio.move_on_after(0):
        await batcher.submit(item)


@pytest.mark.parametrize(
    "settings",
    [
        {"partition": lambda _: 0},
        {"coalesce": lambda _: 0},
        {"weigh": lambda _: 1, "max_batch_weight": 100},
    ],
)
async def test_links_are_there_whatever_is_kept_of_each_item(settings: dict[str, Any]) -> None:
    """Partitions, coalesced callers and weights go another way through the buffer."""
    sdk = Sdk()
    async with Batcher(echo, telemetry=sdk.telemetry(), **settings) as batcher:
        await outcomes(*[under(sdk, f"request {i}", batcher.submit, i) for i in range(3)])
        await under(sdk, "many", batcher.submit_many, [1, 2, 3])
    first, second = sdk.spans("process echo")
    assert len(first.links) == 3
    assert len(second.links) == 1


async def test_parent_auto_makes_a_batch_of_one_submitter_its_child() -> None:
    """The single-message rule of the conventions, for those who ask for it."""
    sdk = Sdk()
    async with Batcher(echo, telemetry=sdk.telemetry(parent="auto")) as batcher:
        with sdk.tracer.start_as_current_span("request") as request:
            await outcomes(batcher.submit(1), batcher.submit(2))
        await outcomes(*[under(sdk, f"r{i}", batcher.submit, i) for i in range(2)])
        await batcher.submit(1)
    alone, several, nobody = sdk.spans("process echo")
    assert alone.parent.span_id == request.get_span_context().span_id
    assert alone.links == ()
    assert several.parent is None
    assert len(several.links) == 2
    assert nobody.parent is None


async def test_link_back_shows_the_way_to_the_batch() -> None:
    """From a slow request to the batch that it waited for."""
    sdk = Sdk()
    async with Batcher(echo, telemetry=sdk.telemetry(link_back=True)) as batcher:
        with sdk.tracer.start_as_current_span("left") as left:
            pending = batcher.submit_nowait(0)
        await under(sdk, "waits", batcher.submit, 1)
        await pending
    (batch,), (waits,) = sdk.spans("process echo"), sdk.spans("waits")
    assert [link.context.span_id for link in waits.links] == [batch.context.span_id]
    assert left.links == ()  # it had ended already
    assert len(batch.links) == 2


@pytest.mark.real_time
async def test_submit_from_thread_is_linked_to_the_threads_span() -> None:
    """Its context is the thread's, not that of the loop's callback."""
    sdk = Sdk()
    async with Batcher(echo, telemetry=sdk.telemetry()) as batcher:
        await batcher.submit(0)

        def work() -> Any:
            with sdk.tracer.start_as_current_span("thread"):
                return batcher.submit_from_thread(1)

        assert await anyio.to_thread.run_sync(work) == 1
    (thread,) = sdk.spans("thread")
    span = sdk.spans("process echo")[1]
    assert [link.context.span_id for link in span.links] == [thread.context.span_id]


async def test_nothing_is_recorded_of_an_unsampled_batch_and_results_are_intact() -> None:
    """And the handler's own spans follow the decision."""
    sdk = Sdk(sampler=sampling.ALWAYS_OFF)
    seen = []

    async def handler(items: list[int]) -> list[int]:
        seen.append(get_current_span().is_recording())
        return items

    async with Batcher(handler, telemetry=sdk.telemetry(link_back=True)) as batcher:
        assert await under(sdk, "request", batcher.submit_many, [1, 2]) == [1, 2]
    assert sdk.all_spans() == []
    assert seen == [False]
    assert sdk.counts("microbatch.items") == {None: 2}


async def test_an_unsampled_parent_does_not_decide_for_the_batch() -> None:
    """A root is sampled by itself; the link says which trace asked."""
    sdk = Sdk()
    quiet = Sdk(sampler=sampling.ALWAYS_OFF)
    async with Batcher(echo, telemetry=sdk.telemetry()) as batcher:
        await under(quiet, "request", batcher.submit, 1)
    (span,) = sdk.spans("process echo")
    assert len(span.links) == 1
    assert not span.links[0].context.trace_flags.sampled


# Items


async def test_trace_items_makes_a_span_of_each_call_until_its_result() -> None:
    """Opt-in: a caller's own waiting time, seen from outside."""
    sdk = Sdk()
    handler = Recorder(fails={2})
    async with Batcher(handler, name="b", telemetry=sdk.telemetry(trace_items=True)) as batcher:
        with sdk.tracer.start_as_current_span("request") as request:
            await outcomes(batcher.submit(1), batcher.submit(2))
            await batcher.submit_many([3, 4])
    *two, many = sdk.spans("submit b")  # trio starts tasks in any order
    good, bad = sorted(two, key=lambda span: "error.type" in span.attributes)
    first, second = sdk.spans("process b")
    assert {s.parent.span_id for s in (good, bad, many)} == {request.get_span_context().span_id}
    assert {link.context.span_id for link in first.links} == {
        good.context.span_id,
        bad.context.span_id,
    }
    assert [link.context.span_id for link in second.links] == [many.context.span_id]
    assert bad.attributes["error.type"] == "ValueError"
    assert bad.status.status_code is StatusCode.ERROR
    assert good.status.status_code is StatusCode.UNSET
    assert good.kind is SpanKind.INTERNAL


async def test_a_cancelled_callers_span_ends_with_it() -> None:
    """No span may stay open because its item was withdrawn, or its caller left in flight."""
    sdk = Sdk()
    handler = Gate()
    telemetry_ = sdk.telemetry(trace_items=True, item_metrics=True)
    async with Batcher(handler, name="b", telemetry=telemetry_) as batcher:
        first = batcher.submit_nowait(1)
        await turns()
        second = batcher.submit_nowait(2)
        assert first.cancel()
        assert second.cancel()
        handler.opened.set()
    assert [s.attributes["error.type"] for s in sdk.spans("submit b")] == ["cancelled"] * 2
    (point,) = sdk.points("microbatch.item.duration")
    assert point.attributes["error.type"] == "cancelled"
    assert point.count == 2


@pytest.mark.parametrize("settings", [{}, {"partition": lambda _: 0}])
async def test_item_metrics_measure_from_submit_to_result(settings: dict[str, Any]) -> None:
    """Waiting, the handler, retries: what the caller felt."""
    sdk = Sdk()
    handler = Recorder(seconds=3.0)
    telemetry_ = sdk.telemetry(item_metrics=True)
    async with Batcher(handler, max_wait=1.0, telemetry=telemetry_, **settings) as batcher:
        await outcomes(batcher.submit(1), batcher.submit(2))
    (point,) = sdk.points("microbatch.item.duration")
    assert (point.count, point.sum) == (2, pytest.approx(8.0))
    assert sdk.spans("submit Recorder") == []


@pytest.mark.real_time
async def test_item_metrics_of_a_thread() -> None:
    """Its clock is the loop's all the same, and a skipped item is no failure."""
    sdk = Sdk()

    async def handler(items: list[Any]) -> list[Any]:
        return [Skipped("seen before") if item == 2 else item for item in items]

    async with Batcher(handler, telemetry=sdk.telemetry(item_metrics=True)) as batcher:
        await batcher.submit(0)
        await anyio.to_thread.run_sync(batcher.submit_from_thread, 1)
        await outcome(anyio.to_thread.run_sync(batcher.submit_from_thread, 2))
    (point,) = sdk.points("microbatch.item.duration")
    assert point.count == 3
    assert "error.type" not in point.attributes


# Figures


async def test_every_batch_is_one_record_and_every_item_one_count() -> None:
    """Never a record for an item: each costs as much as three items."""
    sdk = Sdk()

    async def handler(items: list[Any]) -> list[Any]:
        return [
            ValueError(i) if i % 10 == 0 else Skipped("odd") if i % 10 == 1 else i for i in items
        ]

    async with Batcher(handler, max_batch_size=20, telemetry=sdk.telemetry()) as batcher:
        await batcher.submit_many_report(range(100))
    assert sum(p.count for p in sdk.points("microbatch.batch.size")) == 5
    assert sum(p.sum for p in sdk.points("microbatch.batch.size")) == 100
    assert sum(p.count for p in sdk.points("microbatch.batch.wait.duration")) == 5
    (duration,) = sdk.points("microbatch.batch.duration")
    assert duration.count == 5
    items = {
        (p.attributes.get("error.type"), p.attributes.get("microbatch.skipped")): p.value
        for p in sdk.points("microbatch.items")
    }
    assert items == {(None, None): 80, ("ValueError", None): 10, (None, True): 10}


async def test_flushing_an_empty_batcher_leaves_no_trace() -> None:
    """Flush after every request, and most of them find nothing: no call, no span, no figure."""
    sdk, handler = Sdk(), Recorder()
    async with Batcher(handler, telemetry=sdk.telemetry(trace_items=True)) as batcher:
        await batcher.flush()
        await batcher.submit(1)
        await batcher.flush()
    assert handler.batches == [[1]]
    assert sorted(span.name for span in sdk.all_spans()) == [
        f"process {batcher.name}",
        f"submit {batcher.name}",
    ]
    assert [point.count for point in sdk.points("microbatch.batch.size")] == [1]


async def test_the_oldest_items_wait_is_recorded_by_the_loops_clock() -> None:
    """Once a batch, for the size or the wait that made it leave."""
    sdk = Sdk()
    async with Batcher(echo, max_batch_size=3, max_wait=2.0, telemetry=sdk.telemetry()) as batcher:

        async def later(seconds: float) -> None:
            await anyio.sleep(seconds)
            await batcher.submit(seconds)

        await outcomes(later(0.0), later(0.5), later(1.0), later(5.0))
    waits = {
        p.attributes["microbatch.flush.reason"]: p.sum
        for p in sdk.points("microbatch.batch.wait.duration")
    }
    assert waits == {"size": pytest.approx(1.0), "wait": pytest.approx(2.0)}
    assert [s.attributes["microbatch.batch.wait"] for s in sdk.spans("process echo")] == [
        pytest.approx(1.0),
        pytest.approx(2.0),
    ]


@pytest.mark.parametrize("settings", [{}, {"partition": lambda _: 0}])
async def test_without_max_wait_items_wait_for_a_slot_and_that_is_seen(settings: Any) -> None:
    """The wait tells a slow handler from a quiet hour."""
    sdk = Sdk()
    handler = Recorder(seconds=4.0)
    async with Batcher(handler, telemetry=sdk.telemetry(), **settings) as batcher:

        async def later() -> None:
            await anyio.sleep(1.0)
            await batcher.submit(2)

        await outcomes(batcher.submit(1), later())
    first, second = (s.attributes["microbatch.batch.wait"] for s in sdk.all_spans())
    assert (first, second) == (0.0, pytest.approx(3.0))


async def test_a_thousand_keys_are_one_set_of_attributes() -> None:
    """Items, keys, partitions never become attributes: each would be a series for ever."""
    sdk = Sdk()
    async with Batcher(
        echo,
        max_batch_size=1,
        max_concurrency=8,
        partition=lambda item: item,
        coalesce=lambda item: item,
        telemetry=sdk.telemetry(),
    ) as batcher:
        await batcher.submit_many([f"secret {i}" for i in range(1000)])
        metrics = sdk.metrics()
    for name, metric in metrics.items():
        assert len(metric.data.data_points) == 1, name
    assert len(sdk.all_spans()) == 1000
    assert not any("secret" in f"{s.name} {plain(s.attributes)}" for s in sdk.all_spans())


async def test_error_types_are_bounded() -> None:
    """Classes made at run time, codes made of data: what is not listed is `_OTHER`."""
    sdk = Sdk()
    listed = sdk.telemetry(error_codes=["duplicate"])

    class OddError(Exception):
        pass

    async def handler(items: list[Any]) -> list[Any]:
        return [item() for item in items]

    async with Batcher(handler, max_batch_size=500, telemetry=listed) as batcher:
        makers: list[Any] = [
            partial(ItemError, "no", code="duplicate"),
            partial(ItemError, "no", code="row 17"),
            OddError,
        ]
        makers += [type(f"Error{i}", (ValueError,), {}) for i in range(200)]
        await batcher.submit_many_report(makers)
    counts = sdk.counts("microbatch.items")
    assert counts["duplicate"] == 1
    assert counts[f"{__name__}.{OddError.__qualname__}"] == 1
    assert len(counts) == names.ERROR_TYPES_MAX
    assert sum(counts.values()) == 203
    assert counts["_OTHER"] > 100


async def test_items_that_no_handler_saw_are_counted_too() -> None:
    """Refused, withdrawn, closed: told with the next batch, or at the end, not at 20 us each."""
    sdk = Sdk()
    handler = Gate()
    batcher = Batcher(
        handler, max_batch_size=1, max_pending=3, on_full="reject", telemetry=sdk.telemetry()
    )
    async with batcher:
        running = batcher.submit_nowait(1)
        await turns()
        goes, stays = [batcher.submit_nowait(i) for i in (2, 3)]
        for _ in range(4):
            with pytest.raises(BatcherFull):
                batcher.submit_nowait(9)
        goes.cancel()
        await turns()
        await batcher.aclose(0)
    assert isinstance(await outcome(running), BatcherClosed)
    assert isinstance(await outcome(stays), BatcherClosed)
    assert sdk.counts("microbatch.items") == {"queue_full": 4, "cancelled": 1, "closed": 2}


async def test_callers_in_line_are_counted_when_it_closes() -> None:
    """They wait for room and get BatcherClosed; so does what remains of a submit_many."""
    sdk = Sdk()
    handler = Gate()
    batcher = Batcher(handler, max_batch_size=1, max_pending=1, telemetry=sdk.telemetry())
    async with anyio.create_task_group() as tasks:
        first = batcher.submit_nowait(1)
        tasks.start_soon(outcome, batcher.submit(2))
        await turns()
        tasks.start_soon(outcome, batcher.submit_many_report([3, 4, 5]))
        await turns()
        await batcher.aclose(0)
    await outcome(first)
    assert sdk.counts("microbatch.items") == {"closed": 5}


# Gauges


async def test_gauges_show_what_the_batcher_holds_at_that_moment() -> None:
    """Pending against capacity is what an alert on a full queue divides."""
    sdk = Sdk()
    handler = Gate()
    async with Batcher(
        handler,
        max_batch_size=2,
        max_pending=50,
        weigh=float,
        max_batch_weight=1000,
        telemetry=sdk.telemetry(),
    ) as batcher:
        pendings = [batcher.submit_nowait(i) for i in (10, 20, 30)]
        await turns()
        assert sdk.gauges() == {
            "microbatch.queue.size": 3,
            "microbatch.queue.capacity": 50,
            "microbatch.item.inflight": 2,
            "microbatch.queue.weight": 60.0,
        }
        handler.opened.set()
        for pending in pendings:
            await pending
        assert sdk.gauges()["microbatch.queue.weight"] == 0


async def test_a_gauge_is_left_out_where_there_is_no_such_thing() -> None:
    """No bound, no weight: no series that says 0."""
    sdk = Sdk()
    async with Batcher(echo, max_pending=None, telemetry=sdk.telemetry()) as batcher:
        await batcher.submit(1)
        assert set(sdk.gauges()) == {"microbatch.queue.size", "microbatch.item.inflight"}


async def test_closed_and_forgotten_batchers_leave_the_gauges() -> None:
    """Callbacks cannot be taken back: a weak set of batchers must shrink by itself."""
    sdk = Sdk()
    batcher = Batcher(echo, name="closed", telemetry=sdk.telemetry())
    async with batcher:
        await batcher.submit(1)
        assert sdk.names() == {"closed"}
    assert sdk.names() == set()
    forgotten = Batcher(echo, name="forgotten", telemetry=sdk.telemetry())
    await forgotten.submit(1)
    await turns()
    assert sdk.names() == {"forgotten"}
    del forgotten
    gc.collect()
    assert sdk.names() == set()


async def test_batchers_of_one_name_add_up() -> None:
    """One for each instance of a decorated method: two values for one series would lose one."""
    sdk = Sdk()
    one = Batcher(echo, name="same", max_pending=10, telemetry=sdk.telemetry())
    two = Batcher(echo, name="same", max_pending=7, telemetry=sdk.telemetry())
    async with one, two:
        await one.submit(1)
        await two.submit(1)
        assert sdk.gauges()["microbatch.queue.capacity"] == 17


@pytest.mark.real_time
async def test_a_reader_in_another_thread_may_collect_at_any_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Readers run in threads of their own, while batches come and go."""
    sdk = Sdk()
    async with (
        Batcher(echo, max_batch_size=7, telemetry=sdk.telemetry()) as batcher,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(batcher.submit_many, range(3000))
        for _ in range(20):
            await anyio.to_thread.run_sync(sdk.metrics)
    assert sdk.counts("microbatch.items") == {None: 3000}
    assert caplog.records == []  # the SDK logs what a callback raises


@pytest.mark.real_time
async def test_gauges_are_read_while_a_handler_runs_in_another_thread_than_the_loops() -> None:
    """The oldest call's age needs the loop's clock, which not every loop shows to other threads."""
    sdk = Sdk()
    handler = Gate()
    async with Batcher(handler, telemetry=sdk.telemetry()) as batcher:
        pending = batcher.submit_nowait(1)
        await turns()
        gauges = await anyio.to_thread.run_sync(sdk.gauges)
        stats = await anyio.to_thread.run_sync(batcher.stats)
        handler.opened.set()
        await pending
    assert gauges["microbatch.item.inflight"] == 1
    assert 0 <= stats.oldest_in_flight < 20


# Settings and faults


async def test_false_tells_nobody_anything(caplog: pytest.LogCaptureFixture) -> None:
    """Not a span, not a figure, not a line in the log."""
    sdk = Sdk()
    async with Batcher(Recorder(fails={1}), telemetry=False) as batcher:
        await outcome(under(sdk, "request", batcher.submit, 1))
    assert [s.name for s in sdk.all_spans()] == ["request"]
    assert caplog.records == []


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"tracer_provider": 1}, TypeError, "tracer_provider must have get_tracer() or be None, got 1"),
        ({"meter_provider": 1}, TypeError, "meter_provider must have get_meter() or be None, got 1"),
        ({"trace_items": 1}, TypeError, "trace_items must be True or False, got 1"),
        ({"item_metrics": None}, TypeError, "item_metrics must be True or False, got None"),
        ({"link_back": 0}, TypeError, "link_back must be True or False, got 0"),
        ({"semconv_metrics": 0}, TypeError, "semconv_metrics must be True or False, got 0"),
        ({"parent": "all"}, ValueError, "parent must be 'link' or 'auto', got 'all'"),
        ({"error_codes": "a"}, TypeError, "error_codes must be a collection of str, got 'a'"),
        ({"error_codes": 3}, TypeError, "error_codes must be a collection of str, got 3"),
        ({"error_codes": [3]}, TypeError, "error_codes must hold str, got 3"),
    ],
)  # fmt: skip
async def test_wrong_settings_are_refused_by_name(
    settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    """At once, where they are written."""
    with pytest.raises(error) as caught:
        Telemetry(**settings)
    assert str(caught.value) == message


@pytest.mark.parametrize("wrong", [True, 0, "yes", Telemetry])
async def test_a_batcher_takes_telemetry_none_or_false(wrong: Any) -> None:
    """True would be a guess at what is wanted."""
    with pytest.raises(TypeError, match=r"^telemetry must be a Telemetry, None or False, got "):
        Batcher(echo, telemetry=wrong)


class BrokenSampler(sampling.Sampler):
    """Raises, as nobody's code should."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def should_sample(
        self, parent_context: Any, trace_id: int, name: str, *_: Any, **__: Any
    ) -> Any:
        if name.startswith(self.names):
            raise ZeroDivisionError
        return sampling.SamplingResult(sampling.Decision.RECORD_AND_SAMPLE)

    def get_description(self) -> str:
        return "broken"


@pytest.mark.parametrize("name", ["process", "submit"])
async def test_broken_telemetry_breaks_no_batch(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is switched off, and the log says so once."""
    sdk = Sdk(sampler=BrokenSampler((name,)))
    telemetry_ = sdk.telemetry(trace_items=name == "submit")
    async with Batcher(echo, telemetry=telemetry_) as batcher:
        for item in range(3):
            assert await batcher.submit(item) == item
    (record,) = caplog.records
    assert record.getMessage() == "batcher 'echo': telemetry failed and is off from now on"


async def test_a_broken_instrument_breaks_no_batch(caplog: pytest.LogCaptureFixture) -> None:
    """The same at a batch's end."""
    sdk = Sdk()
    async with Batcher(echo, telemetry=sdk.telemetry()) as batcher:
        await batcher.submit(1)
        instruments = observer_in(batcher).recorder.instruments
        instruments.batch_size = None
        assert await batcher.submit(2) == 2
        assert await batcher.submit(3) == 3
    (record,) = caplog.records
    assert "telemetry failed" in record.getMessage()


async def test_a_broken_instrument_breaks_no_close(caplog: pytest.LogCaptureFixture) -> None:
    """What no batch told of is told at the end, or not at all."""
    sdk = Sdk()
    async with Batcher(echo, max_pending=1, on_full="reject", telemetry=sdk.telemetry()) as batcher:
        pending = batcher.submit_nowait(1)
        assert await pending == 1
        observer_in(batcher).refused(FULL)
        observer_in(batcher).recorder.instruments.items = None
    (record,) = caplog.records
    assert "telemetry failed" in record.getMessage()


async def test_why_a_batch_was_small_stands_in_its_span_and_in_the_stats() -> None:
    """The question that every batcher gets: the reason, and how long the oldest waited."""
    sdk = Sdk()
    reasons = []

    async def handler(items: list[int]) -> list[int]:
        batch = current_batch()
        assert batch is not None
        reasons.append(batch.reason)
        return items

    async with Batcher(
        handler, max_batch_size=2, max_wait=1.0, telemetry=sdk.telemetry()
    ) as batcher:
        await outcomes(batcher.submit(1), batcher.submit(2))
        await batcher.submit(3)
        assert batcher.stats().reasons == {"size": 1, "wait": 1}
    assert [s.attributes["microbatch.flush.reason"] for s in sdk.all_spans()] == reasons


# What the durable mode uses


class BrokenProcessor(SpanProcessor):
    """Raises when a span ends."""

    def on_end(self, span: Any) -> None:
        raise ZeroDivisionError


@pytest.mark.parametrize("when", ["begin", "end"])
async def test_broken_telemetry_stops_nobody_from_sending(
    when: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What is stored is stored, and what failed fails with its own error."""
    for failing in (False, True):
        sdk = Sdk(BrokenSampler(("send" if when == "begin" else "no",)))
        if when == "end":
            sdk.tracer_provider.add_span_processor(BrokenProcessor())
        observer = observer_of("q", sdk.telemetry(), "jobs")
        assert observer is not None
        caplog.clear()
        if failing:
            with pytest.raises(OSError, match="full"), observer.sending(1, 0.0):
                raise OSError("full")
        else:
            with observer.sending(1, 0.0) as trace:
                assert (trace is None) == (when == "begin")
        (record,) = caplog.records
        assert "telemetry failed" in record.getMessage()
        with observer.sending(1, 0.0) as trace:
            assert trace is None


async def test_sending_is_a_span_whose_context_is_given_to_be_stored() -> None:
    """A worker in another process links to it."""
    sdk = Sdk()
    observer = observer_of("q", sdk.telemetry(semconv_metrics=True), "jobs")
    assert observer is not None
    with sdk.tracer.start_as_current_span("request") as request:
        with observer.sending(1, 0.0) as one:
            pass
        with pytest.raises(OSError, match="full"), observer.sending(2, 0.0):
            raise OSError("full")
    good, bad = sdk.spans("send jobs")
    assert (
        one
        == f"00-{good.context.trace_id:032x}-{good.context.span_id:016x}-{good.context.trace_flags:02x}".encode()
    )
    assert good.kind is SpanKind.PRODUCER
    assert good.parent.span_id == request.get_span_context().span_id
    conventional = {
        "messaging.system": "microbatch",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": "jobs",
    }
    assert plain(good.attributes) == conventional
    assert plain(bad.attributes) == {
        **conventional,
        "messaging.batch.message_count": 2,
        "error.type": "OSError",
    }
    assert sdk.counts("messaging.client.sent.messages") == {None: 1}


async def test_sending_is_nothing_where_nobody_listens() -> None:
    """No span, nothing to store."""
    quiet = Telemetry(tracer_provider=NoOpTracerProvider(), meter_provider=NoOpMeterProvider())
    observer = observer_of("q", quiet, "jobs")
    assert observer is not None
    with observer.sending(1, 0.0) as trace:
        assert trace is None
    assert observer_of("q", False) is None


async def test_a_durable_batch_is_a_consumer_linked_by_what_was_stored() -> None:
    """By message, without a link for what cannot be read; nobody's in-memory caller is linked."""
    sdk = Sdk()
    observer = observer_of("b", sdk.telemetry(semconv_metrics=True), "jobs")
    assert observer is not None
    traces: list[bytes | None] = []
    for _ in range(130):
        with observer.sending(1, 0.0) as trace:
            traces.append(trace)
    traces += [None, b"nonsense", traces[0]]
    engine = Engine(
        Rules(
            echo, max_batch_size=200, max_wait=0.0, max_concurrency=1, max_pending=None, name="b"
        ),
        prepare=lambda run: setattr(run, "origins", list(zip(traces, range(133), strict=True))),
        observer=observer_of("b", sdk.telemetry(semconv_metrics=True), "jobs"),
    )
    with sdk.tracer.start_as_current_span("in memory"):
        await engine.enter_many_and_wait(range(133), 0)
    await engine.aclose(None)
    (span,) = sdk.spans("process jobs")
    assert span.kind is SpanKind.CONSUMER
    assert len(span.links) == 128
    assert span.attributes["microbatch.links.dropped"] == 2
    assert span.links[7].attributes["messaging.message.id"] == "7"
    assert span.links[7].context.is_remote
    assert span.attributes["messaging.operation.type"] == "process"
    assert span.attributes["messaging.batch.message_count"] == 133
    assert span.attributes["messaging.destination.name"] == "jobs"
    assert sdk.counts("messaging.client.consumed.messages") == {None: 133}
    (point,) = sdk.points("messaging.process.duration")
    assert point.count == 1
    assert tuple(point.explicit_bounds) == names.HISTOGRAMS["messaging.process.duration"][2]
