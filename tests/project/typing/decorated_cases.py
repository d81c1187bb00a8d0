"""What type checkers must infer of every form of ``@batched``. Checked by test_typing.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_type

from microbatch import Batcher, batched

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@batched
async def bare(items: list[str]) -> list[int | Exception]:
    return [len(item) for item in items]


@batched
async def bare_silent(items: list[str]) -> None: ...


@batched
def bare_plain(items: list[str]) -> tuple[int, ...]:
    return ()


@batched
async def bare_stream(items: list[str]) -> AsyncIterator[tuple[int, bytes | Exception]]:
    for index, item in enumerate(items):
        yield index, item.encode()


class A:
    """Methods of every kind."""

    @batched
    async def get(self, items: list[int]) -> list[str]:
        return [str(item) for item in items]

    @batched
    def put(self, items: list[int]) -> None: ...

    @batched
    async def stream(self, items: list[str]) -> AsyncIterator[tuple[int, bytes]]:
        yield 0, b""

    @batched
    @staticmethod
    async def nobody(items: list[int]) -> list[str]:
        return []

    @batched(max_wait=1)
    @staticmethod
    def nobody2(items: list[int]) -> None: ...

    @batched
    @classmethod
    async def of_class(cls, items: list[int]) -> list[str]:
        return []

    @batched()
    @classmethod
    async def of_class2(cls, items: list[int]) -> None: ...

    @staticmethod
    @batched
    async def outer_static(items: list[int]) -> list[str]:
        return []


async def main() -> None:
    assert_type(await bare("a"), int)
    assert_type(bare.batcher, Batcher[str, int])
    assert_type(await bare_silent.batcher.submit_many("a"), list[None])
    assert_type(await bare_plain("a"), int)
    assert_type(await bare_stream("a"), bytes)
    assert_type(await bare(item="a"), int)
    a = A()
    assert_type(await a.get(1), str)
    assert_type(a.get.batcher, Batcher[int, str])
    assert_type(a.put.batcher, Batcher[int, None])
    assert_type(await a.stream("a"), bytes)
    assert_type(await A.get(a, 1), str)
    assert_type(await A.get(a, 1, priority=2), str)
    assert_type(await a.nobody(1), str)
    assert_type(await A.nobody(1), str)
    assert_type(A.nobody2.batcher, Batcher[int, None])
    assert_type(await A.of_class(1), str)
    assert_type(await a.of_class(1), str)
    assert_type(A.of_class2.batcher, Batcher[int, None])
    assert_type(await A.outer_static(1), str)
    assert_type(await a.outer_static(1), str)
    await a.get.aclose()
    async with A.of_class as entered:
        assert_type(await entered(1), str)
