"""A batch's span: what it stands in, what it is linked to, what it says."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from opentelemetry.sdk.trace import sampling
from opentelemetry.trace import SpanKind, StatusCode, get_current_span
from support import Gate, Recorder, outcome, outcomes, turns
from telemetry_support import Sdk, echo, plain, under

from microbatch import Backoff, Batcher, RateLimited, Retry, __version__

pytestmark = pytest.mark.anyio


SCHEMA = "https://opentelemetry.io/schemas/1.44.0"


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


async def test_a_hold_is_counted_once_and_its_items_when_they_have_their_outcome() -> None:
    """Two batches refused at the same time are one hold; nothing has failed or was tried again."""
    sdk = Sdk()
    calls = 0

    async def handler(items: list[int]) -> list[Any]:
        nonlocal calls
        calls += 1
        call = calls
        await anyio.sleep(0.1)
        if call == 1:
            raise RateLimited(retry_after=1.0)
        if call == 2:
            return [items[0], RateLimited(retry_after=0.5)]
        return items

    retry = Retry(on=ValueError, backoff=Backoff(initial=1.0, jitter=0.0))
    async with Batcher(
        handler, max_batch_size=2, max_concurrency=2, retry=retry, telemetry=sdk.telemetry()
    ) as batcher:
        assert await outcomes(*[batcher.submit_nowait(item) for item in range(4)]) == [0, 1, 2, 3]
    assert [point.value for point in sdk.points("microbatch.holds")] == [1]
    assert sdk.counts("microbatch.items") == {None: 4}
    assert sdk.counts("microbatch.retries") == {}
    spans = [s for s in sdk.all_spans() if s.name.startswith("process")]
    assert [s.attributes["microbatch.attempt"] for s in spans] == [1] * len(spans)
    assert [s.attributes["microbatch.batch.failed_items"] for s in spans] == [0] * len(spans)
    # Whichever of the two that end at the same time is told of first.
    errors = Counter(s.attributes.get("error.type") for s in spans)
    assert errors == {"microbatch.errors.RateLimited": 1, None: 3}


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
