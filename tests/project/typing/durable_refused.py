"""What the durable mode must refuse: every line marked so, and no other. Checked by test_typing.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

from microbatch.durable import DurableBatcher, DurableQueue

if TYPE_CHECKING:
    import aiosqlite


async def lengths(items: list[str]) -> list[int]:
    return [len(item) for item in items]


async def silent(items: list[str]) -> None: ...


async def single(item: str) -> int:
    return len(item)


async def settle(
    connection: aiosqlite.Connection, items: list[str], results: list[str]
) -> None: ...


async def calls() -> None:
    durable = DurableBatcher("q.db", lengths, item_type=str)
    await durable.submit(5)  # refused
    text: str = await durable.submit("a")  # refused
    await DurableQueue("q.db", item_type=str).enqueue(5)  # refused
    print(text)


def settings() -> None:
    DurableBatcher("q.db", single, item_type=str)  # refused
    DurableBatcher("q.db", lengths)  # refused
    DurableBatcher("q.db", lengths, item_type=str, max_batchsize=10)  # refused
    DurableBatcher("q.db", lengths, item_type=str, max_pending=10)  # refused
    DurableBatcher("q.db", lengths, item_type=str, on_settle=settle)  # refused
    DurableQueue("q.db", item_type=str, max_batch_size=10)  # refused
    DurableQueue("q.db", item_type=str, dec_hook=len)  # refused
    DurableBatcher("q.db", silent, item_type=str, result_type=int)  # refused
