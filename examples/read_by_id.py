"""Read rows by id from PostgreSQL for many callers at once: a query for all of them, not one each.

    python examples/read_by_id.py postgresql://user@host/database

So do GraphQL resolvers and serializers: each asks for one author and knows of no other caller. Who
asks for the same id shares a slot of the batch. An id without a row is an error for those who asked
for it and for nobody else. For comparison each call makes a query of its own, over the same pool.
The tables stand in a schema of their own, ``microbatch_example``, which is dropped at the end.
"""

import asyncio
import random
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from time import perf_counter

import asyncpg

from microbatch import batched

AUTHORS, BOOKS = 5_000, 10_000
FILL = f"""DROP SCHEMA IF EXISTS microbatch_example CASCADE; CREATE SCHEMA microbatch_example;
CREATE TABLE microbatch_example.author (id int PRIMARY KEY, name text NOT NULL);
INSERT INTO microbatch_example.author SELECT id, 'author ' || id
FROM generate_series(1, {AUTHORS}) id WHERE id % 100 > 0"""
ONE = "SELECT name FROM microbatch_example.author WHERE id = $1"
MANY = "SELECT id, name FROM microbatch_example.author WHERE id = ANY($1)"


class AuthorMissingError(LookupError):
    """No author has this id."""


class Authors:
    """Reads authors from the database, and counts the queries."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]") -> None:
        self.pool = pool
        self.queries = 0

    # Callers join what is buffered, never a query in flight: who reads after a write sees it.
    @batched(max_batch_size=1_000, max_concurrency=4, coalesce=lambda author: author)
    async def name(self, ids: list[int]) -> list[str | AuthorMissingError]:
        """Read the names of all these authors; rows come in any order, and not for every id."""
        self.queries += 1
        names = {row["id"]: row["name"] for row in await self.pool.fetch(MANY, ids)}
        return [names.get(author) or AuthorMissingError(author) for author in ids]

    async def name_alone(self, author: int) -> str:
        """Read one name with a query of its own, as code without a batcher does."""
        self.queries += 1
        name: str | None = await self.pool.fetchval(ONE, author)
        if name is None:
            raise AuthorMissingError(author)
        return name


async def ask(read: Callable[[int], Awaitable[str]], wanted: list[int]) -> Counter[str]:
    """Let every book ask for its author at once; count the answers."""
    answers: Counter[str] = Counter()

    async def book(author: int) -> None:
        try:
            answers["right" if await read(author) == f"author {author}" else "wrong"] += 1
        except AuthorMissingError:
            answers["missing"] += 1

    async with asyncio.TaskGroup() as tasks:
        for author in wanted:
            tasks.create_task(book(author))
    return answers


async def main(dsn: str) -> None:
    """Fill a table, read it both ways, compare."""
    chance = random.Random(7)
    wanted = [chance.randint(1, AUTHORS) for _ in range(BOOKS)]
    async with asyncpg.create_pool(dsn, min_size=4, max_size=4) as pool:
        await pool.execute(FILL)
        authors = Authors(pool)
        counts = []
        for title, read in (("a query each", authors.name_alone), ("batched", authors.name)):
            authors.queries, start = 0, perf_counter()
            answers = await ask(read, wanted)
            seconds = perf_counter() - start
            print(f"{title:<14}{authors.queries:>7,} queries {seconds * 1e3:>8,.0f} ms  {answers}")
            counts.append(answers)
        await authors.name.aclose()
        await pool.execute("DROP SCHEMA microbatch_example CASCADE")
    if counts[0] != counts[1] or counts[0]["wrong"]:
        sys.exit("the answers differ")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
