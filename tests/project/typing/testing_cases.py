"""What type checkers must infer of recorded handlers. Checked by test_typing.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, assert_type

from microbatch import Batcher, batched
from microbatch.testing import no_backoff, recorded, virtual_time

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@recorded
async def lookup(items: list[int]) -> list[str | Exception]:
    return [str(item) for item in items]


@recorded
async def silent(items: list[int]) -> None: ...


@recorded
def plain(items: list[int]) -> tuple[float, ...]:
    return ()


@recorded
def plain_silent(items: list[int]) -> None: ...


@recorded
async def stream(items: list[int]) -> AsyncIterator[tuple[int, bytes | Exception]]:
    yield 0, b""


class Users:
    """Handlers of every kind."""

    async def many(self, items: list[int]) -> list[str]:
        return []

    async def __call__(self, items: list[str]) -> list[bytes]:
        return []

    @recorded
    async def names(self, items: list[int]) -> list[str]:
        return []

    @batched
    @recorded
    async def age(self, items: list[str]) -> list[int | Exception]:
        return []


async def batchers() -> None:
    assert_type(Batcher(lookup), Batcher[int, str])
    assert_type(Batcher(silent), Batcher[int, None])
    assert_type(Batcher(plain), Batcher[int, float])
    assert_type(Batcher(plain_silent), Batcher[int, None])
    assert_type(Batcher(stream), Batcher[int, bytes])
    users = Users()
    assert_type(Batcher(recorded(users.many)), Batcher[int, str])
    assert_type(Batcher(recorded(users)), Batcher[str, bytes])
    assert_type(Batcher(users.names), Batcher[int, str])
    assert_type(await users.age("a"), int)
    assert_type(await batched(lookup)(1), str)


async def records() -> None:
    assert_type(lookup.batches, list[list[int]])
    assert_type(Users().names.batches, list[list[int]])
    assert_type(Users.names.batches, list[list[int]])
    assert lookup.reasons == ["size", None]
    assert_type(await lookup([1]), list[str | Exception])
    assert_type(plain([1]), tuple[float, ...])
    assert_type(recorded(Users().many).batches, list[list[int]])


def around() -> None:
    assert_type(virtual_time("trio"), dict[str, Any])
    with no_backoff() as nothing:
        assert_type(nothing, None)
