"""Clients that leave, requests that take too long, an API that closes: what was begun is brought to its end."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.lowlevel
import pytest
from http_support import User, Users, api_of, call, client_of

from microbatch.http import BatchAPI

pytestmark = pytest.mark.anyio


class Slow(Users):
    """Users whose handlers wait until they may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = anyio.Event()
        self.go = anyio.Event()
        self.ended: list[str] = []

    async def create(self, items: list[User]) -> list[User | Exception]:
        self.begun.set()
        await self.go.wait()
        self.ended.append("create")
        return await super().create(items)

    async def read(self, ids: list[str]) -> list[User | Exception]:
        self.begun.set()
        await self.go.wait()
        self.ended.append("read")
        return await super().read(ids)


async def leave(app: Any, path: str, body: bytes, method: str, left: anyio.Event) -> list[Any]:
    """Send a request whose client is gone once ``left`` is set; return what was answered."""
    sent: list[Any] = []
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"authorization", b"Bearer ann"), (b"content-type", b"application/json")]
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "headers": headers,
        "query_string": b"",
    }
    await app(scope, receive, send)
    return sent


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [("GET", "/users/1", b""), ("POST", "/users/batch-get", b'{"ids": ["1"]}')],
)
async def test_a_read_is_withdrawn_when_its_client_leaves(
    method: str, path: str, body: bytes
) -> None:
    """The call of the handler that it shares goes on; an item that waits for one is never handled."""
    users = Slow()
    async with api_of(users) as api, anyio.create_task_group() as tasks:
        left = [anyio.Event() for _ in range(6)]
        sent: list[Any] = []

        async def send(which: int) -> None:
            sent.append(await leave(api, path, body, method, left[which]))

        for which in range(6):  # four calls under way, and two that wait
            tasks.start_soon(send, which)
            await anyio.wait_all_tasks_blocked()
        for event in left:
            event.set()
        await anyio.wait_all_tasks_blocked()
        assert sent == [[]] * 6
        users.go.set()
    assert len(users.calls) == 4


async def test_a_mutation_goes_on_when_its_client_leaves() -> None:
    """Nobody can tell any more whether it was done: so it is done."""
    users = Slow()
    async with api_of(users) as api, anyio.create_task_group() as tasks:
        left = anyio.Event()
        tasks.start_soon(leave, api, "/users", b'{"name": "a"}', "POST", left)
        await users.begun.wait()
        left.set()
        await anyio.wait_all_tasks_blocked()
        users.go.set()
    assert users.ended == ["create"]
    assert list(users.rows) == ["1"]


async def test_a_mutation_goes_on_when_its_request_is_cancelled() -> None:
    """A middleware, or a server that stops, may cancel what has begun; also what is only buffered."""
    users = Slow()
    async with api_of(users) as api:
        async with anyio.create_task_group() as tasks:
            for name in range(6):
                tasks.start_soon(call, api, "/users", [b'{"name": "%d"}' % name])
                await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        users.go.set()
    assert len(users.rows) == 6


async def test_a_request_that_takes_too_long_is_answered_and_goes_on() -> None:
    """504 says that it may still be done."""
    users = Slow()
    async with client_of(api_of(users, timeout=3)) as client:
        answer = await client.post("/users", json={"name": "a"})
        assert (answer.status_code, answer.json()["type"]) == (504, "timeout")
        read = await client.get("/users/1")
        assert (read.status_code, read.json()["type"]) == (504, "timeout")


async def test_closing_waits_for_what_has_begun_and_takes_nothing_new() -> None:
    """Who was let in gets an answer; who comes now is told to go elsewhere."""
    users = Slow()
    api = api_of(users)
    await api.__aenter__()
    async with anyio.create_task_group() as tasks:
        answers: list[Any] = []

        async def send(path: str, body: bytes) -> None:
            answers.append(await call(api, path, [body]))

        tasks.start_soon(send, "/users", b'{"name": "a"}')
        await users.begun.wait()
        tasks.start_soon(api.__aexit__, None, None, None)
        await anyio.wait_all_tasks_blocked()
        late = await call(api, "/users", [b'{"name": "b"}'])
        assert (late.status, late.headers["retry-after"]) == (503, "1")
        assert (await call(api, "/users/1", method="GET")).status == 503
        users.go.set()
    assert [one.status for one in answers] == [201]


async def test_leaving_by_an_exception_closes_at_once() -> None:
    """Its callers end there and then."""
    users = Slow()
    api = api_of(users)
    async with anyio.create_task_group() as tasks:
        answers: list[Any] = []

        async def send() -> None:
            answers.append(await call(api, "/users", [b'{"name": "a"}']))

        with pytest.raises(KeyError):
            async with api:
                tasks.start_soon(send)
                await users.begun.wait()
                raise KeyError
    assert [one.status for one in answers] == [503]
    assert users.rows == {}


async def test_an_api_is_opened_once_and_works_unopened_too() -> None:
    """Mounted without a lifespan it serves all the same."""
    api = api_of(Users())
    assert (await call(api, "/users", [b'{"name": "a"}'])).status == 201
    async with api:
        with pytest.raises(RuntimeError, match="the BatchAPI is open already"):
            await api.__aenter__()


async def test_the_lifespan_protocol_opens_and_closes() -> None:
    """What a server sends as it starts and stops, when the API is its application."""
    api = api_of(Users())
    to_api: list[Any] = [{"type": "lifespan.shutdown"}, {"type": "lifespan.startup"}]
    sent: list[str] = []

    async def receive() -> Any:
        await anyio.lowlevel.checkpoint()
        return to_api.pop()

    async def send(message: Any) -> None:
        sent.append(message["type"])

    await api({"type": "lifespan"}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    to_api.append({"type": "lifespan.startup"})
    with pytest.raises(Exception, match="is closed"):  # these batchers' loop is still there
        await api({"type": "lifespan"}, receive, send)
    assert sent[-1] == "lifespan.startup.failed"


async def test_a_websocket_is_closed() -> None:
    """There is nothing for one here."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await api_of(Users())({"type": "websocket", "path": "/"}, receive, send)
    assert sent == [{"type": "websocket.close", "code": 1000}]


def test_an_api_can_be_opened_again_in_another_event_loop(backend_name: str) -> None:
    """As tests do that start an application each."""
    users = Users()
    api = api_of(users)

    async def once(number: int) -> None:
        async with client_of(api) as client:
            assert (await client.post("/users", json={"name": str(number)})).status_code == 201

    for number in range(2):
        anyio.run(once, number, backend="trio" if backend_name == "trio" else "asyncio")
    assert isinstance(api, BatchAPI)
