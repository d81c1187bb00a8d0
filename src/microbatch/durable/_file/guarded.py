"""A connection that refuses to end a transaction which only its owner may end."""

from __future__ import annotations

import re
import sqlite3
from typing import Any, Self

#: How a statement begins that ends, or begins, a transaction. Going back to a savepoint does neither.
_ENDS_TRANSACTION = re.compile(
    r"(?:[\s;]|--[^\n]*(?:\n|\Z)|/\*.*?(?:\*/|\Z))*"
    r"(?:begin|commit|end|rollback(?!\s+(?:transaction\s+)?to\b))\b",
    re.IGNORECASE | re.DOTALL,
)

#: Attributes that commit what is open when they are set.
_COMMITS = frozenset(("isolation_level", "autocommit"))


class _Cursor(sqlite3.Cursor):
    connection: Guarded

    def execute(self, sql: str, parameters: Any = (), /) -> Self:
        self.connection.refuse_end(sql)
        return super().execute(sql, parameters)

    def executemany(self, sql: str, parameters: Any, /) -> Self:
        self.connection.refuse_end(sql)
        return super().executemany(sql, parameters)

    def executescript(self, script: str, /) -> sqlite3.Cursor:
        self.connection.refuse_end(script)
        self.connection.refuse_if_guarded()  # it commits before it starts
        return super().executescript(script)


class Guarded(sqlite3.Connection):
    """A connection that can be told to let nobody end its transaction.

    Attributes:
        guarded: Whether it does so now.
        over: Whether it takes nothing more but a rollback.
    """

    guarded = False
    over = False

    def cursor(self, factory: Any = _Cursor) -> Any:
        return super().cursor(factory)

    # Which cursor sqlite3 itself takes for these differs among its versions.

    def execute(self, sql: str, parameters: Any = (), /) -> Any:
        return self.cursor().execute(sql, parameters)

    def executemany(self, sql: str, parameters: Any, /) -> Any:
        return self.cursor().executemany(sql, parameters)

    def executescript(self, script: str, /) -> Any:
        return self.cursor().executescript(script)

    def commit(self) -> None:
        self.refuse_end("COMMIT")
        super().commit()

    def rollback(self) -> None:
        self.refuse_if_guarded()
        super().rollback()

    def close(self) -> None:
        self.refuse_if_guarded()
        super().close()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _COMMITS:
            self.refuse_end("COMMIT")
        super().__setattr__(name, value)

    def refuse_end(self, sql: str) -> None:
        """Refuse a statement that would end the transaction, or begin another one."""
        if self.over and sql != "ROLLBACK":
            message = "the settle transaction is over: on_settle took too long, or was stopped"
            raise sqlite3.ProgrammingError(message)
        if self.guarded and _ENDS_TRANSACTION.match(sql):
            self.refuse_if_guarded()

    def refuse_if_guarded(self) -> None:
        """Refuse what would end the transaction."""
        if self.guarded:
            message = "on_settle runs inside the settle transaction: it may not begin, commit or roll back"
            raise sqlite3.ProgrammingError(message)
