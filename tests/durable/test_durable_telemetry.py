"""Traces through the file: who enqueued, in this process or in one that is long dead."""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
from pathlib import Path

import anyio
import pytest
from durable_support import Handler, batcher, execute, until
from opentelemetry.trace import SpanKind
from telemetry_support import Sdk

import microbatch
from microbatch.durable import DurableQueue

pytestmark = pytest.mark.anyio

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(microbatch.__file__).parents[1])}


async def test_a_batch_is_linked_to_the_spans_that_sent_its_items(path):
    """One for the single ones, one for all of an `enqueue_many`, each child of its caller's."""
    sdk = Sdk()
    async with batcher(path, Handler(), name="b", telemetry=sdk.telemetry()) as durable:
        with sdk.tracer.start_as_current_span("request") as request:
            assert await durable.submit(1) == 2
            tickets = await durable.enqueue_many([2, 3])
            tickets.append(await durable.enqueue(4, key="k"))
            for ticket in tickets:
                await durable.result(ticket)
    sent = sdk.spans("send default")
    assert len(sent) == 3
    assert {s.parent.span_id for s in sent} == {request.get_span_context().span_id}
    assert {s.kind for s in sent} == {SpanKind.PRODUCER}
    batches = sdk.spans("process default")
    assert {s.kind for s in batches} == {SpanKind.CONSUMER}
    linked = {link.context.span_id for s in batches for link in s.links}
    assert linked == {s.context.span_id for s in sent}
    names = {s.name for s in sdk.all_spans()}
    assert names == {"request", "send default", "process default"}  # nothing of the machinery


async def test_without_a_sdk_nothing_is_stored_and_nothing_recorded(path):
    """NULL: no bytes, no time."""
    sdk = Sdk()
    async with batcher(path, Handler(), telemetry=False, keep_done=100) as durable:
        with sdk.tracer.start_as_current_span("request"):
            await durable.submit(1)
            await durable.submit(2, priority=1)
    with sqlite3.connect(path) as connection:
        stored = connection.execute("SELECT trace FROM microbatch_items").fetchall()
    connection.close()
    assert [row[0] for row in stored] == [None] * len(stored)
    assert [s.name for s in sdk.all_spans()] == ["request"]


async def test_enqueue_in_sends_too(path):
    """Inside the application's own transaction."""
    sdk = Sdk()
    async with DurableQueue(path, item_type=int, telemetry=sdk.telemetry()) as queue:
        await queue.stats()
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("BEGIN IMMEDIATE")
        queue.enqueue_in(connection, 5)
        connection.execute("COMMIT")
        connection.close()
    worker = Sdk()
    async with batcher(path, Handler(), telemetry=worker.telemetry()):
        await until(lambda: len(sdk.spans("send default")) == len(worker.all_spans()))
    (send,), (process,) = sdk.spans("send default"), worker.spans("process default")
    assert [link.context.span_id for link in process.links] == [send.context.span_id]


ENQUEUE = """
import anyio, os, signal, sys
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from microbatch import Telemetry
from microbatch.durable import DurableQueue

async def main():
    provider = TracerProvider(shutdown_on_exit=False)
    telemetry = Telemetry(tracer_provider=provider)
    async with DurableQueue(sys.argv[1], item_type=int, telemetry=telemetry) as queue:
        with provider.get_tracer("app").start_as_current_span("request") as span:
            await queue.enqueue(1)
            print(f"{span.get_span_context().trace_id:032x}", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

anyio.run(main)
"""


async def test_a_killed_processs_trace_goes_on_in_the_next(path):
    """The link is in the row."""
    command = [sys.executable, "-c", ENQUEUE, str(path)]
    done = await anyio.run_process(command, env=ENVIRONMENT, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert await links(path) == [done.stdout.decode().strip()]


@pytest.mark.parametrize("damage", ["x'fffe00'", "'nonsense'", "17"])
async def test_a_stored_context_that_is_none_is_passed_over(path, damage):
    """Whoever damaged the row has cost a link, not the item."""
    async with DurableQueue(path, item_type=int, telemetry=Sdk().telemetry()) as queue:
        await queue.enqueue(1)
    execute(path, f"UPDATE microbatch_items SET trace = {damage}")
    assert await links(path) == []


async def links(path):
    """Handle the one item; return the traces that its batch is linked to."""
    sdk = Sdk()
    async with batcher(path, Handler(), telemetry=sdk.telemetry()):
        await until(lambda: sdk.spans("process default"))
    (process,) = sdk.spans("process default")
    return [f"{link.context.trace_id:032x}" for link in process.links]
