# ruff: noqa: ASYNC110, ASYNC251 - a process of its own, which may block
"""Another process for the tests: a worker that says on its standard output what it does.

``python process.py PATH KIND [ARGUMENTS]``. Lines are flushed one by one; a line on standard input ends a worker that
waits for one.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time

from durable_support import looked

from microbatch.durable import DurableBatcher, DurableQueue
from microbatch.durable._flow import job_intake
from microbatch.durable._life import alive, neighbours
from microbatch.durable.answers import QueueAnswers


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


async def line() -> str:
    return await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)


async def hold(path: str) -> None:
    """Handle items until a line comes; then double them."""
    told = asyncio.Event()

    async def handler(items):
        say("handling", *items)
        await told.wait()
        return [item * 2 for item in items]

    async with DurableBatcher(path, handler, item_type=int):
        say("ready")
        await line()
        told.set()
        await line()


async def take_key(path: str) -> None:
    """Take a key for a request that never ends."""
    async with DurableQueue(path, item_type=int) as queue:
        standing = await QueueAnswers(queue, 10).begin("k", b"content")
        assert standing is not None
        assert standing.token is not None
        say("taken")
        await line()


async def hold_and_fork(path: str) -> None:
    """The same with a child that lives on, holding what it inherited."""

    async def handler(items):
        child = os.fork()
        if child == 0:
            time.sleep(120)  # it is killed long before
            os._exit(0)
        say("child", child)
        say("handling", *items)
        await asyncio.sleep(60)

    async with DurableBatcher(path, handler, item_type=int):
        say("ready")
        await asyncio.sleep(60)


async def suicide(path: str, queue: str = "default") -> None:
    """Die over item 13, as a segmentation fault would make it."""

    async def handler(items):
        say("handling", *items)
        if 13 in items:
            os.kill(os.getpid(), 9)
        return items

    async with DurableBatcher(path, handler, item_type=int, queue=queue) as durable:
        say("ready")
        while (await durable.stats()).depth:
            await asyncio.sleep(0.01)
    say("done")


async def drain(path: str, count: str) -> None:
    """Handle what is there until nothing is left, noting the longest wait for a batch.

    It counts naps of 10 ms in place of seconds: a process that the machine does not let run takes none.
    """
    longest = naps = 0
    mine = []

    async def handler(items):
        nonlocal longest, naps
        longest, naps = max(longest, naps), 0
        mine.extend(items)
        return items

    async def count_naps():
        nonlocal naps
        while True:
            await asyncio.sleep(0.01)
            naps += 1

    async with DurableBatcher(path, handler, item_type=int) as durable:
        say("ready")
        await line()
        counting = asyncio.create_task(count_naps())
        if int(count):  # producers too
            start = os.getpid() * 1_000_000
            await asyncio.gather(*(durable.enqueue(start + n) for n in range(int(count))))
        while (await durable.stats()).depth:
            await asyncio.sleep(0.02)
        counting.cancel()
    say("handled", longest, *mine)


async def look_about(path: str, queue: str) -> None:
    """Look a few times at who lives, and say what could be taken from the dead."""
    neighbours.ALIVE_INTERVAL = 0.05
    alive.GRACE = (
        60.0  # who has lost his lock may not be let run for a while: that is not what is asked
    )
    mine = []

    async def handler(items):
        mine.extend(items)
        return items

    async with DurableBatcher(path, handler, item_type=int, queue=queue) as durable:
        await looked(durable)
    say("handled", *mine)


async def enqueue_late(path: str, times: str) -> None:
    """Enqueue an item whenever a line comes, and say between which times that was."""
    async with DurableQueue(path, item_type=int) as queue:
        say("ready")
        for number in range(int(times)):
            await line()
            before = time.time()
            await queue.enqueue(number)
            say(before, time.time())


async def submit(path: str, number: str) -> None:
    """Submit to a worker elsewhere."""
    async with DurableQueue(path, item_type=int, result_type=int) as queue:
        say(await queue.submit(int(number)))


async def bring_job(path: str, named: str) -> None:
    """Write a part of a job, and wait to be killed."""
    job_intake.CHUNK_ITEMS = 100

    async def source():
        for number in range(1_050):
            yield number
        say("staged")
        await asyncio.sleep(600)

    async with DurableQueue(path, item_type=int) as queue:
        item_id = str if int(named) else None
        await queue.enqueue_job(source(), key="k", item_id=item_id)


async def tell_and_hang(path: str) -> None:
    """Be told of a job's end, and never come back from that."""

    async def on_job_end(status):
        say("telling", status.id)
        await asyncio.sleep(600)

    async with DurableBatcher(
        path, lambda items: items, item_type=int, on_job_end=on_job_end
    ) as durable:
        await durable.enqueue_job([])
        await asyncio.sleep(600)


async def forget_to_close(path: str) -> None:
    durable = DurableBatcher(path, lambda items: items, item_type=int)
    await durable.submit(1)
    say("ready")


if __name__ == "__main__":
    asyncio.run(globals()[sys.argv[2]](sys.argv[1], *sys.argv[3:]))
