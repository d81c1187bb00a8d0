"""What several files of these tests share: an item, a handler that remembers, ways to look and to wait."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import anyio
import anyio.to_thread
import msgspec
import pytest
from support import HAS_UVLOOP

from microbatch import current_batch
from microbatch.durable import DurableBatcher

if TYPE_CHECKING:
    from collections.abc import Iterator

LOOPS = ["asyncio", "uvloop"] if HAS_UVLOOP else ["asyncio"]


class Order(msgspec.Struct):
    """An item with a field to get wrong."""

    number: int
    name: str = "tea"


class Handler:
    """Doubles numbers, remembers its batches, and can be held back or made to fail."""

    def __init__(self, *, fails: dict[int, Exception] | None = None, seconds: float = 0.0) -> None:
        self.batches: list[list[Any]] = []
        self.infos: list[Any] = []
        self.fails = fails or {}
        self.seconds = seconds
        self.free = anyio.Event()
        self.free.set()
        self.cancelled = 0

    @property
    def items(self) -> list[Any]:
        """Every item that was handled, in order."""
        return [item for batch in self.batches for item in batch]

    def hold(self) -> None:
        self.free = anyio.Event()

    async def __call__(self, items: list[Any]) -> list[Any]:
        self.batches.append(list(items))
        self.infos.append(current_batch())
        try:
            await anyio.sleep(self.seconds)
            await self.free.wait()
        except BaseException:
            self.cancelled += 1
            raise
        return [self.fails[item] if item in self.fails else item * 2 for item in items]


def batcher(path: Path, handler: Any, **settings: Any) -> DurableBatcher[Any, Any]:
    """A batcher of ints, unless told otherwise."""
    return DurableBatcher(
        path, handler, **{"item_type": int, "result_type": int, "poll_interval": 0.02} | settings
    )


async def until(condition: Any, seconds: float = 60.0) -> None:
    """Wait until a condition holds: for what another thread, process or connection does."""
    ends = time.monotonic() + seconds
    while True:
        result = condition()
        if hasattr(result, "__await__"):
            result = await result
        if result:
            return
        assert time.monotonic() < ends, "it did not happen in time"
        await anyio.sleep(0.005)


def writer_of(durable: Any) -> Any:
    """The writer of a queue's file."""
    return durable._service.store._writer


async def on_writer(durable: Any, *statements: str) -> list[list[Any]]:
    """Run statements on the writer's own connection, between two transactions; return their rows."""
    answer: Future[list[list[Any]]] = Future()
    connection = writer_of(durable).connection

    def run() -> None:
        answer.set_result([connection._raw.execute(one).fetchall() for one in statements])

    writer_of(durable).post(run)
    return await asyncio.wrap_future(answer)


async def an_hour_passes(durable: Any) -> None:
    """Let what waits for company have waited an hour longer; to wait for less is to depend on the machine's pace."""
    client = durable._service.store._client
    await until(lambda: client.wanted_since is not None)
    client.wanted_since -= 3600.0
    await on_writer(durable)  # it looks anew when something is due


async def empty_log(durable: Any) -> None:
    """Have everything in the file itself, so that its log can be thrown away."""
    [[(busy, _, _)]] = await on_writer(durable, "PRAGMA wal_checkpoint(TRUNCATE)")
    assert not busy


async def looked(durable: Any, times: int = 2) -> None:
    """Wait until a worker has looked so many times at who lives, from beginning to end."""
    neighbours = writer_of(durable).neighbours
    for _ in range(times + 1):
        before = neighbours.next
        await until(lambda before=before: neighbours.next > before)


def ends_loops(test: Any) -> Any:
    """Mark a test that ends event loops without closing: what it leaves says so.

    A claim that comes while the loop is ending begins a batch, whose task asyncio destroys.
    """
    for warning in ("pytest.PytestUnraisableExceptionWarning", "ResourceWarning"):
        test = pytest.mark.filterwarnings(f"ignore::{warning}")(test)
    return pytest.mark.usefixtures("ended_loops")(pytest.mark.asyncio_logs(test))


class NewThreads:
    """The threads of connections that were opened since."""

    def __init__(self) -> None:
        self._before = set(threading.enumerate())

    def running(self) -> list[threading.Thread]:
        new = set(threading.enumerate()) - self._before
        return [thread for thread in new if not thread.name.startswith("AnyIO worker")]


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the file's write lock, as another program would."""
    connection = sqlite3.connect(path, timeout=20, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")
    finally:
        connection.close()


def rows(path: Path, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """Read the file with a connection of our own."""
    connection = sqlite3.connect(path, timeout=20)
    try:
        return connection.execute(sql, parameters).fetchall()
    finally:
        connection.close()


def execute(path: Path, *statements: str) -> None:
    """Change the file with a connection of our own."""
    connection = sqlite3.connect(path, timeout=20, isolation_level=None)
    try:
        for statement in statements:
            connection.execute(statement)
    finally:
        connection.close()


def check_counts(path: Path) -> None:
    """The counts in the queues' rows must be what is really there."""
    names = "ready, scheduled, claimed, done, skipped, cancelled, expired, dead, staged"
    connection = sqlite3.connect(path, timeout=20)
    try:
        connection.execute("BEGIN")
        for queue, *kept in connection.execute(
            f"SELECT id, {names} FROM microbatch_queues"
        ).fetchall():
            real = [
                connection.execute(
                    "SELECT ifnull(sum(count), 0) FROM microbatch_ranges WHERE queue = ? AND state = ?",
                    (queue, state),
                ).fetchone()[0]
                for state in range(9)
            ]
            assert kept == real
    finally:
        connection.close()


class Process:
    """A process that runs a function of process.py."""

    def __init__(self, path: Path, kind: str, *arguments: object) -> None:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        self._process = subprocess.Popen(
            [
                sys.executable,
                str(Path(__file__).with_name("process.py")),
                str(path),
                kind,
                *map(str, arguments),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.pid = self._process.pid

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    async def hear(self) -> list[str]:
        """Return the words of the next line."""
        assert self._process.stdout is not None
        return (await anyio.to_thread.run_sync(self._process.stdout.readline)).split()

    def tell(self) -> None:
        """Send a line."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    async def end(self) -> int:
        """Wait for its end and return its status."""
        return await anyio.to_thread.run_sync(self._process.wait)


class Shim:
    """The C shim, compiled, and the environment that switches it on."""

    def __init__(self, folder: Path, *, match: str, **settings: object) -> None:
        self._library = folder / "shim.so"
        if not self._library.exists():
            compiler = shutil.which("cc")
            assert compiler is not None
            source = Path(__file__).with_name("shim.c")
            subprocess.run(
                [
                    compiler,
                    "-shared",
                    "-fPIC",
                    "-O1",
                    "-o",
                    str(self._library),
                    str(source),
                    "-ldl",
                ],
                check=True,
            )
        self.environment = {"LD_PRELOAD": str(self._library), "SHIM_MATCH": match}
        self.environment |= {f"SHIM_{name.upper()}": str(value) for name, value in settings.items()}

    @staticmethod
    def available() -> bool:
        return sys.platform == "linux" and shutil.which("cc") is not None

    def start(self, program: str | Path, *arguments: object) -> subprocess.Popen[str]:
        """Run a Python program of this folder's, or any other, under the shim."""
        path = Path(__file__).parent / program
        environment = (
            os.environ
            | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
            | self.environment
        )
        return subprocess.Popen(
            [sys.executable, str(path), *map(str, arguments)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )


@contextlib.contextmanager
def locked_out(path: Path) -> Any:
    """Move the file away for a while."""
    away = path.with_name("away.db")
    path.rename(away)
    try:
        yield
    finally:
        away.rename(path)


def states(path: Path) -> dict[int, str]:
    """What each item is that the file knows, by id."""
    names = [
        "ready",
        "scheduled",
        "claimed",
        "done",
        "skipped",
        "cancelled",
        "expired",
        "dead",
        "staged",
    ]
    return {
        number: names[state]
        for first, count, state in rows(
            path, "SELECT first_id, count, state FROM microbatch_ranges"
        )
        for number in range(first, first + count)
    }


def check_jobs(path: Path) -> None:
    """What jobs' rows count must be what is there, and nothing may lie about that belongs to none."""
    check_counts(path)
    connection = sqlite3.connect(path, timeout=20)
    try:
        connection.execute("BEGIN")
        columns = "total, succeeded, failed, skipped, cancelled, expired"
        jobs = {
            number: (life, kept, *counts)
            for number, life, kept, *counts in connection.execute(
                f"SELECT id, life, kept, {columns} FROM microbatch_jobs"
            )
        }
        for job, (life, kept, total, *counts) in jobs.items():
            assert life != 5, "a job that goes should have gone"
            real = {
                state: connection.execute(
                    "SELECT ifnull(sum(count), 0) FROM microbatch_ranges WHERE job = ? AND state = ?",
                    (job, state),
                ).fetchone()[0]
                for state in range(9)
            }
            if life and kept:
                assert counts == [real[3], real[7], real[4], real[5], real[6]], job
                assert total == sum(real.values())
            lanes = connection.execute(
                "SELECT count(*) FROM microbatch_lanes WHERE lane = ?", (job,)
            ).fetchone()[0]
            assert lanes == (life in (1, 2, 3)), job
            if life == 4:
                assert total == sum(counts)
        for table, column in (
            ("ranges", "job"), ("item_ids", "job"), ("job_details", "job"), ("lanes", "lane"),
        ):  # fmt: skip
            found = connection.execute(f"SELECT DISTINCT {column} FROM microbatch_{table}")
            assert {number for (number,) in found} - {None, 0} <= jobs.keys(), table
        for table, column in (("errors", "id"), ("results", "first_id"), ("blobs", "first_id")):
            orphans = connection.execute(
                f"""SELECT count(*) FROM microbatch_{table} AS t WHERE NOT EXISTS (
                    SELECT 1 FROM microbatch_ranges AS r WHERE r.first_id = (
                        SELECT max(first_id) FROM microbatch_ranges WHERE first_id <= t.{column})
                    AND t.{column} < r.first_id + r.count)"""
            ).fetchone()[0]
            assert not orphans or table == "blobs", table
    finally:
        connection.close()
