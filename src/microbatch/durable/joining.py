"""Enqueue inside a transaction of the application's: the outbox pattern, without an outbox table."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import QueueUnavailable
from .inserting import enqueueing, joining_queue
from .store import SYNCHRONOUS

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    import aiosqlite

    from .inserting import Step
    from .limits import Limits
    from .records import NewItem, Stored


class Joining(NamedTuple):
    """Where an item belongs, and on which terms."""

    path: Path
    queue: str
    synchronous: str
    limits: Limits
    now: float


def enqueue_on(connection: sqlite3.Connection, item: NewItem, joining: Joining) -> Stored:
    """Store an item on an ``sqlite3`` connection of the application's."""
    _check_transaction(connection.in_transaction)
    steps = _steps(item, joining)
    cursor = connection.cursor()
    cursor.row_factory = None  # the application may want rows of another kind
    answer = None
    try:
        while True:
            sql, parameters, many = steps.send(answer)
            if many:
                cursor.executemany(sql, parameters)
            else:
                answer = cursor.execute(sql, parameters).fetchall()
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    except sqlite3.Error as error:
        raise QueueUnavailable(str(joining.path), str(error)) from error
    finally:
        cursor.close()


async def enqueue_on_aiosqlite(
    connection: aiosqlite.Connection, item: NewItem, joining: Joining
) -> Stored:
    """Store an item on an ``aiosqlite`` connection of the application's."""
    _check_transaction(connection.in_transaction)
    steps = _steps(item, joining)
    cursor = await connection.cursor()
    cursor.row_factory = None
    answer: Any = None
    try:
        while True:
            sql, parameters, many = steps.send(answer)
            if many:
                await cursor.executemany(sql, parameters)
            else:
                await cursor.execute(sql, parameters)
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


def _steps(item: NewItem, joining: Joining) -> Generator[Step, Any, Stored]:
    path, queue, synchronous, limits, now = joining
    number, file, level = yield from joining_queue(queue)
    if number is None:
        raise QueueUnavailable(str(path), f"it has no queue {queue!r} yet: open it once before")
    try:
        same = path.samefile(file)
    except OSError:
        same = False
    if not same:
        message = f"enqueue_in needs a connection to {str(path)!r}, got one to {file!r}"
        raise ValueError(message)
    if level < SYNCHRONOUS[synchronous]:
        message = (
            f"enqueue_in needs a connection with PRAGMA synchronous of at least {synchronous!r}, "
            f"got level {level}: "
            "else the item could be lost with a power cut after it was acknowledged"
        )
        raise ValueError(message)
    (answer,) = yield from enqueueing(number, queue, path, now, limits, [[item]], None)
    if isinstance(answer, Exception):
        raise answer
    return answer[0]
