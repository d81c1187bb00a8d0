"""Atomic batches: all of it or nothing, in one transaction."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from http_support import User, Users, api_of, client_of

from microbatch import Batcher, ItemError, current_batch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio

ATOMIC = {"atomic": True}


class Bank(Users):
    """Users whose transactions can be seen."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[str] = []
        self.fails: Exception | None = None

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        before = dict(self.rows)
        try:
            yield
            if self.fails is not None:
                raise self.fails
        except BaseException:
            self.rows = before
            self.ends.append("rollback")
            raise
        self.ends.append("commit")


def operations(*names: Any) -> list[dict[str, Any]]:
    return [{"method": "create", "data": {"name": name}} for name in names]


async def send(client: Any, batch: list[Any], **options: Any) -> Any:
    return await client.post(
        "/users/batch", json={"operations": batch, "options": ATOMIC | options}
    )


async def test_all_of_it_is_kept_if_nothing_fails() -> None:
    """One transaction, whatever kinds there are."""
    bank = Bank()
    async with client_of(api_of(bank, atomic=bank.transaction)) as client:
        batch = [*operations("a", "b"), {"method": "update", "id": "1", "data": {"age": 4}}]
        answer = await send(client, batch)
        assert answer.status_code == 200
        assert [one["status"] for one in answer.json()["results"]] == [201, 201, 200]
    assert (bank.ends, len(bank.rows)) == (["commit"], 2)


@pytest.mark.parametrize(
    ("batch", "status", "statuses"),
    [
        (operations("a", "taken"), 409, [424, 409]),
        (operations("a", "boom"), 500, [424, 500]),
        (operations("a", 5), 422, [424, 422]),
        ([*operations("a"), {"method": "delete", "id": "9"}], 422, [424, 404]),
        ([*operations("a"), {"method": "fly"}], 422, [424, 400]),
    ],
)
async def test_nothing_of_it_is_kept_if_one_item_fails(
    batch: list[Any], status: int, statuses: list[int]
) -> None:
    """The first failure that is an item's own decides what the batch is answered with."""
    bank = Bank()
    bank.rows = {"0": User(id="0", name="taken")}
    async with client_of(api_of(bank, atomic=bank.transaction)) as client:
        answer = await send(client, batch)
    assert (answer.status_code, [one["status"] for one in answer.json()["results"]]) == (
        status,
        statuses,
    )
    assert answer.json()["results"][0]["error"]["code"] == "aborted"
    assert list(bank.rows) == ["0"]
    assert "commit" not in bank.ends


async def test_a_transaction_that_cannot_be_kept_fails_all_of_it() -> None:
    """A constraint may be checked only as it commits."""
    bank = Bank()
    async with client_of(api_of(bank, atomic=bank.transaction)) as client:
        bank.fails = RuntimeError("secret constraint")
        answer = await send(client, operations("a"))
        assert (answer.status_code, answer.json()["results"][0]["status"]) == (500, 500)
        assert "secret" not in answer.text
        bank.fails = ItemError("it changed meanwhile", code="conflict")
        answer = await send(client, operations("a"))
        assert (answer.status_code, answer.json()["results"][0]["status"]) == (409, 409)
    assert bank.rows == {}


async def test_a_handler_that_raises_fails_its_items_and_undoes_the_rest() -> None:
    """What came before it in the same batch too; what would come after is not tried."""
    bank = Bank()

    async def update(updates: list[Any]) -> list[Any]:
        raise ValueError("secret")

    async with client_of(api_of(bank, atomic=bank.transaction, update=update)) as client:
        change = {"method": "update", "id": "1", "data": {}}
        gone = {"method": "delete", "id": "1"}
        answer = await send(client, [*operations("a"), change, gone])
        assert answer.status_code == 500
        statuses = [one["status"] for one in answer.json()["results"]]
        assert statuses in ([424, 500, 424], [424, 500, 424])
    assert ("delete", ["1"]) not in bank.calls
    assert (bank.rows, bank.ends) == ({}, ["rollback"])


async def test_it_is_refused_where_there_is_no_transaction_for_all_of_it() -> None:
    """Not half atomic: no factory, another one, or a batcher that takes other requests' items along."""
    bank, other = Bank(), Bank()
    api = api_of(bank, atomic=bank.transaction)
    api.collection("others", item_type=User, create=other.create, atomic=other.transaction)
    api.collection("plain", item_type=User, create=other.create)
    shared = Batcher(other.create)
    api.collection("shared", item_type=User, create=shared, atomic=bank.transaction)

    async with client_of(api) as client:
        for names in (["plain"], ["users", "others"], ["users", "shared"], ["nothing"]):
            batch = [
                {"method": "create", "collection": name, "data": {"name": "a"}} for name in names
            ]
            answer = await client.post("/batch", json={"operations": batch, "options": ATOMIC})
            assert (answer.status_code, answer.json()["type"]) == (422, "atomic-not-available")
            both = ATOMIC | {"validate_only": True}
            answer = await client.post("/batch", json={"operations": batch, "options": both})
            assert answer.status_code == 422
    assert bank.calls == other.calls == []


async def test_it_takes_no_longer_than_a_request_may() -> None:
    """Then it is rolled back, and the request is answered 504."""
    bank = Bank()

    async def create(items: list[User]) -> list[User]:
        await anyio.sleep(100)
        return items

    async with client_of(api_of(bank, atomic=bank.transaction, create=create, timeout=2)) as client:
        answer = await send(client, operations("a"))
        assert answer.status_code == 504
    assert bank.ends == ["rollback"]


async def test_a_handler_sees_the_items_that_it_gets() -> None:
    """``current_batch()`` is about them, and not about what runs the transaction."""
    bank = Bank()
    sizes: list[tuple[int, int]] = []

    async def create(items: list[User]) -> list[User]:
        batch = current_batch()
        assert batch is not None
        assert batch.keys is None
        sizes.append((batch.size, len(items)))
        return items

    async with client_of(api_of(bank, atomic=bank.transaction, create=create)) as client:
        batch = [*operations("a", "b"), {"method": "delete", "id": "9"}]
        assert (await send(client, batch, ordered=True)).status_code == 422
    assert sizes == [(2, 2)]


async def test_without_room_nothing_begins() -> None:
    """A batch counts by its items: what waits is bounded in memory."""
    bank = Bank()
    begun, end = anyio.Event(), anyio.Event()

    async def create(items: list[User]) -> list[User]:
        begun.set()
        await end.wait()
        return items

    api = api_of(bank, atomic=bank.transaction, create=create, max_items=2)
    async with client_of(api) as client, anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(send, client, operations("a", "b"))
        await begun.wait()
        await anyio.wait_all_tasks_blocked()
        answer = await send(client, operations("a", "b"))
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        end.set()


async def test_an_empty_one_is_done() -> None:
    """A client that collects what it sends has nothing now and then."""
    bank = Bank()
    async with client_of(api_of(bank, atomic=bank.transaction)) as client:
        for path, key in (
            ("/users/batch", "items"),
            ("/users/batch", "operations"),
            ("/batch", "operations"),
        ):
            answer = await client.post(path, json={key: [], "options": ATOMIC})
            assert (answer.status_code, answer.json()["summary"]["total"]) == (200, 0)
    assert bank.ends == []
