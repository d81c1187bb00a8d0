"""Insert rows into PostgreSQL for many callers at once, each of whom gets the id of its own row.

    python examples/insert_returning.py postgresql://user@host/database

A statement for each row, then one for each batch, twice: with asyncpg, where arrays go in through
``unnest`` and the ids come back beside a column that tells the rows apart, for ``RETURNING`` promises
no order; and with SQLAlchemy, which writes a multi-row ``INSERT`` and sorts what it returns. The
statements are counted by the drivers. The table stands in a schema of its own, which is dropped.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from time import perf_counter

import asyncpg
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from microbatch import Batcher

ROWS, SIZE, CONNECTIONS = 2_000, 100, 4
TABLE = """DROP SCHEMA IF EXISTS microbatch_example CASCADE; CREATE SCHEMA microbatch_example;
CREATE TABLE microbatch_example.visitor (id bigserial PRIMARY KEY, email text NOT NULL UNIQUE)"""
ONE = "INSERT INTO microbatch_example.visitor (email) VALUES ($1) RETURNING id"
MANY = """INSERT INTO microbatch_example.visitor (email)
SELECT * FROM unnest($1::text[]) RETURNING id, email"""
Table = sa.Table(
    "visitor",
    sa.MetaData(schema="microbatch_example"),
    sa.Column("id", sa.BigInteger, primary_key=True),
    sa.Column("email", sa.Text),
)
# Sorted: row i of the answer is row i of what was given. SQLAlchemy fits many rows in a statement.
INSERT = sa.insert(Table).returning(Table.c.id, sort_by_parameter_order=True)


async def main(dsn: str) -> None:
    """Insert the same number of rows in three ways; count statements, and see whose ids came back."""
    statements = 0

    def count(query: str) -> None:
        nonlocal statements
        statements += query.startswith("INSERT")  # a pool resets connections between uses

    async def prepare(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        connection.add_query_logger(lambda record: count(record.query))

    async def each(email: str) -> int:
        return int(await pool.fetchval(ONE, email))

    async def unnested(emails: list[str]) -> list[int]:
        found = {row["email"]: row["id"] for row in await pool.fetch(MANY, emails)}
        return [found[email] for email in emails]

    async def by_sqlalchemy(emails: list[str]) -> list[int]:
        async with engine.begin() as transaction:
            answer = await transaction.execute(INSERT, [{"email": email} for email in emails])
            return list(answer.scalars())

    async def show(title: str, insert: Callable[[str], Awaitable[int]]) -> None:
        nonlocal statements
        emails = [f"{title}-{number}@example.org" for number in range(ROWS)]
        statements, start = 0, perf_counter()
        ids = await asyncio.gather(*map(insert, emails))
        seconds, counted = perf_counter() - start, statements
        stored = dict(await pool.fetch("SELECT email, id FROM microbatch_example.visitor"))
        own = sum(stored[email] == key for email, key in zip(emails, ids, strict=True))
        print(f"{title:<11}{counted:>6,} statements  {seconds * 1e3:>6,.0f} ms  own id: {own:,}")

    engine = create_async_engine(dsn.replace("postgresql:", "postgresql+asyncpg:", 1))
    sa.event.listen(engine.sync_engine, "before_cursor_execute", lambda *args: count(args[2]))
    async with asyncpg.create_pool(
        dsn, min_size=CONNECTIONS, max_size=CONNECTIONS, init=prepare
    ) as pool:
        await pool.execute(TABLE)
        await show("each", each)
        for title, handler in (("unnest", unnested), ("SQLAlchemy", by_sqlalchemy)):
            async with Batcher(handler, max_batch_size=SIZE) as batcher:
                await show(title, batcher.submit)
        await engine.dispose()
        await pool.execute("DROP SCHEMA microbatch_example CASCADE")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
