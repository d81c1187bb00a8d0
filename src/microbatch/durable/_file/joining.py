"""Enqueue inside a transaction of the application's: the outbox pattern, without an outbox table."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any, NamedTuple

from microbatch.durable.errors import QueueUnavailable

from . import sql
from .schema import SYNCHRONOUS, wal_size
from .session import Session

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    import aiosqlite

    from .limits import Limits
    from .records import Clash, NewItem, Step, Stored


class Joining(NamedTuple):
    """Where an item belongs, and on which terms."""

    path: Path
    queue: str
    synchronous: str
    limits: Limits
    now: float
    ticket: int


def enqueue_on(connection: sqlite3.Connection, item: NewItem, joining: Joining) -> Stored | Clash:
    """Store an item on an ``sqlite3`` connection of the application's."""
    _check_transaction(connection.in_transaction)
    steps = _steps(item, joining)
    cursor = connection.cursor()
    cursor.row_factory = None  # the application may want rows of another kind
    answer = None
    try:
        while True:
            statement, parameters, many = steps.send(answer)
            if many:
                cursor.executemany(statement, parameters)
                answer = None
            else:
                answer = cursor.execute(statement, parameters).fetchall()
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    except sqlite3.Error as error:
        raise QueueUnavailable(str(joining.path), str(error)) from error
    finally:
        cursor.close()


async def enqueue_on_aiosqlite(
    connection: aiosqlite.Connection, item: NewItem, joining: Joining
) -> Stored | Clash:
    """Store an item on an ``aiosqlite`` connection of the application's."""
    _check_transaction(connection.in_transaction)
    steps = _steps(item, joining)
    cursor = await connection.cursor()
    cursor.row_factory = None
    answer: Any = None
    try:
        while True:
            statement, parameters, many = steps.send(answer)
            if many:
                await cursor.executemany(statement, parameters)
                answer = None
            else:
                await cursor.execute(statement, parameters)
                answer = list(await cursor.fetchall())
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    except sqlite3.Error as error:
        raise QueueUnavailable(str(joining.path), str(error)) from error
    finally:
        await cursor.close()


def _check_transaction(in_transaction: bool) -> None:
    if not in_transaction:
        message = (
            "enqueue_in needs a connection with a write transaction open: "
            "begin one, for example with BEGIN IMMEDIATE"
        )
        raise RuntimeError(message)


def _steps(item: NewItem, joining: Joining) -> Generator[Step, Any, Stored | Clash]:
    files = yield "PRAGMA database_list", (), False
    ((level,),) = yield "PRAGMA synchronous", (), False
    path = joining.path
    file = next(file for _, name, file in files if name == "main")
    has_tables = yield sql.HAS_TABLES, (), False
    found = (yield sql.QUEUE_ID, (joining.queue,), False) if has_tables else []
    if not found:
        reason = f"it has no queue {joining.queue!r} yet: open it once before"
        raise QueueUnavailable(str(path), reason)
    try:
        same = path.samefile(file)
    except OSError:
        same = False
    if not same:
        message = f"enqueue_in needs a connection to {str(path)!r}, got one to {file!r}"
        raise ValueError(message)
    if level < SYNCHRONOUS[joining.synchronous]:
        message = (
            "enqueue_in needs a connection with PRAGMA synchronous of at least "
            f"{joining.synchronous!r}, got level {level}: "
            "else the item could be lost with a power cut after it was acknowledged"
        )
        raise ValueError(message)
    session = Session(
        path=path, now=joining.now, ticket=joining.ticket, wal_size=lambda: wal_size(path)
    )
    queue = found[0][0]
    answers, _ = yield from session.enqueue(queue, joining.limits, [[item]], None)
    (answer,) = answers
    if isinstance(answer, Exception):
        raise answer
    yield from session.finish()
    return answer[0] if isinstance(answer, list) else answer
