"""Batchers inside workers of FastStream and taskiq, over NATS JetStream and RabbitMQ.

Two worker processes empty a stream or queue that is full before they start. The backend takes 5 ms a call
and 2 calls at once in each worker, or it is PostgreSQL: an insert with a key, over as many connections. `each`
is a call for each message, `floor` the 20-line batcher in the worker, `ours` a `Batcher` with `settle` or
`attach`. `lists` are the engine's own batches, where it has some; `our lists` the same through `settle_many`.
Batches are of 100 at most and wait 20 ms at most; the engine hands over 400 messages at once. Rates are from
a tenth of the messages to the end of the last call. All runs in turns; a ratio is of two of one round.

Last, a worker is killed when 30 % are handled: how long the last message takes then, and how many come twice.

--only takes some of the engines, --backends one of the two, --messages another number of messages.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from contextlib import ExitStack
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import msgspec
import psutil

from benchmarks import output, runner, servers
from benchmarks.options import positive

ENGINES = {
    "FastStream, NATS JetStream": ("faststream", "nats", ["each", "floor", "ours", "lists", "our lists"]),
    "FastStream, RabbitMQ": ("faststream", "rabbit", ["each", "floor", "ours"]),
    "taskiq, NATS JetStream": ("taskiq", "nats", ["each", "floor", "ours"]),
}  # fmt: skip
SINKS = ("5 ms", "PostgreSQL")
GOAL = 0.95
DYING = ("floor", "ours")
EMPTY = "DROP TABLE IF EXISTS taken", "CREATE TABLE taken (item bigint PRIMARY KEY)"
#: Seconds after which JetStream delivers again what a killed worker had.
REDELIVERY = 5.0
OPTIONS = {
    "only": {"nargs": "+", "choices": list(ENGINES), "default": list(ENGINES), "help": "engines"},
    "backends": {"nargs": "+", "choices": SINKS, "default": list(SINKS), "help": "backends"},
    "messages": {
        "type": positive,
        "default": 8_000,
        "help": "messages of a run, of taskiq's five times as many",
    },
}


# Sending


async def to_nats(url, name, count):
    import nats

    client = await nats.connect(url)
    stream = client.jetstream()
    await stream.add_stream(name=name, subjects=[name], storage="memory")
    for start in range(0, count, 500):
        part = range(start, min(start + 500, count))
        await asyncio.gather(*[stream.publish(name, b"%d" % item) for item in part])
    await client.close()


async def to_rabbit(url, name, count):
    import aio_pika

    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        arguments = {"x-queue-type": "quorum", "x-delivery-limit": 10}
        await channel.declare_queue(name, durable=True, arguments=arguments)
        for start in range(0, count, 500):
            part = range(start, min(start + 500, count))
            sent = [aio_pika.Message(b"%d" % n, content_type="application/json") for n in part]
            await asyncio.gather(*[channel.default_exchange.publish(m, name) for m in sent])


async def to_taskiq(url, name, count):
    from taskiq.kicker import AsyncKicker

    from benchmarks.engine_worker import taskiq_broker

    broker = taskiq_broker(url, name)
    await broker.startup()
    save = AsyncKicker("save", broker, {})
    for start in range(0, count, 500):
        await asyncio.gather(*[save.kiq(n) for n in range(start, min(start + 500, count))])
    await broker.shutdown()


SEND = {
    ("faststream", "nats"): to_nats,
    ("faststream", "rabbit"): to_rabbit,
    ("taskiq", "nats"): to_taskiq,
}


# Working


class Workers:
    """Two processes, and what they have written of what they handled."""

    def __init__(self, folder, **job):
        self.log = Path(folder) / uuid.uuid4().hex
        self.log.touch()
        self.errors = self.log.with_suffix(".err")
        told = msgspec.json.encode({"log": str(self.log), **job}).decode()
        command = [sys.executable, "-m", "benchmarks.engine_worker", told]
        with self.errors.open("wb") as errors:
            self.processes = [
                subprocess.Popen(
                    command, cwd=output.ROOT, stderr=errors,
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                )
                for _ in range(2)
            ]  # fmt: skip
        self.seen = Counter()
        self.calls = []  # (when it ended, how many items)
        self.reading = self.log.open()
        self.begun = ""

    def __enter__(self):
        for process in self.processes:
            process.stdout.readline()  # it is ready
        self.began = self.cpu()
        for process in self.processes:
            process.stdin.write(b"\n")
            process.stdin.flush()
        return self

    def cpu(self):
        """Return the CPU seconds that both have used."""
        times = [psutil.Process(process.pid).cpu_times() for process in self.processes]
        return sum(one.user + one.system for one in times)

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()
        self.reading.close()

    def handled(self):
        """Return how many items have been handled once at least."""
        *lines, self.begun = (self.begun + self.reading.read()).split("\n")
        for line in lines:  # the last one may be half written
            when, *items = line.split()
            self.calls.append((float(when), len(items)))
            self.seen.update(map(int, items))
        assert any(process.poll() is None for process in self.processes), self.said()
        return len(self.seen)

    def said(self):
        return self.errors.read_text(errors="replace")

    def wait_for(self, count):
        servers.wait_until(lambda: self.handled() >= count, self.said)


class Place(NamedTuple):
    """Where messages are put and taken from, and how many."""

    folder: str
    url: str
    engine: str
    broker: str
    count: int

    def filled(self):
        """Return the name of a new stream or queue that has all messages."""
        name = "b" + uuid.uuid4().hex[:12]
        asyncio.run(SEND[self.engine, self.broker](self.url, name, self.count))
        return name


def emptied(place, way, database):
    """Return what two workers reach: items a second, items a call, CPU a message."""
    job = {"engine": place.engine, "url": place.url, "name": place.filled(), "way": way}
    if database is not None:
        asyncio.run(in_database(database, *EMPTY))
    with Workers(place.folder, database=database, **job) as workers:
        workers.wait_for(place.count)
        cpu = workers.cpu() - workers.began
    if database is not None:
        rows = asyncio.run(in_database(database, "SELECT count(*) FROM taken"))
        assert rows == place.count, rows
    calls = sorted(workers.calls)
    done = accumulate(items for _, items in calls)
    # They start together, and a tenth is more than either takes at once: from there on both work.
    first = next(index for index, items in enumerate(done) if items >= place.count / 10)
    rest = sum(items for _, items in calls[first + 1 :])
    return {
        "rate": rest / max(calls[-1][0] - calls[first][0], 1e-9),
        "mean": sum(items for _, items in calls) / len(calls),
        "cpu": cpu / place.count * 1e6,
    }


def after_a_kill(place, way, redelivery):
    """Return how long after `kill -9` of one worker the last item is handled, and what comes twice."""
    job = {"engine": place.engine, "url": place.url, "name": place.filled(), "way": way}
    with Workers(place.folder, redelivery=redelivery, **job) as workers:
        workers.wait_for(place.count * 3 // 10)
        workers.processes[0].kill()
        killed = time.monotonic()
        workers.wait_for(place.count)
        last = max(when for when, _ in workers.calls)
    return {"seconds": last - killed, "twice": workers.seen.total() - place.count}


# The run


def cell(figures):
    """Write a rate, the items of a call, and the microseconds of the workers' CPU for a message."""
    if figures is None:
        return "-"
    rate, mean, cpu = (figures[key]["median"] for key in ("rate", "mean", "cpu"))
    return f"{rate:,.0f}, {mean:.1f}, {cpu:,.0f} us"


def verdict(ratio, ours, floor):
    """Say whether both goals are met: the ratio, and batches that are no smaller."""
    fast, full = ratio["median"] >= GOAL, ours["median"] >= floor["median"]
    return "met" if fast and full else "MISSED"


def row_of(name, sink, ways):
    ratio, cpu = ways["ratio of rate"], ways["ratio of cpu"]
    met = verdict(ratio, ways["ours"]["mean"], ways["floor"]["mean"])
    by_message = [cell(ways[way]) for way in ("each", "floor", "ours")]
    by_list = [cell(ways.get(way)) for way in ("lists", "our lists")]
    ours = f"{output.shown(ratio, 3)} {met}, {output.shown(cpu)}"  # as exact as the verdict
    return [name, sink, *by_message, ours, *by_list]


def death(figures):
    return f"{output.shown(figures['seconds'], 1)}, {figures['twice']['median']:.0f}"


def places(chosen, folder, urls):
    """Yield each engine's name, where its messages are, and its ways."""
    for name in chosen.only:
        engine, broker, ways = ENGINES[name]
        # taskiq is some five times as fast: with as few messages a run would be over in half a second.
        times = 5 if engine == "taskiq" else 1
        count = 300 if chosen.tiny else chosen.messages * times
        yield name, Place(folder, urls[broker], engine, broker, count), ways


def spreads_of(runs):
    """Return each way's spread of each figure."""
    return {
        way: {key: runner.spread([run[key] for run in of_way]) for key in of_way[0]}
        for way, of_way in runs.items()
    }


def measured(chosen, folder, urls, database):
    """Measure each engine with each backend, its ways in turns."""
    found = {}
    for name, place, names in places(chosen, folder, urls):
        few = place._replace(count=max(place.count // 4, 100))  # a call for each takes long
        for sink in chosen.backends:
            dsn = database if sink == "PostgreSQL" else None
            ways = {
                way: partial(emptied, few if way == "each" else place, way, dsn) for way in names
            }
            runs = runner.in_turns(ways, rounds_of(chosen))
            one = spreads_of(runs)
            for figure in ("rate", "cpu"):
                pair = [[run[figure] for run in runs[way]] for way in ("ours", "floor")]
                one[f"ratio of {figure}"] = runner.share(*pair)
            found[name, sink] = one
            print(name, sink, {way: cell(one[way]) for way in names}, flush=True)
    return found


def killed(chosen, folder, urls):
    found = {}
    for name, place, _ in places(chosen, folder, urls):
        redelivery = 1.0 if chosen.tiny else REDELIVERY
        ways = {way: partial(after_a_kill, place, way, redelivery) for way in DYING}
        found[name] = spreads_of(runner.in_turns(ways, rounds_of(chosen)))
    return found


def rounds_of(chosen):
    return chosen.rounds or (1 if chosen.tiny else 3)


async def in_database(database, *statements):
    """Run statements; return the last one's value."""
    import asyncpg

    connection = await asyncpg.connect(database)
    value = [await connection.fetchval(statement) for statement in statements][-1]
    await connection.close()
    return value


def needed(chosen):
    """Return the brokers that are asked for, or say what is missing."""
    brokers = {ENGINES[name][1] for name in chosen.only}
    programs = {
        "nats": servers.nats_program,
        "rabbit": servers.rabbit_program,
        "PostgreSQL": servers.postgres_programs,
    }
    wanted = sorted(brokers | ({*chosen.backends} & {*programs}))
    missing = [one for one in wanted if programs[one]() is None]
    if missing:
        sys.exit(f"not on this machine: {', '.join(missing)}")
    return brokers


def show(page, found, deaths):
    columns = ["a call a message: /s, items a call, CPU", "20-line batcher", "microbatch"]
    goal = f"its /s (>= {GOAL}, batches as large) and CPU, to the 20-line batcher's"
    page.table(
        ["engine, broker", "backend", *columns, goal, "the engine's lists", "`settle_many`"],
        [row_of(*names, ways) for names, ways in found.items()],
    )
    told = "20-line batcher: s to the last message, handled twice"
    page.table(
        ["`kill -9` of one of two workers", told, "microbatch"],
        [(name, *(death(one[way]) for way in DYING)) for name, one in deaths.items()],
    )


def run(chosen, page):
    brokers = needed(chosen)
    start = {"nats": servers.nats, "rabbit": servers.rabbit}
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        urls = {broker: stack.enter_context(start[broker]()) for broker in brokers}
        database = None
        if "PostgreSQL" in chosen.backends:
            database = stack.enter_context(servers.postgres())
        found = measured(chosen, folder, urls, database)
        deaths = killed(chosen, folder, urls)
    show(page, found, deaths)
    return {
        "emptied": {", ".join(names): one for names, one in found.items()},
        "killed": deaths,
    }
