"""What seldom happens to a request, and must not do harm then."""

from __future__ import annotations

import builtins
import contextlib
import importlib
import sys
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import msgspec
import pytest
from http_support import User, Users, api_of, call, client_of

from microbatch import Batcher, HandlerCrashed, ItemError
from microbatch.http import BatchAPI
from microbatch.http._detached import Detached
from microbatch.http._envelopes import not_json
from microbatch.http._problem import Problem
from microbatch.http._rate import Buckets
from microbatch.http._results import ItemTelling
from microbatch.http._routing import Route, Router

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio


class Odd(msgspec.Struct):
    """A type whose own code has a fault."""

    name: str

    def __post_init__(self) -> None:
        raise KeyError("secret")


async def test_a_fault_in_a_types_own_code_stays_inside() -> None:
    """The item does not fit; why, stands in the log."""
    api = BatchAPI(authorize=Users.allow)
    api.collection("odd", item_type=Odd, create=Users().create)
    async with client_of(api) as client:
        for path, body in (("/odd", {"name": "a"}), ("/odd/batch", {"items": [{"name": "a"}]})):
            answer = await client.post(path, json=body)
            assert "secret" not in answer.text
            assert "invalid_item" in answer.text


class Broken(ItemError):
    """An ItemError that cannot say what it is."""

    details = object()

    def __init__(self) -> None:
        Exception.__init__(self)

    def __str__(self) -> str:
        raise ValueError("secret")


async def test_an_item_error_that_is_broken_is_told_by_its_code() -> None:
    """A subclass may have made anything of its parts."""

    async def create(items: list[User]) -> list[Exception]:
        return [Broken() for _ in items]

    async with client_of(api_of(Users(), create=create)) as client:
        answer = await client.post("/users/batch", json={"items": [{"name": "a"}]})
        (record,) = answer.json()["results"]
        assert record["error"]["message"] == "item_error"
        assert record["error"]["details"] is None


@pytest.mark.parametrize("options", [{}, {"ordered": True}, {"atomic": True}])
async def test_a_batch_that_finds_its_batcher_closed_is_told_to_go_elsewhere(options: Any) -> None:
    """The application may have closed its own; nothing of the batch was begun."""

    @contextlib.asynccontextmanager
    async def transaction() -> AsyncIterator[None]:
        yield

    users = Users()
    shared = Batcher(users.create)
    await shared.aclose()
    api = api_of(users, create=shared)
    if options.get("atomic"):
        api = api_of(users, atomic=transaction)
        await api._parts.atomic.aclose()
    batch = {"items": [{"name": "a"}, {"name": "b"}], "options": options}
    answer = await call(api, "/users/batch", [msgspec.json.encode(batch)])
    assert (answer.status, answer.json()["type"], answer.headers["retry-after"]) == (
        503,
        "closed",
        "1",
    )


async def test_an_atomic_batch_that_is_cut_short_is_not_known_to_be_done() -> None:
    """Its transaction was rolled back, as far as that could be told."""
    begun = anyio.Event()

    async def create(items: list[User]) -> list[User]:
        begun.set()
        await anyio.sleep(1_000)
        return items

    @contextlib.asynccontextmanager
    async def transaction() -> AsyncIterator[None]:
        yield

    api = api_of(Users(), create=create, atomic=transaction, timeout=2_000)
    answers: list[Any] = []
    async with anyio.create_task_group() as tasks:

        async def send() -> None:
            body = msgspec.json.encode({"items": [{"name": "a"}], "options": {"atomic": True}})
            answers.append(await call(api, "/users/batch", [body]))

        tasks.start_soon(send)
        await begun.wait()
        await api._parts.atomic.aclose(0)
    assert answers[0].json()["results"][0]["error"]["code"] == "closed"


async def test_ids_that_cannot_be_hashed_keep_their_order_if_they_come_twice() -> None:
    """They are compared as they were sent."""
    calls: list[int] = []

    async def change(updates: list[Any]) -> list[Any]:
        calls.append(len(updates))
        return updates

    api = api_of(Users(), update=change, delete=change, id_type=list[int])
    async with client_of(api) as client:
        for second, counts in (([1], [1, 1, 1]), ([3], [2, 1])):
            calls.clear()
            operations = [
                {"method": "update", "id": [1], "data": {}},
                {"method": "delete", "id": [2]},
                {"method": "update", "id": second, "data": {}},
            ]
            await client.post("/users/batch", json={"operations": operations})
            assert calls == counts


@pytest.mark.real_time  # a thread takes part
async def test_rare_forms_of_batches() -> None:
    """A create that names an id, an update that is no object, a read with a wrong id, a list that is allowed."""

    async def may(principal: Any, operation: str, items: list[Any]) -> None:
        return None

    def plain(items: list[User]) -> list[User]:
        return items

    api = api_of(Users(), create=plain, authorize_items=may)
    async with client_of(api) as client:
        named = {"operations": [{"method": "create", "id": "7", "data": {"name": "a", "id": "8"}}]}
        assert (await client.post("/users/batch", json=named)).json()["results"][0]["id"] == "8"
        wrong = await client.patch("/users/batch", json={"items": [5]})
        assert wrong.json()["results"][0]["status"] == 422
        read = await client.post("/users/batch-get", json={"ids": [5, "1"]})
        assert [one["status"] for one in read.json()["results"]] == [422, 404]
        kept = {"idempotency-key": '"k"'}
        assert (await client.post("/users", json={"name": "b"}, headers=kept)).status_code == 201


async def test_a_lifespan_that_is_cancelled_closes_at_once() -> None:
    """A server may be stopped harder than it should."""
    api = api_of(Users())
    started = anyio.Event()

    async def receive() -> Any:
        if not started.is_set():
            await anyio.lowlevel.checkpoint()
            return {"type": "lifespan.startup"}
        return await anyio.sleep_forever()

    async def send(message: Any) -> None:
        started.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(api, {"type": "lifespan"}, receive, send)
        await started.wait()
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert (await call(api, "/readyz", method="GET")).status == 503


@pytest.mark.asyncio_logs
async def test_work_that_ends_as_no_exception_should_is_a_crash() -> None:
    """Its request is told; nobody waits for ever."""
    detached = Detached()

    async def work() -> None:
        raise GeneratorExit

    with pytest.raises(HandlerCrashed):
        await detached.run(work, timeout=5)
    assert len(detached) == 0


async def test_work_may_end_after_its_request_has_been_answered() -> None:
    """Its result comes too late for anybody."""
    detached, go = Detached(), anyio.Event()
    with pytest.raises(Problem, match="504"):
        await detached.run(go.wait, timeout=5)
    assert len(detached) == 1
    go.set()
    await detached.join()
    assert len(detached) == 0


def test_buckets_of_principals_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever was asked for longest ago has a full one again."""
    monkeypatch.setattr("microbatch.http._rate._PRINCIPALS_MAX", 3)
    buckets = Buckets(5, 10, now=lambda: 0.0)
    for name in "abcda":
        headers: dict[str, str] = {}
        buckets.take(name, 4, headers)
        assert headers["ratelimit"] == '"default";r=1;t=8'
    assert len(buckets) == 3


def test_what_cannot_be_is_not_hidden() -> None:
    """Faults of our own are raised: a route twice, an error that nobody expects of a decoder."""

    async def nothing(exchange: Any) -> Any:
        return None

    route = Route(method="GET", path="/a", endpoint=nothing, name="a")
    with pytest.raises(ValueError, match="two routes for GET /a"):
        Router([route, route])
    with pytest.raises(OSError, match="disk"):
        raise not_json(OSError("disk"))
    assert Problem(404).document() == {"type": "about:blank", "title": "Not Found", "status": 404}
    assert ItemTelling(None, "x").status(None, "create") == 201


@pytest.mark.parametrize(
    ("missing", "extra"), [("starlette", "http"), ("httpx", "webhooks"), ("jinja2", "ui")]
)
def test_a_missing_package_is_told_with_its_extra(
    missing: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a fault in a package that is there is told as what it is."""
    real = builtins.__import__
    absent = missing

    def without(name: str, *args: Any, **more: Any) -> Any:
        if name.partition(".")[0] == absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args, **more)

    # Another copy is imported, and the one that the other tests use is put back whole.
    monkeypatch.setattr("microbatch.http", importlib.import_module("microbatch.http"))
    for name in [one for one in sys.modules if one.startswith("microbatch.http")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    wanted = {"webhooks": "Webhooks", "ui": "QueuePage"}

    def use() -> Any:
        module = importlib.import_module("microbatch.http")
        return getattr(module, wanted.get(extra, "BatchAPI"))

    with pytest.raises(ImportError, match=rf"pip install 'microbatch\[{extra}\]'"):
        use()
