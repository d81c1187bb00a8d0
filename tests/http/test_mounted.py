"""An API mounted in other applications: its links lead back to it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import anyio
import httpx
import pytest
from fastapi import FastAPI
from http_support import User, Users, api_of, client_of
from litestar import Litestar, asgi
from starlette.applications import Starlette
from starlette.routing import Mount

from microbatch.durable import DurableBatcher

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from microbatch.http import BatchAPI

pytestmark = [pytest.mark.anyio, pytest.mark.real_time]


@pytest.fixture(params=["asyncio"])
def backend_name(request: pytest.FixtureRequest) -> str:
    """There are jobs in it, which need asyncio."""
    return str(request.param)


def starlette(api: BatchAPI) -> Any:
    return Starlette(routes=[Mount("/v1/api", app=api)], lifespan=api.lifespan)


def deeper(api: BatchAPI) -> Any:
    inner = Starlette(routes=[Mount("/api", app=api)])
    return Starlette(routes=[Mount("/v1", app=inner)], lifespan=api.lifespan)


def fastapi(api: BatchAPI) -> Any:
    app = FastAPI(lifespan=api.lifespan)
    app.mount("/v1/api", api)
    return app


def litestar(api: BatchAPI) -> Any:
    @asgi("/v1/api", is_mount=True, copy_scope=True)
    async def mounted(scope: Any, receive: Any, send: Any) -> None:
        await api(scope, receive, send)

    return Litestar(
        [mounted], lifespan=[api.lifespan], logging_config=None
    )  # that is the process's


@contextlib.asynccontextmanager
async def started(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Start an application as a server does, by its lifespan, and give a client of it."""
    to_app_in, to_app = anyio.create_memory_object_stream[Any](2)
    from_app_in, from_app = anyio.create_memory_object_stream[Any](2)
    with to_app_in, to_app, from_app_in, from_app:
        async with anyio.create_task_group() as tasks:
            scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
            tasks.start_soon(app, scope, to_app.receive, from_app_in.send)
            await to_app_in.send({"type": "lifespan.startup"})
            assert (await from_app.receive())["type"] == "lifespan.startup.complete"
            transport = httpx.ASGITransport(app)
            headers = {"authorization": "Bearer ann"}
            async with httpx.AsyncClient(
                transport=transport, base_url="http://test", headers=headers
            ) as client:
                yield client
            await to_app_in.send({"type": "lifespan.shutdown"})
            assert (await from_app.receive())["type"] == "lifespan.shutdown.complete"


@pytest.mark.parametrize("mount", [starlette, deeper, fastapi, litestar])
async def test_links_of_a_mounted_api_lead_back_to_it(
    mount: Callable[[BatchAPI], Any], tmp_path: Path
) -> None:
    """Of items and of jobs, absolute paths without a host; litestar leaves the root out of the path it gives."""
    users = Users()
    async with DurableBatcher(tmp_path / "jobs.db", users.create, item_type=User) as queue:
        more = {"base_path": "/v1/api"} if mount is litestar else {}
        async with started(mount(api_of(users, queue=queue, **more))) as client:
            made = await client.post("/v1/api/users", json={"name": "a"})
            assert (made.status_code, made.headers["location"]) == (201, "/v1/api/users/1")
            assert (await client.get(made.headers["location"])).json() == made.json()
            assert (await client.get("/v1/api/users/1/")).status_code == 200
            missing = await client.get("/v1/api/nothing/at/all")
            assert missing.headers["content-type"] == "application/problem+json"
            job = await client.post(
                "/v1/api/users/batch",
                json={"items": [{"name": "b"}]},
                headers={"prefer": "respond-async"},
            )
            assert job.status_code == 202
            assert job.headers["location"].startswith("/v1/api/jobs/")
            watched = await client.get(job.headers["location"], params={"wait": 30})
            assert (watched.status_code, watched.json()["status"]) == (200, "completed")
            for name in ("self", "results"):
                assert (await client.get(watched.json()["links"][name])).status_code == 200
            document = (await client.get("/v1/api/openapi.json")).json()
            assert document["servers"] == [{"url": "/v1/api"}]


async def test_a_base_path_that_is_given_stands_in_links() -> None:
    """Where a proxy takes off a part of the path, nobody can see it here."""
    async with client_of(api_of(Users(), base_path="/shop/")) as client:
        made = await client.post("/users", json={"name": "a"})
        assert made.headers["location"] == "/shop/users/1"
