"""Which route a request means, and what stands in the way of it."""

from __future__ import annotations

import pytest
from http_support import Users, api_of, client_of

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
