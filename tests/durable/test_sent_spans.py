"""What a span of storing says: how many, and whether they were stored."""

from __future__ import annotations

import pytest
from durable_support import Handler, batcher
from opentelemetry.trace import StatusCode
from telemetry_support import Sdk

from microbatch.durable import DurableQueue, QueueFull

pytestmark = pytest.mark.anyio


async def test_a_span_says_how_many_items_it_stored(path):
    """Also where they come one by one and nobody knew before."""
    sdk = Sdk()
    async with DurableQueue(path, item_type=int, telemetry=sdk.telemetry()) as queue:
        await queue.enqueue(1)
        await queue.enqueue_many(number for number in range(12_345))
    counts = [s.attributes.get("messaging.batch.message_count") for s in sdk.spans("send default")]
    assert counts == [None, 12_345]


async def test_the_span_of_a_submit_that_was_refused_says_so(path):
    """It ends with the storing, not with the result; a refusal comes before."""
    sdk = Sdk()
    async with batcher(path, Handler(), telemetry=sdk.telemetry(), max_depth=1) as durable:
        await durable.pause()
        await durable.enqueue(1)
        with pytest.raises(QueueFull):
            await durable.submit(2)
    first, second = sdk.spans("send default")
    assert first.status.status_code is StatusCode.UNSET
    assert second.status.status_code is StatusCode.ERROR
