"""A web service whose endpoint writes to PostgreSQL through one shared batcher, under load.

    python examples/serve_inserts.py postgresql://user@host/database [seconds]

The application opens the batcher in its lifespan; a request awaits ``submit`` and is answered once
its own row is committed. The load run starts it with uvicorn, keeps 64 connections busy, first with
an endpoint that writes by itself, then with the batched one, and counts the rows at the end.
The application alone: ``DSN=postgresql://... uvicorn --app-dir examples serve_inserts:app``.
"""

import os
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter

import anyio
import asyncpg
import httpx
from fastapi import FastAPI

from microbatch import Batcher

CLIENTS = 64
SLOTS = 2  # batches in flight
POOL = int(
    os.environ.get("POOL", "8")
)  # connections: at least a slot's each, so that no batch waits for one
TABLE = """CREATE SCHEMA IF NOT EXISTS microbatch_example; CREATE TABLE IF NOT EXISTS
microbatch_example.visit (id bigserial PRIMARY KEY, page text NOT NULL, seconds real NOT NULL)"""
INSERT = "INSERT INTO microbatch_example.visit (page, seconds) "
ONE = INSERT + "VALUES ($1, $2)"
MANY = INSERT + "SELECT * FROM unnest($1::text[], $2::real[])"


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the pool, then the batcher; on the way out what is pending is written first."""

    async def insert(visits: list[tuple[str, float]]) -> None:
        pages, seconds = zip(*visits, strict=True)
        await execute("/batched", MANY, pages, seconds)  # one statement is one transaction

    async def execute(path: str, statement: str, *values: object) -> None:
        app.state.waits[path] += pool.get_idle_size() == 0
        await pool.execute(statement, *values)

    app.state.waits, app.state.execute = Counter(), execute
    async with asyncpg.create_pool(os.environ["DSN"], min_size=POOL, max_size=POOL) as pool:
        await pool.execute(TABLE)
        async with Batcher(insert, max_concurrency=SLOTS, handler_timeout=10) as batcher:
            app.state.batcher = batcher
            yield


app = FastAPI(lifespan=lifespan)


@app.post("/single", status_code=204)
async def single(page: str, seconds: float) -> None:
    """Write the visit in a statement of its own."""
    await app.state.execute("/single", ONE, page, seconds)


@app.post("/batched", status_code=204)
async def batched(page: str, seconds: float) -> None:
    """Write the visit together with those of the requests that are here at the same time."""
    await app.state.batcher.submit((page, seconds))


@app.get("/waits")
async def waits(path: str) -> int:
    """Tell how often a statement of an endpoint found all connections in use."""
    return int(app.state.waits[path])


async def load(port: int, path: str, duration: float) -> list[float]:
    """Send requests over all connections; return how long each took, shortest first."""
    request = f"POST {path}?page=home&seconds=1.5 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    took: list[float] = []
    end = perf_counter() + duration

    async def client() -> None:
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            while (start := perf_counter()) < end or not took:
                await stream.send(request)
                answer = await stream.receive()  # without a body it comes in one piece
                if not answer.startswith(b"HTTP/1.1 204"):
                    raise RuntimeError(answer.decode())
                took.append(perf_counter() - start)

    async with anyio.create_task_group() as tasks:
        for _ in range(CLIENTS):
            tasks.start_soon(client)
    return sorted(took)


async def main(dsn: str, duration: float) -> None:
    """Start the application, put it under load, stop it, and count."""
    command = [sys.executable, "-m", "uvicorn", "--log-level", "warning", "serve_inserts:app"]
    database = await asyncpg.connect(dsn)
    await database.execute("DROP SCHEMA IF EXISTS microbatch_example CASCADE")
    with socket.create_server(("127.0.0.1", 0), backlog=CLIENTS) as listener:
        port, descriptor = listener.getsockname()[1], listener.fileno()
        server = await anyio.open_process(
            [*command, "--app-dir", str(Path(__file__).parent), "--fd", str(descriptor)],
            pass_fds=[descriptor],
            env=os.environ | {"DSN": dsn},
            stdout=None,
            stderr=None,
        )
    sent = 0
    print(f"{'':<10}{'requests/s':>12}{'p50':>11}{'p99':>11}  waits for a connection")
    async with server, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        for path in ("/single", "/batched"):
            sent += len(await load(port, path, duration / 5))  # warms up
            took = await load(port, path, duration)
            p50, p99 = took[len(took) // 2], took[len(took) * 99 // 100]
            waited = (await client.get("/waits", params={"path": path})).json()
            print(
                f"{path:<10}{len(took) / duration:>12,.0f}{p50 * 1e3:>8.1f} ms{p99 * 1e3:>8.1f} ms"
                f"{waited:>8,}"
            )
            sent += len(took)
        await client.aclose()
        server.terminate()  # leaves the lifespan
        await server.wait()
    rows = await database.fetchval("SELECT count(*) FROM microbatch_example.visit")
    await database.execute("DROP SCHEMA microbatch_example CASCADE")
    await database.close()
    print(f"{sent:,} requests answered, {rows:,} rows written")
    if sent != rows:
        sys.exit("the counts do not match")


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 5.0)
