"""A process whose power will be cut: run with the shim, it writes at full speed and says what was acknowledged."""

from __future__ import annotations

import asyncio
import random
import sys

from microbatch.durable import DurableBatcher
from microbatch.durable._file import schema


async def main(path: str, seed: int) -> None:
    chance = random.Random(seed)
    if chance.random() < 0.5:  # a checkpoint every other transaction, so that cuts hit some
        schema.PRAGMAS += ("PRAGMA wal_autocheckpoint = 20",)

    async def handler(items):
        await asyncio.sleep(chance.choice([0, 0.001]))
        return [item * 2 for item in items]

    async def on_settle(connection, items, results):
        await connection.executemany("INSERT INTO effects VALUES (?)", [(item,) for item in items])

    def say(*words: object) -> None:
        sys.stdout.write(" ".join(map(str, words)) + "\n")
        sys.stdout.flush()

    durable = DurableBatcher(path, handler, item_type=int, on_settle=on_settle, max_batch_size=20)

    async def produce(first: int) -> None:
        for number in range(first, first + 1_000_000):
            if chance.random() < 0.5:
                ticket = await durable.enqueue(number)
                say("stored", number, ticket.id)
            else:
                await durable.submit(number, key=str(number))
                say("done", number)

    async with durable:
        await asyncio.gather(*(produce(n * 1_000_000) for n in range(8)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
