"""Write batches with one multi-row INSERT each, as far as the database's parameters reach.

    python examples/insert_values.py

``VALUES (?, ?, ?), (?, ?, ?), ...`` takes a parameter for each column of each row, and SQLite allows
32,766 of them in a statement (more where it was built so). A batch with more is split, and all of its
statements are one transaction. ``RETURNING`` promises no order, so ids come from a range set aside.
"""

import asyncio
import sqlite3
from collections.abc import Sequence
from contextlib import closing

from microbatch import Batcher

COLUMNS = ("key", "name", "price")
Row = tuple[int, str, float]


class Products:
    """A table, and the handler that writes whole batches to it."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self.database = database
        self.rows_in_statements: list[int] = []
        limit = database.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER)
        self.at_once = limit // len(COLUMNS)
        database.execute("CREATE TABLE product (key INTEGER PRIMARY KEY, name TEXT, price REAL)")

    def insert(self, rows: Sequence[Row]) -> None:
        """Write all rows or none."""
        with self.database:
            for start in range(0, len(rows), self.at_once):
                self.insert_some(rows[start : start + self.at_once])

    def insert_some(self, rows: Sequence[Row]) -> None:
        """Write as many rows as a statement can take."""
        marks = f"({', '.join('?' * len(COLUMNS))})"
        statement = f"INSERT INTO product VALUES {', '.join([marks] * len(rows))}"
        self.database.execute(statement, [value for row in rows for value in row])
        self.rows_in_statements.append(len(rows))


async def main() -> None:
    """Hand in 25,000 rows of three columns: 75,000 parameters, so three statements."""
    with closing(sqlite3.connect(":memory:", check_same_thread=False)) as database:
        database.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 32_766)  # as SQLite comes
        products = Products(database)
        async with Batcher(products.insert, max_batch_size=25_000, max_pending=None) as batcher:
            await batcher.submit_many((key, f"product {key}", key / 100) for key in range(25_000))
        (stored,) = database.execute("SELECT count(*) FROM product").fetchone()
    print(f"{stored:,} rows by statements of {products.rows_in_statements}")


if __name__ == "__main__":
    asyncio.run(main())
