"""A ``@batched`` function where frameworks look at a function before they call it."""

from typing import Annotated, Any

import anyio
import pytest

from microbatch import batched

fastapi = pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx")

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]


def client_of(app: Any) -> Any:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test")


async def test_fastapi_takes_functions_and_methods_as_dependencies() -> None:
    """The requests of one moment share a query, and its callers stay unchanged."""
    queries: list[list[int]] = []

    @batched
    async def user(ids: list[int]) -> list[str]:
        queries.append(ids)
        return [f"user {number}" for number in ids]

    class Prices:
        @batched(max_batch_size=10)
        async def of(self, names: list[str]) -> list[float | Exception]:
            return [float(len(name)) for name in names]

    prices = Prices()
    app = fastapi.FastAPI()

    @app.get("/users/{item}")
    async def show(name: Annotated[str, fastapi.Depends(user)]) -> str:
        return name

    @app.get("/prices")
    async def price(price: Annotated[float, fastapi.Depends(prices.of)]) -> float:
        return price

    answers: dict[str, Any] = {}
    async with client_of(app) as client, anyio.create_task_group() as tasks:

        async def get(path: str) -> None:
            answers[path] = (await client.get(path)).json()

        for path in ("/users/1", "/users/2", "/prices?item=tea"):
            tasks.start_soon(get, path)
    assert answers == {"/users/1": "user 1", "/users/2": "user 2", "/prices?item=tea": 3.0}
    assert len(queries) == 1
    await user.aclose()
    await prices.of.aclose()


async def test_fastapi_checks_the_item_and_lets_nobody_choose_a_priority() -> None:
    """The item's type is the bulk function's; the place in the line is not the sender's to set."""

    @batched
    async def double(numbers: list[int]) -> list[int]:
        return [number * 2 for number in numbers]

    app = fastapi.FastAPI()
    app.get("/double")(double)
    async with client_of(app) as client:
        assert (await client.get("/double", params={"item": 4, "priority": "high"})).json() == 8
        assert (await client.get("/double", params={"item": "four"})).status_code == 422
    (parameter,) = app.openapi()["paths"]["/double"]["get"]["parameters"]
    assert (parameter["name"], parameter["schema"]["type"]) == ("item", "integer")
    await double.aclose()


@pytest.mark.real_time
async def test_starlette_awaits_it_as_a_background_task() -> None:
    """Taken for a plain function it would be called in a thread, and its coroutine dropped."""
    from starlette.applications import Starlette
    from starlette.background import BackgroundTask
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse, Response
    from starlette.routing import Route

    written: list[str] = []

    @batched
    def write(lines: list[str]) -> None:
        written.extend(lines)

    async def hello(request: Request) -> Response:
        return PlainTextResponse("hello", background=BackgroundTask(write, "greeted"))

    async with client_of(Starlette(routes=[Route("/", hello)])) as client:
        assert (await client.get("/")).text == "hello"
    assert written == ["greeted"]
    await write.aclose()
