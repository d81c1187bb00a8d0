"""What `http` puts under load: the API and what one writes by hand, each as a server or called in this process.

``python -m benchmarks.http_apps KIND FOLDER USER`` serves one over the socket of a PostgreSQL in a folder, or
over a queue's file in it, and says its port.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from pathlib import Path

import msgspec
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from microbatch.durable import DurableQueue
from microbatch.http import BatchAPI, Principal

CREATE = "CREATE TABLE IF NOT EXISTS users (id bigserial PRIMARY KEY, name text, age integer)"
ONE = "INSERT INTO users (name, age) VALUES ($1, $2) RETURNING id"
MANY = (
    """INSERT INTO users (name, age) SELECT * FROM unnest($1::text[], $2::integer[]) RETURNING id"""
)
JSON = {"content-type": "application/json"}


class User(msgspec.Struct):
    name: str
    age: int = 0
    id: int = 0


class Record(msgspec.Struct):
    """What a batch tells of an item."""

    index: int
    id: int
    ref: str | None
    kind: str
    success: bool
    status: int
    data: User


class Answer(msgspec.Struct):
    results: list[Record]
    summary: dict[str, object]
    took: float


encode = msgspec.json.Encoder().encode
decode_one = msgspec.json.Decoder(User).decode


class Items(msgspec.Struct):
    items: list[User]


decode_many = msgspec.json.Decoder(Items).decode


async def authorize(request):
    return Principal("ann")


async def known(users):
    """Answer as a database would that costs nothing."""
    for number, user in enumerate(users):
        user.id = number
    return users


# Inserts


@contextlib.asynccontextmanager
async def pool_of(folder, user):
    import asyncpg

    async with asyncpg.create_pool(
        host=folder, user=user, database="postgres", min_size=10, max_size=10
    ) as pool:
        yield pool


@contextlib.asynccontextmanager
async def by_itself(folder, user):
    """An endpoint that inserts by itself; asyncpg prepares its statement once for each connection."""
    async with pool_of(folder, user) as pool:

        async def create(request):
            one = decode_one(await request.body())
            one.id = await pool.fetchval(ONE, one.name, one.age)
            return Response(encode(one), 201, JSON)

        yield Starlette(routes=[Route("/users", create, methods=["POST"])])


@contextlib.asynccontextmanager
async def shared(folder, user):
    """The API, whose requests share inserts."""
    async with pool_of(folder, user) as pool:

        async def create(users: list[User]) -> list[User]:
            if len(users) == 1:
                users[0].id = await pool.fetchval(ONE, users[0].name, users[0].age)
                return users
            ids = await pool.fetch(MANY, [one.name for one in users], [one.age for one in users])
            for one, row in zip(users, ids, strict=True):
                one.id = row[0]
            return users

        api = BatchAPI(authorize=authorize)
        api.collection("users", item_type=User, create=create)
        async with api:
            yield api


# Imports


@contextlib.asynccontextmanager
async def importing(folder, user):
    del user
    path = Path(folder) / "queue.db"
    async with DurableQueue(path, item_type=User, max_depth=2_000_000) as queue:
        api = BatchAPI(authorize=authorize, owner_share=1.0)
        api.collection("users", item_type=User, queue=queue)
        async with api:
            yield api


async def enqueue(folder, rows):
    """Return the seconds that the same rows take as a job in process."""
    async with DurableQueue(Path(folder) / "own.db", item_type=User, max_depth=2_000_000) as queue:
        began = time.perf_counter()
        await queue.enqueue_job(User(f"user {number}", 1) for number in range(rows))
        return time.perf_counter() - began


# Batches


async def by_hand(request):
    """Decode the list, call the handler once, encode the same records."""
    began = time.perf_counter()
    users = await known(decode_many(await request.body()).items)
    records = [
        Record(index, user.id, None, "succeeded", True, 201, user)
        for index, user in enumerate(users)
    ]
    count = len(records)
    rest = dict.fromkeys(("failed", "skipped", "cancelled", "expired"), 0)
    summary = {"total": count, "succeeded": count, **rest, "errors": {}}
    answer = Answer(records, summary, time.perf_counter() - began)
    return Response(encode(answer), 200, JSON)


async def batches(kind, items, count):
    """Return the CPU seconds for so many requests with a batch each, without a server."""
    body = encode({"items": [{"name": f"user {number}", "age": 30} for number in range(items)]})
    scope = {
        "type": "http", "method": "POST", "path": "/users/batch", "raw_path": b"/users/batch",
        "query_string": b"", "root_path": "", "headers": [(b"content-type", b"application/json")],
    }  # fmt: skip

    async def known_users(users: list[User]) -> list[User]:
        return await known(users)

    api = BatchAPI(authorize=authorize, max_items=max(items, 1))
    api.collection("users", item_type=User, create=known_users)
    hand = Starlette(routes=[Route("/users/batch", by_hand, methods=["POST"])])
    async with api:
        app = api if kind == "api" else hand
        statuses = []

        async def receive():
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message):
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        await app(dict(scope), receive, send)
        began = time.process_time()
        for _ in range(count):
            await app(dict(scope), receive, send)
        took = time.process_time() - began
        assert set(statuses) == {200}
        return took


async def main(kind, folder, user):
    import uvicorn

    async with globals()[kind](folder, user) as app:
        config = uvicorn.Config(app, port=0, log_level="error", lifespan="off")
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve())
        while not server.started:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.01)
        print(server.servers[0].sockets[0].getsockname()[1], flush=True)
        await serving


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
