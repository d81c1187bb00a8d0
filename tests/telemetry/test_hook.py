"""on_batch beside OpenTelemetry: each works with the other, without it, and when it breaks."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support import ENVIRONMENT, Recorder, outcomes
from telemetry_support import BrokenSampler, Sdk, under

from microbatch import Batcher, BatchRecord

pytestmark = pytest.mark.anyio


async def test_a_record_agrees_with_what_an_sdk_gets() -> None:
    """Two windows on the same batch."""
    sdk = Sdk()
    records: list[BatchRecord] = []
    telemetry = sdk.telemetry(on_batch=records.append)
    async with Batcher(
        Recorder(seconds=2.0, fails={1}), max_wait=0.5, telemetry=telemetry
    ) as batcher:
        await outcomes(*(under(sdk, "request", batcher.submit, item) for item in range(3)))
    (record,) = records
    (span,) = sdk.spans("process Recorder")
    assert span.attributes["microbatch.batch.size"] == record.size == 3
    assert span.attributes["microbatch.flush.reason"] == record.reason == "wait"
    assert span.attributes["microbatch.batch.failed_items"] == record.failed == 1
    assert span.attributes["microbatch.batch.wait"] == record.oldest_wait == 0.5
    (duration,) = sdk.points("microbatch.batch.duration")
    assert duration.sum == record.seconds == 2.0
    assert sdk.counts("microbatch.items") == {None: record.succeeded, "ValueError": record.failed}


@pytest.mark.parametrize("broken", ["sdk", "hook"])
async def test_when_one_breaks_the_other_goes_on(
    broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Telemetry that fails is off from then on; the function is called for every batch."""
    sdk = Sdk(sampler=BrokenSampler(("process",) if broken == "sdk" else ()))
    records: list[BatchRecord] = []

    def on_batch(record: BatchRecord) -> None:
        records.append(record)
        if broken == "hook":
            raise ZeroDivisionError

    async with Batcher(Recorder(), telemetry=sdk.telemetry(on_batch=on_batch)) as batcher:
        for item in range(3):
            assert await batcher.submit(item) == item * 10
    assert [record.size for record in records] == [1, 1, 1]
    assert len(sdk.spans("process Recorder")) == (0 if broken == "sdk" else 3)
    (line,) = caplog.records
    assert ("telemetry failed" if broken == "sdk" else "on_batch raised") in line.getMessage()


PROGRAM = """
import sys
sys.modules["opentelemetry"] = None  # as if it were not installed
import asyncio
from microbatch import Batcher, Telemetry

async def handler(items):
    return items

async def main():
    telemetry = Telemetry(on_batch=lambda record: print(record.name, record.size, record.succeeded))
    async with Batcher(handler, telemetry=telemetry) as batcher:
        await batcher.submit_many(range(3))

asyncio.run(main())
print([name for name in sys.modules if name.startswith("opentelemetry.")])
"""


def test_it_needs_no_opentelemetry() -> None:
    """Not even its API: nothing of it is imported."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["handler 3 3", "[]"]
