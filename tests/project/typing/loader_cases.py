"""What type checkers must infer for a Loader; tests/project/test_typing.py runs them over this file."""

from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import assert_type

from microbatch import Batcher, Loader


async def named(ids: list[int]) -> list[str | Exception]:
    return [str(id_) if id_ else KeyError(id_) for id_ in ids]


async def wide(ids: list[int]) -> Sequence[str]:
    return [str(id_) for id_ in ids]


async def nothing(ids: list[int]) -> None: ...


def plain(ids: list[int]) -> list[str]:
    return [str(id_) for id_ in ids]


async def pairs(ids: list[int]) -> AsyncIterator[tuple[int, str | Exception]]:
    for index, id_ in enumerate(ids):
        yield index, str(id_) if id_ else KeyError(id_)


async def cases(batcher: Batcher[int, str]) -> None:
    assert_type(Loader(batcher), Loader[int, str])
    assert_type(Loader(named), Loader[int, str])
    assert_type(Loader(wide), Loader[int, str])
    assert_type(Loader(plain, max_batch_size=10), Loader[int, str])
    assert_type(Loader(pairs), Loader[int, str])
    assert_type(Loader(nothing), Loader[int, None])
    loader = Loader(named, key=str, cache={}, max_wait=0.1)
    assert_type(loader, Loader[int, str])
    assert_type(loader.load(1), Awaitable[str])
    assert_type(await loader.load(1), str)
    assert_type(await loader.load_many([1]), list[str | Exception])
    loader.prime(1, "a")
    loader.prime(1, KeyError(1))
    loader.clear(1)
    loader.clear_all()
