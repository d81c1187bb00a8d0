"""What the tests of the connections beside the writer's share: a file, and statements for it."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from typing import TYPE_CHECKING

import anyio

from microbatch.durable._file.guarded import Guarded

if TYPE_CHECKING:
    from pathlib import Path


def make_file(path: Path) -> None:
    """Make a file in WAL with a table."""
    with contextlib.closing(sqlite3.connect(path)) as raw:
        raw.execute("PRAGMA journal_mode = WAL")
        raw.execute("CREATE TABLE numbers (number)")


def count():
    """How many numbers there are."""
    ((number,),) = yield "SELECT count(*) FROM numbers", (), False
    return number


def insert(*numbers):
    """Some more of them."""
    yield "INSERT INTO numbers VALUES (?)", [(number,) for number in numbers], True
    return len(numbers)


def query(sql, *parameters):
    """Whatever it is."""
    rows = yield sql, parameters, False
    return rows


class Gate:
    """Statements that stop in the middle of their transaction until they are let on."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()
        self.closed = threading.Event()

    def steps(self, *before):
        try:
            yield from insert(*before) if before else count()
            self.reached.set()
            assert self.open.wait(20)
            return (yield from count())
        finally:
            self.closed.set()


class Watched(Guarded):
    """A connection that opens when it is let, and remembers whether it was closed."""

    may_open: threading.Event
    opening: threading.Event
    closed: threading.Event

    def __init__(self, *arguments, **settings):
        self.opening.set()
        assert self.may_open.wait(20)
        super().__init__(*arguments, **settings)

    def close(self):
        super().close()
        self.closed.set()


def watched() -> type[Watched]:
    """Return a class of its own for one test."""
    events = {name: threading.Event() for name in ("may_open", "opening", "closed")}
    return type("Connection", (Watched,), events)


def is_free(path: Path) -> bool:
    """Tell whether nobody has the file's write lock."""
    with contextlib.closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as raw:
        try:
            raw.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
        return True


@contextlib.asynccontextmanager
async def staying(end, tried):
    """Not stop when told to: go on once the transaction is over, and tell when that was tried."""
    with anyio.CancelScope(shield=True):
        await end.wait()
    try:
        yield
    finally:
        tried.set()
