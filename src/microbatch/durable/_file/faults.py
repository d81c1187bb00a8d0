"""What SQLite's errors say: that the file cannot be used, or that one statement failed on its own account."""

from __future__ import annotations

import sqlite3

from microbatch.durable.errors import QueueCorrupt, QueueUnavailable

#: Another connection holds the lock: ask again.
LOCKED = frozenset((sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED))

DAMAGED = frozenset((sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB))

#: The fault lies with the file or the disk, not with a statement.
FAULTS = DAMAGED | {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_NOMEM,
}


def primary_code(error: sqlite3.Error) -> int:
    """Return SQLite's primary code; 0 where there is none.

    Errors of the sqlite3 module itself have none; an operational one of those means bytes that are no text:
    garbage in a page.
    """
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return sqlite3.SQLITE_CORRUPT if isinstance(error, sqlite3.OperationalError) else 0
    return int(code) & 0xFF  # the extended code has it in its low byte


def unavailable(path: str, error: sqlite3.Error) -> QueueUnavailable | None:
    """Return what to raise for an error that says that the file cannot be used; None for another one."""
    code = primary_code(error)
    if code in DAMAGED:
        return QueueCorrupt(path, str(error))
    return QueueUnavailable(path, str(error)) if code in LOCKED | FAULTS else None
