"""The floors: what one would write by hand in a few lines, without any safety.

Floor (a) is `FloorBatcher`, the 20-line batcher that every ratio of these benchmarks is taken to.
It loses callers if the handler returns too few results, sends what cancelled callers no longer
wait for, has no bound, and cannot be closed. Its twin for trio gives each item a `trio.Event`.
"""

from __future__ import annotations

import asyncio

import trio


class FloorBatcher:
    """Floor (a): a list of pairs, `create_future`, `call_later`, a task for each handler call."""

    def __init__(self, handler, *, max_batch_size=100, max_wait=0.0):
        self._handler, self._size, self._wait = handler, max_batch_size, max_wait
        self._pending, self._timer = [], None

    async def submit(self, item):
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self._pending.append((item, future))
        if len(self._pending) >= self._size:
            self._flush()
        elif self._timer is None:
            self._timer = loop.call_later(self._wait, self._flush)
        return await future

    def _flush(self):
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        batch, self._pending = self._pending, []
        asyncio.get_running_loop().create_task(self._run(batch))

    async def _run(self, batch):
        try:
            results = await self._handler([item for item, _ in batch])
        except Exception as error:
            for _, future in batch:
                future.set_exception(error)
        else:
            for (_, future), result in zip(batch, results, strict=True):
                future.set_result(result)


class TrioFloorBatcher:
    """The floor for trio: an Event for each item, a task for each timer and handler call."""

    def __init__(self, handler, nursery, *, max_batch_size=100, max_wait=0.0):
        self._handler, self._nursery = handler, nursery
        self._size, self._wait = max_batch_size, max_wait
        self._pending = []

    async def submit(self, item):
        pending = self._pending
        entry = [item, trio.Event(), None]
        pending.append(entry)
        if len(pending) >= self._size:
            self._pending = []
            self._nursery.start_soon(self._run, pending)
        elif len(pending) == 1:
            self._nursery.start_soon(self._later, pending)
        await entry[1].wait()
        return entry[2]

    async def _later(self, pending):
        await trio.sleep(self._wait)
        if pending is self._pending:
            self._pending = []
            await self._run(pending)

    async def _run(self, batch):
        results = await self._handler([item for item, _, _ in batch])
        for entry, result in zip(batch, results, strict=True):
            entry[2] = result
            entry[1].set()


class Bare:
    """The task and the future alone: what any batcher with a task for each caller pays at least."""

    def __init__(self):
        self.futures = []

    async def submit(self, _item):
        future = asyncio.get_running_loop().create_future()
        self.futures.append(future)
        return await future
