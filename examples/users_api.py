"""Users and orders over HTTP: batches, orders that are all or nothing, an import as a job, an export; a client.

    python examples/users_api.py [ROWS [DSN]]

ROWS users are imported, 100,000 by default. The database is SQLite in a folder that goes away, or PostgreSQL
if DSN names one: postgresql://user@host/database (`pip install asyncpg`; its tables users, stock and orders are
made anew). Needs `microbatch[http,webhooks,ui]`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import tempfile
import uuid
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiosqlite
import httpx
import msgspec
import uvicorn

from microbatch import ItemError, ItemNotFound, batch_info
from microbatch.durable import DurableBatcher
from microbatch.http import BatchAPI, Principal, Update

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from starlette.requests import Request


class User(msgspec.Struct, omit_defaults=True):
    """A user; the database gives the id."""

    email: str
    name: str
    id: int = 0


class Order(msgspec.Struct):
    """So many of a product."""

    product: str
    quantity: int


# Every statement takes its rows as one JSON text: one round trip, whatever their number.
SCHEMA = """CREATE TABLE users (id {id}, email text NOT NULL UNIQUE, name text NOT NULL, key text UNIQUE);
CREATE TABLE stock (product text PRIMARY KEY, remaining integer NOT NULL);
CREATE TABLE orders (id {id}, product text NOT NULL, quantity integer NOT NULL);
INSERT INTO stock (product, remaining) VALUES ('tea', 10), ('milk', 1)"""
# Items that were handled by a process that died come again under their keys, and find their own rows.
INSERT_USERS = """INSERT INTO users (email, name, key)
    SELECT value->>'email', value->>'name', value->>'key' FROM {rows} WHERE true
    ON CONFLICT (email) DO UPDATE SET key = excluded.key WHERE users.key = excluded.key
    RETURNING id, email, name"""
UPDATE_USERS = """UPDATE users
    SET name = coalesce(value->>'name', name), email = coalesce(value->>'email', email)
    FROM {rows} WHERE users.id = CAST(value->>'id' AS integer) RETURNING users.id, email, name"""
DELETE_USERS = """DELETE FROM users
    WHERE id IN (SELECT CAST(value->>'id' AS integer) FROM {rows}) RETURNING id"""
READ_STOCK = """SELECT product, remaining FROM stock
    WHERE product IN (SELECT value->>'product' FROM {rows}) {lock}"""
TAKE_STOCK = """UPDATE stock SET remaining = remaining - CAST(value->>'quantity' AS integer)
    FROM {rows} WHERE stock.product = value->>'product' RETURNING stock.product"""
INSERT_ORDERS = """INSERT INTO orders (product, quantity)
    SELECT value->>'product', CAST(value->>'quantity' AS integer) FROM {rows} WHERE true RETURNING id"""
PAGE_OF_USERS = "SELECT id, email, name FROM users WHERE id > {after} ORDER BY id LIMIT 10000"

_transaction: ContextVar[Any] = ContextVar("transaction", default=None)


class Database:
    """SQLite or PostgreSQL, with one way to run a statement over rows, and transactions."""

    def __init__(self, pool: Any, connection: Any) -> None:
        self._pool, self._connection = pool, connection
        self._alone = asyncio.Lock()  # SQLite has one writer
        self._words = {
            "rows": "json_each(?)",
            "lock": "",
            "id": "INTEGER PRIMARY KEY",
            "after": "?",
        }
        if pool is not None:
            identity = "integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY"
            each = "jsonb_array_elements($1::jsonb) AS each (value)"
            self._words = {"rows": each, "lock": "FOR UPDATE", "id": identity, "after": "$1"}

    @classmethod
    @contextlib.asynccontextmanager
    async def opened(cls, folder: Path, dsn: str | None) -> AsyncIterator[Database]:
        """Open it, with empty tables."""
        if dsn is None:
            async with aiosqlite.connect(folder / "users.db", isolation_level=None) as connection:
                await connection.execute("PRAGMA journal_mode = WAL")
                database = cls(None, connection)
                await connection.executescript(SCHEMA.format(**database._words))
                yield database
        else:
            import asyncpg  # noqa: PLC0415 - for PostgreSQL alone

            async with asyncpg.create_pool(dsn) as pool:
                database = cls(pool, None)
                await pool.execute("DROP TABLE IF EXISTS users, stock, orders")
                await pool.execute(SCHEMA.format(**database._words))
                yield database

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        """Give a connection in a transaction: the one that is open here, or a new one."""
        if (inside := _transaction.get()) is not None:
            yield inside
            return
        async with contextlib.AsyncExitStack() as stack:
            if self._pool is not None:
                connection = await stack.enter_async_context(self._pool.acquire())
                await stack.enter_async_context(connection.transaction())
            else:
                await stack.enter_async_context(self._alone)
                connection = self._connection
                await connection.execute("BEGIN IMMEDIATE")
                stack.push_async_exit(self._end)
            token = _transaction.set(connection)
            try:
                yield connection
            finally:
                _transaction.reset(token)

    async def _end(self, kind: Any, *_: object) -> None:
        await self._connection.execute("COMMIT" if kind is None else "ROLLBACK")

    async def run(self, statement: str, value: Any) -> list[dict[str, Any]]:
        """Run a statement over rows, or with a number."""
        given = value if isinstance(value, int) else json.dumps(value)
        text = statement.format(**self._words)
        async with self.transaction() as connection:
            if self._pool is not None:
                return [dict(row) for row in await connection.fetch(text, given)]
            async with connection.execute(text, (given,)) as cursor:
                names = [column[0] for column in cursor.description]
                return [dict(zip(names, row, strict=True)) for row in await cursor.fetchall()]


class Handlers:
    """What the API calls in bulk: each one statement or a few, whatever the number of items."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, users: list[User]) -> list[User | Exception]:
        """Insert users; an address that is taken fails alone."""
        keys = batch_info().keys or [None] * len(users)
        first = {user.email: place for place, user in reversed(list(enumerate(users)))}
        rows = [
            {"email": email, "name": users[place].name, "key": keys[place]}
            for email, place in first.items()
        ]
        new = {row["email"]: User(**row) for row in await self._database.run(INSERT_USERS, rows)}
        taken = ItemError("this address is taken", code="duplicate_email", field="email")
        return [
            new.get(user.email, taken) if first[user.email] == place else taken
            for place, user in enumerate(users)
        ]

    async def update(self, updates: list[Update[int, Any]]) -> list[User | Exception]:
        """Change what was sent of each."""
        changes = [{"id": one.id, **msgspec.to_builtins(one.data)} for one in updates]
        found = {row["id"]: User(**row) for row in await self._database.run(UPDATE_USERS, changes)}
        return [found.get(one.id) or ItemNotFound(one.id) for one in updates]

    async def delete(self, ids: list[int]) -> list[Exception | None]:
        """Delete users by id."""
        gone = {
            row["id"]
            for row in await self._database.run(DELETE_USERS, [{"id": one} for one in ids])
        }
        return [None if one in gone else ItemNotFound(one) for one in ids]

    async def order(self, orders: list[Order]) -> list[dict[str, Any] | Exception]:
        """Take products out of the stock, as far as they last."""
        wanted = msgspec.to_builtins(orders)
        async with self._database.transaction():  # in an atomic batch: that of the batch
            stock = {
                row["product"]: row["remaining"]
                for row in await self._database.run(READ_STOCK, wanted)
            }
            before, good = dict(stock), []
            answers: list[dict[str, Any] | Exception] = []
            for order in wanted:
                if stock.get(order["product"], 0) < order["quantity"]:
                    answers.append(
                        ItemError(f"not so much {order['product']} is left", code="out_of_stock")
                    )
                    continue
                stock[order["product"]] -= order["quantity"]
                good.append(order)
                answers.append(order)
            taken = [{"product": p, "quantity": before[p] - left} for p, left in stock.items()]
            await self._database.run(TAKE_STOCK, taken)
            await self._database.run(INSERT_ORDERS, good)
        return answers

    async def export(self) -> AsyncIterator[User]:
        """Yield all users, page by page."""
        last = 0
        while page := await self._database.run(PAGE_OF_USERS, last):
            for row in page:
                yield User(**row)
            last = page[-1]["id"]


async def authorize(request: Request) -> Principal | None:
    """Look a token up; here there is one."""
    return Principal("ann") if request.headers.get("authorization") == "Bearer secret" else None


@contextlib.asynccontextmanager
async def serving(folder: Path, dsn: str | None) -> AsyncIterator[str]:
    """Serve the API on a free port; gives its address."""
    async with contextlib.AsyncExitStack() as stack:
        database = await stack.enter_async_context(Database.opened(folder, dsn))
        do = Handlers(database)
        queue = await stack.enter_async_context(
            DurableBatcher(
                folder / "queue.db",
                do.create,
                item_type=User,
                result_type=User,
                max_batch_size=2_000,
            )
        )
        api = BatchAPI(authorize=authorize, status_of={"out_of_stock": 409}.get)
        api.collection(
            "users", item_type=User, id_type=int, queue=queue, export=do.export,
            create=do.create, update=do.update, delete=do.delete, atomic=database.transaction,
        )  # fmt: skip
        api.collection("orders", item_type=Order, create=do.order, atomic=database.transaction)
        server = uvicorn.Server(uvicorn.Config(api, port=0, log_level="warning"))
        running = asyncio.create_task(server.serve())
        while not server.started:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        finally:
            server.should_exit = True
            await running


RETRYABLE = {408, 409, 429, 502, 503, 504}


async def send(client: httpx.AsyncClient, method: str, path: str, **more: Any) -> httpx.Response:
    """Send a request once, as far as the server is concerned: retries carry the same key.

    Sent again is what got no answer, and what may do better later: a 409 only if it says when.
    """
    headers = {"idempotency-key": f'"{uuid.uuid4()}"'} | more.pop("headers", {})
    for attempt in range(5):
        try:
            response = await client.request(method, path, headers=headers, **more)
        except httpx.TransportError:
            if attempt == 4:
                raise
            await asyncio.sleep(0.2 * 2**attempt)
            continue
        after = response.headers.get("retry-after")
        if response.status_code not in RETRYABLE or (response.status_code == 409 and after is None):
            return response
        await asyncio.sleep(float(after or 0.2 * 2**attempt))
    return response


async def ended(client: httpx.AsyncClient, job: httpx.Response) -> dict[str, Any]:
    """Ask for a job's state as often as the server says, until it has ended."""
    while True:
        status = await client.get(job.headers["location"])
        found: dict[str, Any] = status.json()
        if found["life"] == "ended":
            return found
        await asyncio.sleep(float(status.headers.get("retry-after", 1)))


def told(what: str, answer: httpx.Response) -> None:
    """Print what became of a batch."""
    summary = answer.json().get("summary", {})
    counts = f"{summary.get('succeeded', 0)} of {summary.get('total', 0)}"
    print(f"{what}: {answer.status_code}, {counts} {summary.get('errors') or ''}".rstrip())


async def use(client: httpx.AsyncClient, rows: int) -> None:
    """What a client does, and what it is told."""
    people = [
        {"email": f"{name}@example.org", "name": name} for name in ("ann", "bob", "ann", "eve")
    ]
    key = {"idempotency-key": '"first-batch"'}
    told(
        "create",
        first := await send(client, "POST", "/users/batch", json={"items": people}, headers=key),
    )
    again = await send(client, "POST", "/users/batch", json={"items": people}, headers=key)
    replayed, equal = again.headers["idempotent-replayed"], again.content == first.content
    print(f"the same again: replayed {replayed}, same {equal}")
    ids = [one["id"] for one in first.json()["results"] if one["success"]]
    changes = [{"id": ids[0], "data": {"name": "Bobby"}}, {"id": 10**6, "data": {"name": "nobody"}}]
    told("update", await send(client, "PATCH", "/users/batch", json={"items": changes}))
    mixed: Sequence[dict[str, Any]] = [
        {"method": "create", "data": {"email": "dan@example.org", "name": "dan"}},
        {"method": "update", "id": ids[1], "data": {"name": "Anna"}},
        {"method": "delete", "id": ids[2]},
    ]
    told("mixed", await send(client, "POST", "/users/batch", json={"operations": mixed}))
    told(
        "delete", await send(client, "POST", "/users/batch-delete", json={"ids": [*ids[:2], 10**6]})
    )

    both = [{"product": "tea", "quantity": 3}, {"product": "milk", "quantity": 2}]
    for order in (both, [both[0], {"product": "milk", "quantity": 1}]):
        body = {"items": order, "options": {"atomic": True}}
        told("atomic order", await send(client, "POST", "/orders/batch", json=body))

    async def lines() -> AsyncIterator[bytes]:
        row = b'{"email": "%d@example.com", "name": "user %d"}\n'
        for start in range(0, rows, 1_000):
            some = range(start, min(start + 1_000, rows))
            yield b"".join(row % (number, number) for number in some)

    # A stream cannot be sent twice: who gets no answer looks at /jobs before he tries again.
    ndjson = {"content-type": "application/x-ndjson"}
    job = await client.post("/users/import", content=lines(), headers=ndjson)
    seen: list[float] = []
    async with client.stream("GET", job.json()["links"]["events"]) as events:
        seen.extend(
            [
                json.loads(line.removeprefix("data:"))["progress"]["percentage"]
                async for line in events.aiter_lines()
                if line.startswith("data:")
            ]
        )
    status = await ended(client, job)
    done = status["progress"]
    print(
        f"import: {job.status_code}, {done['succeeded']:,} of {done['total']:,}", status["outcome"]
    )
    print(f"its events: never back {seen == sorted(seen)}, the last at {seen[-1]:g} %")

    path, packed = "/users/export?format=csv", {"accept-encoding": "gzip"}
    async with client.stream("GET", path, headers=packed) as export:
        count = len([line async for line in export.aiter_lines()]) - 1
        small = export.num_bytes_downloaded < 20 * count
    coding = export.headers["content-encoding"]
    print(f"export: {count:,} users, {coding}, under 20 bytes each {small}")


async def main(rows: int, dsn: str | None) -> None:
    """Serve the API, and use it."""
    with tempfile.TemporaryDirectory() as folder:
        async with serving(Path(folder), dsn) as address:
            headers = {"authorization": "Bearer secret"}
            async with httpx.AsyncClient(base_url=address, headers=headers, timeout=60) as client:
                await use(client, rows)


if __name__ == "__main__":
    asyncio.run(main(int((sys.argv[1:] or ["100000"])[0]), next(iter(sys.argv[2:]), None)))
