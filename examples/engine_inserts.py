"""Twenty thousand events from NATS JetStream into PostgreSQL, by two workers of which one is killed.

    python examples/engine_inserts.py nats://127.0.0.1:4222 postgresql://user@host/database [events]

Each event is one message and one item of its worker's batcher, acknowledged when its own row is committed. One
worker is killed when a third of the rows is there. What it held comes again, to the other one, and the upsert
absorbs what had been written. Beside it: an insert for each message, for a tenth of the events.
"""

import asyncio
import os
import signal
import sys
import time
from typing import Annotated, Any

import asyncpg
import msgspec
import nats
from faststream import AckPolicy, Context, FastStream
from faststream.nats import JStream, NatsBroker, PullSub
from nats.js.api import ConsumerConfig

from microbatch import Batcher, Retry
from microbatch.engines.faststream import drained, settle

SLOTS, BATCH = 2, 100
ACK_WAIT = 10.0  # seconds until what a killed worker held comes again
TABLES = """CREATE SCHEMA IF NOT EXISTS microbatch_example;
CREATE TABLE microbatch_example.event (id bigint PRIMARY KEY, body text NOT NULL, times int NOT NULL);
CREATE TABLE microbatch_example.call (rows int NOT NULL)"""
# One transaction: the rows, how often each came, and that it was one call.
UPSERT = """WITH call AS (INSERT INTO microbatch_example.call VALUES (cardinality($1::bigint[])))
INSERT INTO microbatch_example.event SELECT id, body, 1 FROM unnest($1::bigint[], $2::text[]) AS e (id, body)
ON CONFLICT (id) DO UPDATE SET times = event.times + 1"""


async def worker(server: str, dsn: str, stream: str, batch: int) -> None:
    """Write events until it is told to stop; this is all that a service needs."""
    pool = asyncpg.create_pool(dsn, min_size=SLOTS, max_size=SLOTS)

    async def write(events: list[dict[str, Any]]) -> None:
        await pool.execute(UPSERT, [e["id"] for e in events], [e["body"] for e in events])

    batcher = Batcher(
        write, max_batch_size=batch, max_concurrency=SLOTS, max_wait=0.02, handler_timeout=5.0
    )
    broker = NatsBroker(server, logger=None)
    retry = Retry(on=(asyncpg.PostgresConnectionError, OSError), attempts=5)

    @broker.subscriber(
        stream,
        stream=JStream(stream, subjects=[stream], declare=False),
        durable="writers",
        pull_sub=PullSub(batch_size=BATCH),
        max_workers=2 * SLOTS * BATCH,
        config=ConsumerConfig(ack_wait=ACK_WAIT, max_deliver=20),
        ack_policy=AckPolicy.MANUAL,
    )
    async def on_event(event: dict[str, Any], message: Annotated[Any, Context("message")]) -> None:
        await settle(message, batcher.submit(event), retry=retry)

    async with pool:
        await FastStream(broker, lifespan=drained(batcher), logger=None).run()


async def publish(server: str, stream: str, count: int) -> None:
    """Put the events into a stream; each has been confirmed when this returns."""
    client = await nats.connect(server)
    jetstream = client.jetstream()
    await jetstream.add_stream(name=stream, subjects=[stream])
    for start in range(0, count, 500):
        events = [{"id": n, "body": f"event {n}"} for n in range(start, min(start + 500, count))]
        await asyncio.gather(*[jetstream.publish(stream, msgspec.json.encode(e)) for e in events])
    await client.close()


async def main(server: str, dsn: str, count: int, *, batch: int, kills: bool) -> None:
    """Publish, start two workers, kill one of them, count, and clean up."""
    stream = f"events-{os.getpid()}-{batch}"
    database = await asyncpg.connect(dsn)
    await database.execute("DROP SCHEMA IF EXISTS microbatch_example CASCADE;" + TABLES)
    await publish(server, stream, count)
    command = [sys.executable, __file__, "worker", server, dsn, stream, str(batch)]
    workers = [await asyncio.create_subprocess_exec(*command) for _ in range(2)]

    async def wait_for(rows: int) -> float:
        while await database.fetchval("SELECT count(*) FROM microbatch_example.event") < rows:  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # other processes write, and tell nobody here
        return time.perf_counter()

    began = await wait_for(1)  # the workers have started
    if kills:
        await wait_for(count // 3)
        workers[0].kill()
    seconds = await wait_for(count) - began
    for process in workers:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await process.wait()
    rows, times = await database.fetchrow(
        "SELECT count(*), sum(times) FROM microbatch_example.event"
    )
    calls = await database.fetchval("SELECT count(*) FROM microbatch_example.call")
    what = f"{BATCH} rows an insert, one worker killed" if kills else "an insert a message"
    print(
        f"{what:<40}{rows:>7,} rows, {calls:>6,} calls, {times - rows:>4} duplicates absorbed, "
        f"{seconds:5.1f} s, {rows / seconds:7,.0f} rows/s"
    )
    client = await nats.connect(server)
    await client.jetstream().delete_stream(stream)
    await client.close()
    await database.execute("DROP SCHEMA microbatch_example CASCADE")
    await database.close()


if __name__ == "__main__":
    if sys.argv[1] == "worker":
        _, _, server, dsn, stream, size = sys.argv
        asyncio.run(worker(server, dsn, stream, int(size)))
    else:
        server, dsn, *more = sys.argv[1:]
        many = int(more[0]) if more else 20_000
        asyncio.run(main(server, dsn, many, batch=BATCH, kills=True))
        asyncio.run(main(server, dsn, max(many // 10, 1), batch=1, kills=False))
