"""What type checkers must refuse of a Loader: each line so marked is an error, and no other."""

from __future__ import annotations

from microbatch import Batcher, Loader


async def named(ids: list[int]) -> list[str | Exception]:
    return [str(id_) if id_ else KeyError(id_) for id_ in ids]


async def single(id_: int) -> str:
    return str(id_)


async def calls(batcher: Batcher[int, str]) -> None:
    loader = Loader(batcher)
    await loader.load("a")  # refused
    await loader.load_many(["a"])  # refused
    number: int = await loader.load(1)  # refused
    loader.prime(1, 2)  # refused
    Loader(batcher, max_batch_size=1)  # refused
    Loader(named, max_batch_sise=1)  # refused
    Loader(single)  # refused
    print(number)
