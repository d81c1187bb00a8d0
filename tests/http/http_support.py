"""What the tests of HTTP share: an API over users in memory, and a client that calls it without a socket."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import anyio.lowlevel
import httpx
import msgspec

from microbatch import ItemError, ItemNotFound
from microbatch.http import BatchAPI, Principal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from starlette.requests import Request


class User(msgspec.Struct, kw_only=True):
    id: str = ""
    name: str
    age: int = 0


class Users:
    """Users in memory, with bulk handlers that keep what they were called with."""

    @staticmethod
    async def allow(request: Request) -> Principal:
        return Principal("anyone")

    def __init__(self) -> None:
        self.rows: dict[str, User] = {}
        self.calls: list[tuple[str, list[Any]]] = []

    async def create(self, items: list[User]) -> list[User | Exception]:
        self.calls.append(("create", list(items)))
        return [self._add(item) for item in items]

    def _add(self, item: User) -> User | Exception:
        if any(row.name == item.name for row in self.rows.values()):
            return ItemError("this name is taken", code="duplicate_name", field="name")
        if item.name == "boom":
            return RuntimeError("secret: postgres://user:password@host")  # not a secret
        row = msgspec.structs.replace(item, id=item.id or str(len(self.rows) + 1))
        self.rows[row.id] = row
        return row

    async def update(self, updates: list[Any]) -> list[User | Exception]:
        self.calls.append(("update", list(updates)))
        return [self._change(update) for update in updates]

    def _change(self, update: Any) -> User | Exception:
        if update.id not in self.rows:
            return ItemNotFound(update.id)
        fields = {
            name: value
            for name in User.__struct_fields__
            if (value := getattr(update.data, name)) is not msgspec.UNSET
        }
        row = self.rows[update.id] = msgspec.structs.replace(self.rows[update.id], **fields)
        return row

    async def delete(self, ids: list[str]) -> list[Exception | None]:
        self.calls.append(("delete", list(ids)))
        return [None if self.rows.pop(one, None) else ItemNotFound(one) for one in ids]

    async def read(self, ids: list[str]) -> list[User | Exception]:
        self.calls.append(("read", list(ids)))
        return [self.rows.get(one) or ItemNotFound(one) for one in ids]


async def call(
    app: Any,
    path: str,
    pieces: Iterable[bytes] = (),
    *,
    method: str = "POST",
    headers: dict[str, str] | None = None,
    scope: dict[str, Any] | None = None,
) -> Called:
    """Call an application as a server does, piece by piece; count what it read of the body."""
    given = {"authorization": "Bearer ann", "content-type": "application/json"} | (headers or {})
    source = iter(pieces)
    called = Called()

    async def receive() -> dict[str, Any]:
        await anyio.lowlevel.checkpoint()
        if called.done:
            return {"type": "http.disconnect"}
        piece = next(source, None)
        called.read += piece is not None and not called.status
        return {"type": "http.request", "body": piece or b"", "more_body": piece is not None}

    async def send(message: dict[str, Any]) -> None:
        await anyio.lowlevel.checkpoint()
        called.take(message)

    of_request = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": path,
        "raw_path": path.encode(), "query_string": b"", "root_path": "", "scheme": "http",
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
    }  # fmt: skip
    await app(of_request | (scope or {}), receive, send)
    return called


class Called:
    """What came of a call: the answer, and how many pieces of the body were read before it."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.read = 0
        self.done = False

    def take(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            self.body += message.get("body", b"")
            self.done = not message.get("more_body", False)

    def json(self) -> Any:
        return msgspec.json.decode(self.body)


async def authorize(request: Request) -> Principal | None:
    """Take the header ``Authorization: Bearer NAME`` for the name; ``banned`` may do nothing."""
    name = request.headers.get("authorization", "").removeprefix("Bearer ")
    if name == "banned":
        raise PermissionError("secret reason")
    return Principal(name) if name else None


def api_of(users: Users, **settings: Any) -> BatchAPI:
    """Make an API with one collection; settings of either, by name."""
    of_collection = {
        "update_type", "id_type", "create", "update", "delete", "read", "queue", "export", "atomic", "validate",
        "item_type",
    }  # fmt: skip
    own = {name: settings.pop(name) for name in list(settings) if name in of_collection}
    if "authorize_items" in settings:
        own["authorize"] = settings.pop("authorize_items")
    api = BatchAPI(**({"authorize": authorize} | settings))
    handlers = {name: getattr(users, name) for name in ("create", "update", "delete", "read")}
    api.collection("users", **({"item_type": User} | handlers | own))
    return api


@contextlib.asynccontextmanager
async def client_of(app: Any, name: str = "ann") -> AsyncIterator[httpx.AsyncClient]:
    """Open an API and give a client of it, whose requests are ann's."""
    headers = {"authorization": f"Bearer {name}"} if name else {}
    async with contextlib.AsyncExitStack() as stack:
        if isinstance(app, BatchAPI):
            await stack.enter_async_context(app)
        transport = httpx.ASGITransport(app)
        yield await stack.enter_async_context(
            httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers)
        )
