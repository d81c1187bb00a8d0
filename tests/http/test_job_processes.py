"""Jobs over HTTP with a server, a worker and a client apart: over sockets, and past a server that dies."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import httpx
import psutil
import pytest
from http_support import User, Users
from support import ENVIRONMENT

from microbatch.durable import DurableBatcher, DurableQueue, QueueFull

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.real_time,
    pytest.mark.slow,
    pytest.mark.parametrize("backend_name", ["asyncio"], indirect=True),
]

HERE = Path(__file__).parent
NDJSON = {"content-type": "application/x-ndjson"}


@contextlib.asynccontextmanager
async def server_at(path: Path) -> AsyncIterator[tuple[httpx.AsyncClient, subprocess.Popen[bytes]]]:
    """A server in a process of its own, killed at the end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:  # so that nobody else takes the port
        fd, port = listener.fileno(), listener.getsockname()[1]
        process = subprocess.Popen(  # noqa: ASYNC220
            [sys.executable, HERE / "import_server.py", path, str(fd)],
            pass_fds=[fd],
            env=ENVIRONMENT,
        )
    try:
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}",
            headers={"authorization": "Bearer ann"},
            timeout=200,
            trust_env=False,
        ) as client:
            await client.get("/healthz")
            yield client, process
    finally:
        process.kill()
        process.wait()


async def rows(
    count: int, stop: anyio.Event | None = None, sent: anyio.Event | None = None
) -> AsyncIterator[bytes]:
    """Give rows in pieces; stop in the middle if that is asked for."""
    pieces = count // 1_000
    for piece in range(pieces):
        if stop is not None and sent is not None and piece == pieces // 2:
            sent.set()
            await stop.wait()
        yield b"".join(b'{"name":"n%d","age":%d}\n' % (n, n) for n in range(1_000))


async def test_progress_of_an_import_comes_over_a_socket(tmp_path: Path) -> None:
    """Server, worker and client are three processes, or could be."""
    users = Users()

    async def handler(items: list[User]) -> list[User]:
        users.calls.append(("create", items))
        return items

    async with server_at(tmp_path / "q") as (client, _):
        sent = await client.post("/users/import", content=rows(5_000), headers=NDJSON)
        assert (sent.status_code, sent.json()["total"]) == (202, 5_000)
        async with (
            DurableBatcher(
                tmp_path / "q", handler, item_type=User, result_type=User, max_batch_size=500
            ),
            client.stream("GET", sent.json()["links"]["events"]) as events,
        ):
            lines = [line async for line in events.aiter_lines()]
        names = [line for line in lines if line.startswith("event: ")]
        assert names[-1] == "event: ended"
        documents = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
        assert documents[-1]["progress"]["succeeded"] == 5_000
        async with client.stream(
            "GET", sent.json()["links"]["results"], headers={"accept": "application/jsonl"}
        ) as results:
            indices = [json.loads(line)["index"] async for line in results.aiter_lines()]
        assert indices == list(range(5_000))
    assert sum(len(items) for _, items in users.calls) == 5_000


async def test_a_server_that_dies_in_the_middle_of_an_import_leaves_nothing(tmp_path: Path) -> None:
    """Nobody ever sees half of it; and what was on the disk goes."""
    stop, sent = anyio.Event(), anyio.Event()
    async with server_at(tmp_path / "q") as (client, process), anyio.create_task_group() as tasks:

        async def send() -> None:
            with contextlib.suppress(httpx.TransportError):
                await client.post("/users/import", content=rows(40_000, stop, sent), headers=NDJSON)

        tasks.start_soon(send)
        await sent.wait()
        process.kill()
        process.wait()
        stop.set()
    async with DurableQueue(tmp_path / "q", item_type=User, max_depth=40_001) as queue:
        assert (await queue.jobs()).jobs == []
        while True:  # staged items count towards max_depth until they are gone
            with contextlib.suppress(QueueFull):
                await queue.enqueue_job([User(name="a")] * 40_000)
                break
            await anyio.sleep(0.05)


async def test_an_import_takes_no_more_memory_the_longer_it_is(tmp_path: Path) -> None:
    """From the socket to the disk, a transaction's worth at a time."""
    async with server_at(tmp_path / "q") as (client, process):
        sent = await client.post("/users/import", content=rows(10_000), headers=NDJSON)
        assert sent.status_code == 202
        before = psutil.Process(process.pid).memory_info().rss
        sent = await client.post("/users/import", content=rows(400_000), headers=NDJSON)
        assert (sent.status_code, sent.json()["total"]) == (202, 400_000)
        grown = psutil.Process(process.pid).memory_info().rss - before
        assert grown < 80_000_000
