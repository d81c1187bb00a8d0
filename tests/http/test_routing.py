"""Which route a request means, and what stands in the way of it."""

from __future__ import annotations

import pytest
from http_support import Users, api_of, client_of
from starlette.applications import Starlette
from starlette.routing import Mount

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("path", ["/healthz", "/healthz/", "/readyz", "/readyz/"])
async def test_a_trailing_slash_makes_no_difference(path: str) -> None:
    """A redirect would lose a body, or a header, on its way."""
    async with client_of(api_of(Users()), "") as client:
        answer = await client.get(path)
        assert answer.status_code == 200
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"


async def test_what_is_not_there_is_told_as_a_problem() -> None:
    """Clients read one form of error alone."""
    async with client_of(api_of(Users())) as client:
        for path in ("/", "/nothing", "//healthz", "/healthz/more", "/users/1/2"):
            answer = await client.get(path)
            assert answer.status_code == 404, path
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["status"] == 404


async def test_a_method_that_a_path_does_not_take_is_told_before_anything_else() -> None:
    """Whoever asks: a path's methods are no secret."""
    async with client_of(api_of(Users()), "") as client:
        answer = await client.post("/healthz")
        assert answer.status_code == 405
        assert answer.headers["allow"] == "GET, HEAD"
        assert answer.headers["content-type"] == "application/problem+json"


async def test_readiness_ends_as_the_api_closes() -> None:
    """Whoever balances load sends nothing more then; that it lives is another question."""
    api = api_of(Users())
    async with client_of(api, "") as client:
        await api.__aexit__(None, None, None)
        answer = await client.get("/readyz")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert (await client.get("/healthz")).status_code == 200


@pytest.mark.parametrize("made", ["a/b", "/", "a/", "//", "batch/x", "ü/€", "a%2Fb", "a\tb", "?#"])
async def test_an_id_may_have_any_characters(made: str) -> None:
    """Its own slash is escaped in links, and is then no part's end; whatever it is mounted at."""
    users = Users()
    api = api_of(users)
    outer = Starlette(routes=[Mount("/{tenant}/v1", app=api)])
    async with client_of(api) as client, client_of(outer) as mounted:
        for index, (one, place) in enumerate(((client, ""), (mounted, "/t%20%E2%82%AC/v1"))):
            body = {"id": f"{made}{'x' * index}", "name": str(index)}
            sent = await one.post(f"{place}/users", json=body)
            assert sent.status_code == 201
            link = sent.headers["location"]
            for path in (link, link + "/"):
                assert (await one.get(path)).json()["id"] == body["id"], path
            changed = await one.patch(link, json={"age": 7})
            assert (changed.status_code, users.rows[body["id"]].age) == (200, 7)
            assert (await one.delete(link)).status_code == 204
        assert (await client.get("/users%2Fbatch")).status_code == 404


async def test_links_hold_no_more_than_a_path_may() -> None:
    """Mounted below what clients choose, it must not write their line ends into headers."""
    api = api_of(Users())
    outer = Starlette(routes=[Mount("/{tenant}", app=api)])
    async with client_of(api), client_of(outer) as client:
        for tenant in ("a%0D%0ASet-Cookie:%20x=1", "%E2%82%AC", "%C3%BC%3F%23", "a:b@c"):
            sent = await client.post(f"/{tenant}/users", json={"name": tenant})
            assert (sent.status_code, "set-cookie" in sent.headers) == (201, False)
            assert sent.headers["location"].startswith(f"/{tenant}/users/")
            assert (await client.get(sent.headers["location"])).status_code == 200
