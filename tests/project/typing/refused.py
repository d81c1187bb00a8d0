"""What type checkers must refuse: each line so marked is an error, and no other. Checked by test_typing.py."""

from __future__ import annotations

from microbatch import Batcher, Retry, batched


async def lengths(items: list[str]) -> list[int]:
    return [len(item) for item in items]


async def single(item: str) -> int:
    return len(item)


def number(items: list[str]) -> int:
    return len(items)


@batched()
async def lookup(items: list[str]) -> list[int]:
    return [len(item) for item in items]


@batched
async def bare(items: list[str]) -> list[int]:
    return [len(item) for item in items]


async def calls() -> None:
    batcher = Batcher(lengths)
    await batcher.submit(5)  # refused
    await batcher.submit_many([5])  # refused
    text: str = await batcher.submit("a")  # refused
    await lookup(5)  # refused
    other: str = await lookup("a")  # refused
    await lookup("a", "b")  # refused
    await bare(5)  # refused
    print(text, other)


def settings() -> None:
    Batcher(lengths, max_batch_size="10")  # refused
    Batcher(lengths, on_full="drop")  # refused
    Batcher(lengths, max_batchsize=10)  # refused
    Batcher(lengths, 10)  # refused
    Batcher(lengths, weigh=lambda item: item.missing)  # refused
    Batcher(number)  # refused
    batched(number)  # refused
    batched(single)  # refused
    Retry(on="ValueError")  # refused
    Retry()  # refused
