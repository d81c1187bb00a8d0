"""Exports: rows out as a stream, in three formats; what fails is never a whole-looking file."""

from __future__ import annotations

import contextlib
import gzip
import json
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from http_jobs_support import Wire
from http_support import User, Users, api_of, client_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio


class Rows:
    """A source of rows that notes how far it was read, and whether it was closed."""

    def __init__(self, count: int, fails_at: int | None = None) -> None:
        self.count = count
        self.fails_at = fails_at
        self.read = 0
        self.closed = 0

    async def __call__(self) -> AsyncIterator[User]:
        try:
            for n in range(self.count):
                if n == self.fails_at:
                    raise RuntimeError("secret")
                self.read += 1
                yield User(id=str(n), name=f"é{n}", age=n)
        finally:
            self.closed += 1


@contextlib.asynccontextmanager
async def exporting(export: Any, **settings: Any) -> AsyncIterator[Any]:
    async with client_of(api_of(Users(), export=export, **settings)) as client:
        yield client


async def test_rows_go_out_in_each_format() -> None:
    """As files are written: NDJSON by default."""
    expected = [{"id": str(n), "name": f"é{n}", "age": n} for n in range(3)]
    async with exporting(Rows(3)) as client:
        for format_, media_type in (
            (None, "application/x-ndjson"),
            ("ndjson", "application/x-ndjson"),
            ("json", "application/json"),
            ("csv", "text/csv; charset=utf-8"),
        ):
            found = await client.get("/users/export", params={"format": format_} if format_ else {})
            assert found.status_code == 200
            assert found.headers["content-type"] == media_type
            name = f"users.{format_ or 'ndjson'}"
            assert found.headers["content-disposition"] == f'attachment; filename="{name}"'
            assert found.headers["cache-control"] == "no-store"
            assert found.headers["x-content-type-options"] == "nosniff"
            if format_ == "csv":
                assert found.text == "id,name,age\r\n0,é0,0\r\n1,é1,1\r\n2,é2,2\r\n"
            elif format_ == "json":
                assert found.json() == expected
            else:
                assert [json.loads(line) for line in found.text.splitlines()] == expected


async def test_an_empty_export_is_whole() -> None:
    """Nothing is something too."""
    async with exporting(Rows(0)) as client:
        for format_, text in (("ndjson", ""), ("json", "[]\n"), ("csv", "")):
            assert (await client.get("/users/export", params={"format": format_})).text == text


async def test_many_rows_go_out_block_by_block_and_zipped_if_the_client_takes_that() -> None:
    """The bytes are gzip's, and whole."""
    app = api_of(Users(), export=Rows(2_500))
    async with app:
        for accepted, zipped in (("gzip", True), ("br, gzip;q=0.5", True), ("gzip;q=0", False), ("gzip; q=0.000", False), ("br", False)):  # fmt: skip
            wire = Wire("GET", "/users/export", accept_encoding=accepted)
            await wire.run(app)
            assert ("content-encoding" in wire.headers) == zipped
            assert wire.headers["vary"] == "accept-encoding"
            assert "content-length" not in wire.headers
            assert wire.is_whole
            data = gzip.decompress(wire.content) if zipped else wire.content
            assert len(data.splitlines()) == 2_500
            assert zipped or len(wire.answer) == 5  # the head, three blocks, the end


async def test_what_fails_at_once_is_an_error() -> None:
    """Nothing has been sent yet; its text stays here."""
    rows = Rows(10, fails_at=5)
    async with exporting(rows) as client:
        found = await client.get("/users/export")
        assert (found.status_code, found.json()["code"]) == (500, "internal_error")
        assert "secret" not in found.text
        assert rows.closed == 1


@pytest.mark.parametrize("accepted", ["identity", "gzip"])
@pytest.mark.parametrize("format_", ["ndjson", "csv", "json"])
async def test_what_fails_in_the_middle_breaks_the_answer_off(accepted: str, format_: str) -> None:
    """A file that looks whole and is not is worse than none."""
    rows = Rows(3_000, fails_at=2_200)
    app = api_of(Users(), export=rows)
    async with app:
        wire = Wire("GET", f"/users/export?format={format_}", accept_encoding=accepted)
        with pytest.raises(RuntimeError, match="secret"):  # the server closes the connection then
            await wire.run(app)
        assert not wire.is_whole
        assert b"secret" not in wire.content
        assert rows.closed == 1
        if accepted == "gzip":
            with pytest.raises(EOFError):
                gzip.decompress(wire.content)


async def test_a_client_that_leaves_ends_the_reading() -> None:
    """No query goes on for nobody; and what nobody has taken is not read ahead."""
    rows = Rows(100_000)
    app = api_of(Users(), export=rows)
    async with app:
        wire = Wire("GET", "/users/export")
        wire.at_start = wire.leave
        await wire.run(app)
        assert not wire.is_whole
        assert rows.closed == 1
        assert rows.read < 10_000


async def test_head_and_a_refused_export_read_nothing_more() -> None:
    """The source is closed all the same."""
    rows = Rows(5)
    app = api_of(Users(), export=rows)
    async with app:
        wire = Wire("HEAD", "/users/export")
        await wire.run(app)
        assert (wire.status, wire.content, rows.closed) == (200, b"", 1)
    async with exporting(rows) as client:
        for query in (
            "?format=xml",
            "?spreadsheet=1",
            "?format=csv&spreadsheet=yes",
            "?fromat=csv",
        ):
            found = await client.get(f"/users/export{query}")
            assert (found.status_code, found.json()["type"]) == (400, "invalid-parameter")
        assert rows.closed == 1


async def test_cells_are_harmless_to_a_spreadsheet_if_that_is_asked_for() -> None:
    """A name of a client must not run as a formula at whoever opens the file."""
    names = ["=1+1", "+1", "-1", "@a", "\ta", "\ra", "a=1", "", "'b"]

    def rows() -> list[User]:
        return [User(name=name, age=-5) for name in names]

    async with exporting(rows) as client:
        plain = (await client.get("/users/export?format=csv")).text
        safe = (await client.get("/users/export?format=csv&spreadsheet=1")).text
        assert ",=1+1,-5\r\n" in plain
        for name in names[:4]:
            assert f",'{name},-5\r\n" in safe
        assert ",'\ta,-5\r\n" in safe
        assert ',"\'\ra",-5\r\n' in safe
        assert ",a=1,-5\r\n,,-5\r\n,'b,-5\r\n" in safe
    async with exporting(lambda: [{"=1+1": "=2"}], item_type=dict, update=None) as client:
        safe = (await client.get("/users/export?format=csv&spreadsheet=1")).text
        assert safe == "'=1+1\r\n'=2\r\n"  # names may be clients' too


async def test_rows_that_have_no_such_form_are_an_error() -> None:
    """CSV holds no lists; and a row that is none at all."""
    async with exporting(lambda: [{"tags": [1]}], item_type=dict, update=None) as client:
        assert (await client.get("/users/export?format=csv")).status_code == 500
        assert (await client.get("/users/export")).text == '{"tags":[1]}\n'
    async with exporting(lambda: [5]) as client:
        assert (await client.get("/users/export?format=csv&spreadsheet=1")).status_code == 500


async def test_an_export_may_be_its_principals_own() -> None:
    """A function that takes an argument is told for whom; and the collection's authorize is asked."""

    async def export(principal: Any) -> AsyncIterator[dict[str, str]]:
        yield {"whose": principal.id}

    async def authorize_items(principal: Any, operation: str, items: list[Any]) -> None:
        assert (operation, items) == ("export", [])
        if principal.id == "bob":
            raise PermissionError

    api = api_of(Users(), export=export, authorize_items=authorize_items)
    async with client_of(api) as client:
        assert (await client.get("/users/export")).json() == {"whose": "ann"}
        denied = await client.get("/users/export", headers={"authorization": "Bearer bob"})
        assert denied.status_code == 403
        nobody = await client.get("/users/export", headers={"authorization": ""})
        assert nobody.status_code == 401


async def test_an_export_that_does_not_begin_is_given_up() -> None:
    """504, as any request; in virtual time."""

    async def export() -> AsyncIterator[int]:
        await anyio.sleep(100)
        yield 1

    async with exporting(export, timeout=5) as client:
        assert (await client.get("/users/export")).status_code == 504


class LastStraw:
    """A row that has its request cancelled while it is encoded."""

    def __init__(self, scope: anyio.CancelScope) -> None:
        self.scope = scope

    @classmethod
    def model_validate(cls, value: Any) -> LastStraw:
        raise NotImplementedError

    def model_dump(self, *, mode: str = "python") -> Any:
        self.scope.cancel()
        return {"id": 1}


async def test_a_request_that_is_cancelled_between_two_blocks_lets_its_source_close(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its connection goes back though the request may wait for nothing any more."""
    monkeypatch.setattr("microbatch.http._exporting.ROWS_AT_A_TIME", 1)
    steps: list[str] = []
    with anyio.CancelScope() as scope:

        async def rows() -> AsyncIterator[Any]:
            try:
                while True:
                    steps.append("row")
                    yield LastStraw(scope)
            finally:
                await anyio.sleep(1)
                steps.append("closed")

        await Wire("GET", "/users/export").run(api_of(Users(), export=rows))
    assert steps == ["row", "closed"]


async def test_a_source_that_does_not_close_is_left_behind() -> None:
    """A request does not wait for ever for a query that hangs."""
    scopes: list[anyio.CancelScope] = []

    async def rows() -> AsyncIterator[User]:
        try:
            while True:
                yield User(name="ann")
        finally:
            with anyio.CancelScope() as scope:
                scopes.append(scope)
                await anyio.sleep_forever()

    wire = Wire("GET", "/users/export")
    wire.at_start = wire.leave
    began = anyio.current_time()
    await wire.run(api_of(Users(), export=rows))
    assert len(scopes) == 1
    assert anyio.current_time() - began == pytest.approx(5, abs=0.5)
