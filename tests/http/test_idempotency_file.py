"""Keys in a queue's file: over restarts, and over the worker processes of one server."""

# ruff: noqa: ASYNC110 - a client asks again, as it is told to

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import httpx
import pytest
from http_support import User, Users, api_of, client_of

from microbatch.durable import DurableQueue

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.anyio

TEA = {"items": [{"name": "tea"}, {"name": "milk"}]}
KEY = {"idempotency-key": '"k"'}


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """The durable mode needs asyncio."""
    return ("asyncio", {"use_uvloop": request.param == "uvloop"})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


def queue_at(path: Path) -> DurableQueue[User, Any]:
    return DurableQueue(path, item_type=User, poll_interval=0.02)


async def test_an_answer_is_there_after_a_restart(path: Path) -> None:
    """The first collection's queue keeps it, unless another one is named."""
    users = Users()
    async with queue_at(path) as queue, client_of(api_of(users, queue=queue)) as client:
        first = await client.post("/users/batch", json=TEA, headers=KEY)
    async with queue_at(path) as queue, client_of(api_of(users, idempotency_store=queue)) as client:
        again = await client.post("/users/batch", json=TEA, headers=KEY)
        assert again.headers["idempotent-replayed"] == "true"
        assert (again.status_code, again.content) == (first.status_code, first.content)
        other = await client.post("/users/batch", json={"items": []}, headers=KEY)
        assert other.status_code == 422
    assert len(users.calls) == 1


async def test_two_servers_share_keys(path: Path) -> None:
    """What runs in one of them is running for the other one too."""
    begun, free = anyio.Event(), anyio.Event()
    users = Users()

    async def create(items: list[User]) -> list[User]:
        begun.set()
        await free.wait()
        return items

    async with AsyncExitStack() as stack:
        one, other = [
            await stack.enter_async_context(
                client_of(api_of(users, create=create, idempotency_store=queue))
            )
            for queue in [await stack.enter_async_context(queue_at(path)) for _ in range(2)]
        ]
        answers: list[httpx.Response] = []

        async def send() -> None:
            answers.append(await one.post("/users/batch", json=TEA, headers=KEY))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            await begun.wait()
            running = await other.post("/users/batch", json=TEA, headers=KEY)
            assert (running.status_code, running.headers["retry-after"]) == (409, "1")
            free.set()
        done = await other.post("/users/batch", json=TEA, headers=KEY)
        assert done.content == answers[0].content


async def test_a_large_answer_is_kept_small(path: Path) -> None:
    """A thousand records of JSON are mostly the same names."""
    users = Users()
    many = {"items": [{"name": f"user {number}"} for number in range(500)]}
    async with queue_at(path) as queue, client_of(api_of(users, idempotency_store=queue)) as client:
        first = await client.post("/users/batch", json=many, headers=KEY)
        again = await client.post("/users/batch", json=many, headers=KEY)
        assert again.content == first.content
        with closing(sqlite3.connect(path)) as raw:
            ((kept,),) = raw.execute("SELECT length(answer) FROM microbatch_answers")
        assert kept < len(first.content) / 4


async def test_a_queue_that_is_closed_takes_no_keys(path: Path) -> None:
    """Without them nothing is done, and the client may come again."""
    users = Users()
    async with queue_at(path) as queue, client_of(api_of(users, idempotency_store=queue)) as client:
        await queue.aclose()
        refused = await client.post("/users/batch", json=TEA, headers=KEY)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert users.calls == []


# Worker processes


class Worker:
    """A worker process of a server."""

    def __init__(self, path: Path) -> None:
        script = Path(__file__).parent / "idempotency_process.py"
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.url = ""

    async def hear(self) -> list[str]:
        assert self.process.stdout is not None
        return (await anyio.to_thread.run_sync(self.process.stdout.readline)).split()

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)
        self.process.wait(60)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def workers(path: Path) -> Iterator[list[Worker]]:
    started = [Worker(path) for _ in range(2)]
    yield started
    for worker in started:
        if worker.process.returncode is None:
            worker.end()


def created(path: Path) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as raw:
        return raw.execute("SELECT key, name FROM users").fetchall()


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kills processes")
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_keys_hold_over_worker_processes(path: Path, workers: list[Worker]) -> None:
    """A storm on both of them does it once; and what a killed one had begun may begin again at once."""
    headers = KEY | {"authorization": "Bearer ann"}
    async with httpx.AsyncClient(timeout=60) as client:
        for worker in workers:
            word, port = await worker.hear()
            assert word == "port"
            worker.url = f"http://127.0.0.1:{port}/users"

        async def send(worker: Worker, name: str, key: str) -> httpx.Response:
            named = headers | {"idempotency-key": key}
            return await client.post(worker.url, json={"name": name}, headers=named)

        got: list[httpx.Response] = []

        async def storm(worker: Worker) -> None:
            while (response := await send(worker, "tea", "storm")).status_code == 409:
                await anyio.sleep(0.02)
            got.append(response)

        async with anyio.create_task_group() as tasks:
            for number in range(40):
                tasks.start_soon(storm, workers[number % 2])
        assert {(one.status_code, one.content) for one in got} == {(201, got[0].content)}
        assert [one.headers.get("idempotent-replayed") for one in got].count(None) == 1
        assert [name for _, name in created(path)] == ["tea"]

        first, second = workers
        async with anyio.create_task_group() as tasks:

            async def lost() -> None:
                with pytest.raises(httpx.TransportError):
                    await send(first, "slow", "killed")

            tasks.start_soon(lost)
            assert await first.hear() == ["handling"]
            assert (await send(second, "slow", "killed")).status_code == 409
            first.end(signal.SIGKILL)
            again: list[httpx.Response] = []

            async def once_more() -> None:
                again.append(await send(second, "slow", "killed"))

            tasks.start_soon(once_more)  # the very next one is not told to wait
            assert await second.hear() == ["handling"]
            second.go_on()
        assert again[0].status_code == 201
        assert "idempotent-replayed" not in again[0].headers
        (_, (key, name)) = created(path)
        assert name == "slow"
        assert key.endswith(":0")
        replayed = await send(second, "slow", "killed")
        assert replayed.headers["idempotent-replayed"] == "true"
