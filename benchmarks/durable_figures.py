"""What of the durable mode no rate tells: bytes written, fsyncs, idle CPU, claims beside a backlog, deaths."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.durable_contenders import PAYLOAD, RESULT, Meter, our_put
from benchmarks.output import ROOT
from microbatch.durable import DurableBatcher, DurableQueue


async def _results(items):
    return [RESULT] * len(items)


def _tell(text):
    os.write(1, text)


# On the disk


def _written():
    """Return what this process gave to the system to write, and what that made of it, in bytes."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["wchar"]), int(lines["write_bytes"])


def bytes_written(folder, callers, total):
    """Return both for each item, from its enqueue until it is done, the last checkpoint included."""

    async def main():
        durable = DurableBatcher(folder / "q.db", _results, item_type=bytes)
        await durable.submit(PAYLOAD)
        before = _written()
        left = itertools.count(1)

        async def caller():
            while next(left) <= total:
                await durable.enqueue(PAYLOAD)

        await asyncio.gather(*(caller() for _ in range(callers)))
        while (await durable.stats()).depth:  # noqa: ASYNC110 - another thread's work
            await asyncio.sleep(0.01)
        await durable.aclose()
        return [(after - one) / total for after, one in zip(_written(), before, strict=True)]

    return asyncio.run(main())


def file_bytes(folder, total):
    """Return the bytes of the file for each waiting item of 100 bytes."""

    async def main():
        async with DurableQueue(folder / "q.db", item_type=bytes) as queue:
            empty = (await queue.stats()).file_bytes
            await queue.enqueue_many([b"x" * 100] * total)
            return ((await queue.stats()).file_bytes - empty) / total

    return asyncio.run(main())


def count_fsyncs(folder, waves):
    """In a process under the shim: syncs of the log, in waves too small for a checkpoint."""
    count = Path(os.environ["SHIM_COUNT"])
    folder = Path(folder)
    found = {}

    def syncs():
        return count.stat().st_size if count.exists() else 0

    async def in_waves(what, wave):
        await wave()
        before = syncs()
        for _ in range(waves):
            await wave()
        found[what] = (syncs() - before) / waves

    async def nothing(connection, items, results):
        del connection, items, results

    async def main():
        async with DurableQueue(folder / "put.db", item_type=bytes) as queue:
            await in_waves(
                "a group of 100 enqueues",
                lambda: asyncio.gather(*(queue.enqueue(b"x") for _ in range(100))),
            )
        queues = [
            DurableQueue(folder / "queues.db", item_type=bytes, queue=f"q{number}")
            for number in range(100)
        ]
        for queue in queues:
            await queue.enqueue(b"x")
        await in_waves(
            "an enqueue in each of 100 queues",
            lambda: asyncio.gather(*(queue.enqueue(b"x") for queue in queues)),
        )
        for queue in queues:
            await queue.aclose()
        for what, settings in (
            ("100 submits to their results", {}),
            ("the same with on_settle", {"on_settle": nothing}),
        ):
            path = folder / f"{len(found)}.db"
            async with DurableBatcher(path, _results, item_type=bytes, **settings) as durable:
                await in_waves(
                    what, lambda d=durable: asyncio.gather(*(d.submit(b"x") for _ in range(100)))
                )

    asyncio.run(main())
    return found


def slow_put(folder, callers, total, keyed):
    """In a process under the shim that slows fsyncs down."""
    return our_put(Path(folder), callers, total, keyed)


# At rest


def idle_cpu(folder, queues, seconds):
    """Return the CPU seconds a second of so many workers in one file that have nothing to do."""

    async def main():
        workers = [
            DurableBatcher(Path(folder) / "q.db", _results, item_type=bytes, queue=f"q{number}")
            for number in range(queues)
        ]
        for worker in workers:
            await worker.submit(b"x")
        await asyncio.sleep(min(1, seconds))
        meter = Meter()
        await asyncio.sleep(seconds)
        cpu = meter.cost(seconds).cpu
        for worker in workers:
            await worker.aclose()
        return cpu

    return asyncio.run(main())


def busy(path):
    """Work on a queue of a file until this process is killed."""

    async def main():
        async with DurableBatcher(path, _results, item_type=bytes, queue="busy") as durable:

            async def caller():
                while True:
                    await durable.submit(b"x")

            asyncio.get_running_loop().call_later(0.1, _tell, b"busy\n")
            await asyncio.gather(*(caller() for _ in range(10)))

    asyncio.run(main())


def waiting_cpu(folder, waiters, seconds):
    """Return the CPU seconds a second of so many who wait, while another process works on another queue."""
    path = str(Path(folder) / "q.db")

    async def main():
        async with DurableQueue(path, item_type=bytes) as queue:
            tickets = await queue.enqueue_many([b"x"] * waiters)
            waiting = [asyncio.ensure_future(queue.result(ticket)) for ticket in tickets]
            command = [sys.executable, "-m", "benchmarks.child", __name__, "busy", f'["{path}"]']
            process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)  # noqa: ASYNC220
            try:
                await asyncio.to_thread(process.stdout.readline)
                meter = Meter()
                await asyncio.sleep(seconds)
                return meter.cost(seconds).cpu
            finally:
                process.kill()
                process.communicate()
                for one in waiting:
                    one.cancel()
                await asyncio.gather(*waiting, return_exceptions=True)

    return asyncio.run(main())


# Beside a backlog


class _File:
    """A queue's file as its writer has it, without the thread; each item has a key, so a range of its own."""

    def __init__(self, path):
        from microbatch.durable._file.connection import Connection
        from microbatch.durable._file.limits import Limits

        self._connection = Connection(path, lambda _: True, "normal")
        self._limits = Limits(max_depth=10**9)
        self._claims = self._keys = 0
        self._queue = self._do(lambda session: session.queue("q")).id
        self._consumer = self._do(lambda session: session.register(self._queue, 1, None))

    def _do(self, function):
        connection = self._connection

        def steps(raw):
            session = connection.session()
            answer = connection.run(raw, function(session))
            connection.run(raw, session.finish())
            return answer

        answer = connection.write(steps)
        connection.committed()
        return answer

    def put(self, count, **settings):
        from microbatch.durable._file.records import NewItem

        for _ in range(0, count, 1000):
            group = [
                NewItem(PAYLOAD[:100], key=f"k{self._keys + number}", **settings)
                for number in range(min(count, 1000))
            ]
            self._keys += len(group)
            self._do(lambda s, group=group: s.enqueue(self._queue, self._limits, [group], None))

    def claim(self, size):
        from microbatch.durable._file.records import Demand

        self._claims += 1
        demand = Demand(self._consumer, self._claims, 1, size)
        return self._do(lambda session: session.claim(self._queue, demand))[0]

    def settle(self, claims):
        from microbatch.durable._file.records import Settlement

        ids = [one.first for claim in claims for one in claim.ranges]
        settlement = Settlement(claims[0].number, ids, [None] * len(ids), [])
        self._do(lambda s: s.settle(self._queue, self._limits, self._consumer, [settlement]))

    def give_back(self):
        self._do(lambda session: session.give_back(self._queue, self._consumer))

    def close(self):
        self._connection.close()


def claim_times(folder, rounds, backlog):
    """Return the seconds of claims of 10, with 200 ready items and with much beside them, pair by pair."""
    few, many = _File(folder / "few.db"), _File(folder / "many.db")
    few.put(200)
    for _ in range(0, backlog, 1000):
        many.put(1000)
        many.settle(many.claim(1000))
    many.put(backlog, delay=9e6, priority=9)
    many.put(backlog)
    times = {few: [], many: []}
    for turn in range(rounds):
        for one in (few, many) if turn % 2 else (many, few):
            began = time.perf_counter()
            one.claim(10)
            times[one].append(time.perf_counter() - began)
            one.give_back()
    few.close()
    many.close()
    return times[few], times[many]


# Deaths


def _die_holding(path, count):
    """Kill a process as soon as it has so many items in hand."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    held = 0

    async def handler(items):
        nonlocal held
        held += len(items)
        if held >= count:
            os.kill(os.getpid(), signal.SIGKILL)
        await asyncio.sleep(60)

    async def victim():
        async with DurableBatcher(
            path, handler, item_type=bytes, max_batch_size=100, max_concurrency=4
        ):
            await asyncio.sleep(60)

    try:
        asyncio.run(victim())
    finally:
        os._exit(1)


def backlog_after(folder, total, held):
    """Return what each item of a backlog costs whose last worker died with so many in hand."""
    path = folder / "q.db"

    async def fill():
        async with DurableQueue(path, item_type=bytes) as queue:
            await queue.enqueue_many([PAYLOAD] * total)

    asyncio.run(fill())
    if held:
        _die_holding(path, held)
    handled = asyncio.Event()
    seen = 0

    async def handler(items):
        nonlocal seen
        seen += len(items)
        if seen >= total:
            handled.set()
        return [RESULT] * len(items)

    async def main():
        durable = DurableBatcher(
            path, handler, item_type=bytes, max_batch_size=100, max_concurrency=4
        )
        meter = Meter()
        async with durable:
            await handled.wait()
        return meter.cost(total)

    return asyncio.run(main())


def redelivery(folder):
    """Return the seconds from kill -9 of a process to the next handler call for its item, in one that lives."""
    path = folder / "q.db"

    async def hold(items):
        del items
        _tell(b"x")
        await asyncio.sleep(60)

    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(write, 1)

        async def victim():
            async with DurableBatcher(path, hold, item_type=int) as durable:
                await durable.enqueue(1)
                await asyncio.sleep(60)

        try:
            asyncio.run(victim())
        finally:
            os._exit(1)
    os.read(read, 1)

    async def survivor():
        handled = asyncio.Event()

        async def handler(items):
            handled.set()
            return items

        async with DurableBatcher(path, handler, item_type=int):
            await asyncio.sleep(0.1)
            os.kill(child, signal.SIGKILL)
            killed = time.perf_counter()
            await handled.wait()
            return time.perf_counter() - killed

    seconds = asyncio.run(survivor())
    os.waitpid(child, 0)
    os.close(read)
    os.close(write)
    return seconds
