"""What layers and streams must refuse: every line marked so, and no other."""

from microbatch import Batcher
from microbatch.layers import bisecting, per_item, rate_limited, validated
from microbatch.streaming import map_batches


async def lengths(items: list[str]) -> list[int]:
    return [len(item) for item in items]


async def single(item: str) -> int:
    return len(item)


def check(item: int) -> None: ...


async def calls() -> None:
    await bisecting(lengths)([1])  # refused
    await Batcher(bisecting(lengths)).submit(1)  # refused
    bisecting(single)  # refused
    per_item(lengths)(["a"])  # refused
    rate_limited(lengths, rate="1")  # refused
    validated(lengths, check)  # refused
    validated(lengths, print, mode="drop")  # refused
    map_batches([1], lengths)  # refused
    map_batches(["a"], lengths, max_batch_size="1")  # refused
