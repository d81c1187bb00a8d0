"""What several files of these tests share: calling the command, and making files for it to look at."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio

from microbatch import ItemError
from microbatch.cli import main
from microbatch.durable import DurableBatcher, DurableQueue, ItemFailed

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


class Ended(NamedTuple):
    """How a call of the command ended.

    Attributes:
        code: Its exit code.
        out: What it wrote to stdout.
        err: What it wrote to stderr.
    """

    code: int
    out: str
    err: str

    @property
    def objects(self) -> list[Any]:
        """What it wrote, each line as JSON."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def object(self) -> Any:
        """The one object that it wrote."""
        (one,) = self.objects
        return one


class Called:
    """Calls the command in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: object) -> Ended:
        self._capsys.readouterr()
        try:
            code = main([str(one) for one in arguments])
        except SystemExit as end:
            code = int(end.code or 0)
        return Ended(code, *self._capsys.readouterr())


def settled(items: list[Any]) -> list[Any]:
    """A handler: doubles numbers, refuses 13, and fails at what is no number."""
    return [_doubled(item) for item in items]


def _doubled(item: Any) -> Any:
    try:
        return ItemError("thirteen is refused", code="unlucky") if item == 13 else item * 2
    except TypeError as error:
        return error


def fill(path: Path, items: list[Any], *, queue: str = "default", **settings: Any) -> None:
    """Store items in a queue's file."""

    async def run() -> None:
        async with DurableQueue(path, item_type=Any, queue=queue, telemetry=False) as opened:
            await opened.enqueue_many(items, **settings)

    anyio.run(run)


def work_off(path: Path, items: list[Any], *, queue: str = "default", **settings: Any) -> None:
    """Store items and have them handled by `settled`."""

    async def run() -> None:
        async with DurableBatcher(
            path, settled, item_type=Any, queue=queue, telemetry=False, **settings
        ) as batcher:
            for ticket in await batcher.enqueue_many(items):
                try:
                    await batcher.result(ticket, 30)
                except Exception:
                    continue

    anyio.run(run)


def run_job(path: Path, items: list[Any], *, queue: str = "default", **settings: Any) -> str:
    """Have items handled as a job; return its id."""

    async def run() -> str:
        async with DurableBatcher(
            path, settled, item_type=Any, queue=queue, telemetry=False
        ) as batcher:
            job = await batcher.enqueue_job(items, **settings)
            await job.wait(30)
            return job.id

    return anyio.run(run)


def make_shop(path: Path) -> str:
    """Make the file that the examples speak of: a done item, a dead one, a delayed one, a job; return its id."""

    async def run() -> str:
        async with DurableBatcher(path, settled, item_type=Any, telemetry=False) as batcher:
            tickets = await batcher.enqueue_many(["ann", 13])
            await batcher.enqueue({"to": "bob"}, key="bob", delay=3600)
            for ticket in tickets:
                with contextlib.suppress(ItemFailed):
                    await batcher.result(ticket, 30)
            job = await batcher.enqueue_job(["a", "b", 13])
            await job.wait(30)
            return job.id

    return anyio.run(run)


def sql(path: Path, *statements: str) -> list[Any]:
    """Run statements on a file, as somebody does who should not; return the last one's rows."""
    with closing(sqlite3.connect(path, isolation_level=None)) as raw:
        return [raw.execute(one).fetchall() for one in statements][-1]


def beside(path: Path) -> set[str]:
    """Return the names of what stands in a file's folder."""
    return {one.name for one in path.parent.iterdir()}
