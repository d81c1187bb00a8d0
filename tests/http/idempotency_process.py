"""A worker process of a server for the tests of keys: ``python idempotency_process.py FILE``; it says its port.

Every user that is created is a row in the file; one who is called "slow" is created once a line comes in.
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import uvicorn
from http_support import User, Users, api_of

from microbatch import current_batch
from microbatch.durable import DurableQueue


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


async def main(path: str) -> None:
    async def create(items: list[User]) -> list[User]:
        keys = current_batch().keys or [None] * len(items)  # type: ignore[union-attr]
        for user in items:
            if user.name == "slow":
                say("handling")
                await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
        with closing(sqlite3.connect(path, isolation_level=None, timeout=30)) as raw:
            raw.execute("CREATE TABLE IF NOT EXISTS users (key, name)")
            raw.executemany(
                "INSERT INTO users VALUES (?, ?)",
                [(key, user.name) for key, user in zip(keys, items, strict=True)],
            )
        return items

    async with DurableQueue(path, item_type=User, poll_interval=0.02) as queue:
        api = api_of(Users(), create=create, idempotency_store=queue)
        server: Any = uvicorn.Server(
            uvicorn.Config(
                api,
                port=0,
                log_level="error",
                lifespan="on",
                timeout_graceful_shutdown=5,
                timeout_keep_alive=60,
            )
        )
        serving = asyncio.create_task(server.serve())
        while not server.started:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.01)
        say("port", server.servers[0].sockets[0].getsockname()[1])
        await serving


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
