"""Which bulk form for asyncpg: executemany, unnest or COPY, each as the handler of a batcher.

    python examples/postgres_bulk.py postgresql://user@host/database [ROWS]

Rows come from a task each. The last column says whether every caller got its own row's id, which only a
statement that returns rows can give. The table stands in a schema of its own, which is dropped.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any

import asyncpg

from microbatch import Batcher

Row = tuple[str, float]
Handler = Callable[[list[Row]], Awaitable[list[int | None]]]
SIZES = (10, 100, 1_000)
TABLE = """DROP SCHEMA IF EXISTS microbatch_example CASCADE; CREATE SCHEMA microbatch_example;
CREATE TABLE microbatch_example.reading (id bigserial PRIMARY KEY, sensor text, value float8)"""
ONE = "INSERT INTO microbatch_example.reading (sensor, value) VALUES ($1, $2) RETURNING id"
MANY = "INSERT INTO microbatch_example.reading (sensor, value) VALUES ($1, $2)"
UNNEST = """INSERT INTO microbatch_example.reading (sensor, value)
SELECT * FROM unnest($1::text[], $2::float8[]) RETURNING id, sensor"""


def handlers(pool: "asyncpg.Pool[Any]") -> dict[str, Handler]:
    """Return the ways to write a batch."""

    async def executemany(rows: list[Row]) -> list[int | None]:
        await pool.executemany(MANY, rows)  # a transaction of its own, and pipelined
        return [None] * len(rows)

    async def unnest(rows: list[Row]) -> list[int | None]:
        found = await pool.fetch(UNNEST, *map(list, zip(*rows, strict=True)))
        ids = {row["sensor"]: row["id"] for row in found}  # RETURNING promises no order
        return [ids[sensor] for sensor, _ in rows]

    async def copy(rows: list[Row]) -> list[int | None]:
        await pool.copy_records_to_table(
            "reading", schema_name="microbatch_example", records=rows, columns=["sensor", "value"]
        )
        return [None] * len(rows)

    return {"executemany": executemany, "unnest": unnest, "COPY": copy}


async def main(dsn: str, count: int) -> None:
    """Write the same rows in each way, in three sizes, and one by one."""
    async with asyncpg.create_pool(dsn, min_size=4, max_size=4) as pool:
        await pool.execute(TABLE)

        async def single(row: Row) -> int:
            return int(await pool.fetchval(ONE, *row))

        async def show(title: str, write: Callable[[Row], Awaitable[int | None]]) -> None:
            rows = [(f"{title} {number}", float(number)) for number in range(count)]
            start = perf_counter()
            ids = await asyncio.gather(*map(write, rows))
            seconds = perf_counter() - start
            stored = dict(await pool.fetch("SELECT sensor, id FROM microbatch_example.reading"))
            if len(stored) != count:
                raise RuntimeError(f"{title}: {len(stored):,} of {count:,} rows are there")
            own = sum(stored[sensor] == key for (sensor, _), key in zip(rows, ids, strict=True))
            print(f"{title:<19}{count / seconds:>9,.0f} rows/s  own id: {own:,}")
            await pool.execute("TRUNCATE microbatch_example.reading")

        await show("one by one", single)
        for name, handler in handlers(pool).items():
            for size in SIZES:
                async with Batcher(handler, max_batch_size=size, max_concurrency=2) as batcher:
                    await show(f"{name}, {size:,}", batcher.submit)
        await pool.execute("DROP SCHEMA microbatch_example CASCADE")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 20_000))
