"""Bytes of a waiting caller and of a batcher, and what stays after a million items.

Every figure is taken in a process of its own, as growth of its resident set, the caller's own
task included.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
from functools import partial
from pathlib import Path

from benchmarks import child, contenders, output, runner
from benchmarks.contenders import SETTINGS, Gate, echo
from benchmarks.options import SUBJECTS
from microbatch import Batcher

OPTIONS = SUBJECTS


def resident():
    """Return this process's resident bytes, garbage collected first."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def _settle():
    for _ in range(5):
        await asyncio.sleep(0)


# Callers that wait


async def waiting_at(gate, submit, n):
    """Return the bytes per caller while n of them wait, and let them go."""
    asyncio.get_running_loop().slow_callback_duration = 60
    warm = [asyncio.create_task(submit(-i)) for i in range(200)]
    await _settle()
    tasks = [None] * n
    before = resident()
    for i in range(n):
        tasks[i] = asyncio.create_task(submit(i))
    await _settle()
    after = resident()
    gate.opened.set()
    await _settle()
    for task in [*warm, *tasks]:
        task.cancel()
    await asyncio.gather(*warm, *tasks, return_exceptions=True)
    return (after - before) / n


def caller(name, n):
    """Run in the process: the bytes of a contender's waiting caller."""
    contender, gate = contenders.ALL[name], Gate()

    async def main():
        async with contender.way(gate.handler, 100, contender.shortest) as submit:
            return await waiting_at(gate, submit, n)

    return asyncio.run(main())


WAITING = ["bare task + future", contenders.FLOOR, "submit", "dloader", "aiodataloader"]
WAITING += ["strawberry", "batchlet", "batched", "aiomisc"]


def waiting(subject, names, *, n, rounds):
    """Return {name: spread of bytes per waiting caller}, interleaved."""
    ways = {name: partial(subject.call, caller, name, n) for name in names}
    return runner.spreads(runner.in_turns(ways, rounds))


# All else


async def kept(n, **settings):
    """The bytes per item that stay after n items in waves of 1,000."""
    numbers = itertools.count()  # with partitions: new ones in each wave
    async with Batcher(echo, **settings, **SETTINGS) as batcher:

        async def waves(count):
            for _ in range(count):
                await asyncio.gather(*[batcher.submit(i) for i in itertools.islice(numbers, 1000)])

        await waves(20)
        before = resident()
        await waves(n // 1000)
        return (resident() - before) / n


async def live_partitions(n):
    """The bytes per caller while n of them wait, each in a partition of its own."""
    gate = Gate()
    async with Batcher(gate.handler, partition=abs, **SETTINGS) as batcher:
        return await waiting_at(gate, batcher.submit, n)


async def kept_cancelled(n):
    """The bytes per cancelled caller that stay while the batcher's only slot is busy."""
    gate = Gate()
    async with Batcher(gate.handler, max_pending=None) as batcher:
        first = asyncio.create_task(batcher.submit(0))
        await _settle()

        async def wave():
            tasks = [asyncio.create_task(batcher.submit(i)) for i in range(1000)]
            await _settle()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        for _ in range(5):
            await wave()
        before = resident()
        for _ in range(n // 1000):
            await wave()
        bytes_each = (resident() - before) / n
        gate.opened.set()
        await first
    return bytes_each


async def batchers(n, *, used=False):
    """The bytes of a batcher, just made or after its first item."""

    async def make(count):
        made = [Batcher(echo) for _ in range(count)]
        for batcher in made if used else ():
            await batcher.submit(0)
        return made

    warm = await make(100)
    before = resident()
    made = await make(n)
    grown = resident() - before
    for batcher in [*warm, *made]:
        await batcher.aclose()
    return grown / n


FIGURES = {
    "of a batcher, just made": (batchers, 2_000),
    "of a batcher that has handled an item": (partial(batchers, used=True), 2_000),
    "kept after so many items": (kept, 1_000_000),
    "kept after so many partitions": (partial(kept, partition=abs), 100_000),
    "with so many live partitions": (live_partitions, 100_000),
    "kept after so many cancelled callers": (kept_cancelled, 100_000),
}


def figure(name, n):
    """Run in the process."""
    return asyncio.run(FIGURES[name][0](n))


def run(chosen, page):
    n = 1000 if chosen.tiny else 20_000
    rounds = chosen.rounds or (1 if chosen.tiny else 5)
    counts = {name: 1000 if chosen.tiny else most for name, (_, most) in FIGURES.items()}
    subjects = child.subjects(chosen)
    callers, others = {}, {}
    for heading, subject in subjects.items():
        names = [name for name in WAITING if name in subject.contenders]
        names = ["bare task + future", "submit"] if chosen.tiny else names
        callers[heading] = waiting(subject, names, n=n, rounds=rounds)
        others[heading] = {
            name: subject.call(figure, name, count) for name, count in counts.items()
        }
        page.save({"n": n, "waiting": callers, "others": others})
    for heading, found in callers.items():
        bare = found["bare task + future"]["median"]
        page.table(
            [f"{n:,} callers waiting, {heading}", "bytes each", "of a bare task + future"],
            [(k, output.shown(v, 0), f"{v['median'] / bare:.2f}") for k, v in found.items()],
        )
    page.table(
        ["bytes each", "number", *others],
        [
            (name, f"{count:,}", *[f"{found[name]:,.2f}" for found in others.values()])
            for name, count in counts.items()
        ],
    )
    return {"n": n, "waiting": callers, "others": others}
