"""Orders that survive kill -9: stock and queue in one SQLite file, changed in one transaction.

The program starts a worker process, kills it twice in the middle of its work, and starts it again. In the end
every order was delivered exactly once and the stock adds up, whatever the kills hit.

    python durable_orders.py
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from microbatch.durable import DurableBatcher, DurableQueue

if TYPE_CHECKING:
    import aiosqlite

ORDERS = 500
STOCK = {"tea": 600, "coffee": 600, "cocoa": 50}  # too little cocoa


class Order(msgspec.Struct):
    """What is in the queue."""

    number: int
    article: str
    quantity: int


async def price(orders: list[Order]) -> list[int | Exception]:
    """Handle many orders at once: here, ask somebody for prices."""
    await asyncio.sleep(0.02)
    return [order.quantity * len(order.article) for order in orders]


async def deliver(connection: aiosqlite.Connection, orders: list[Order], prices: list[int]) -> None:
    """Write the effects, in the very transaction that settles the orders: both or neither."""
    for order, amount in zip(orders, prices, strict=True):
        taken = await connection.execute(
            "UPDATE stock SET pieces = pieces - :n WHERE article = :a AND pieces >= :n",
            {"n": order.quantity, "a": order.article},
        )
        state = "delivered" if taken.rowcount else "out of stock"
        await taken.close()
        await connection.execute_insert(
            "INSERT INTO deliveries VALUES (?, ?, ?)", (order.number, state, amount)
        )


async def work(path: str) -> None:
    """Be the worker process: handle orders until there are none."""
    async with DurableBatcher(
        path, price, item_type=Order, max_batch_size=20, on_settle=deliver
    ) as orders:
        while (await orders.stats()).depth:  # noqa: ASYNC110 - the queue has no event for it
            await asyncio.sleep(0.05)


async def place_orders(path: Path) -> None:
    """Accept orders: each is on the disk when `enqueue_many` returns."""
    chance = random.Random(1)
    queue: DurableQueue[Order, None] = DurableQueue(path, item_type=Order)
    async with queue:
        await queue.enqueue_many(
            Order(number, chance.choice(list(STOCK)), chance.randint(1, 3))
            for number in range(ORDERS)
        )


def main() -> None:
    """Place orders, kill workers, count."""
    path = Path(tempfile.mkdtemp()) / "shop.db"
    shop = sqlite3.connect(path)
    shop.execute("CREATE TABLE stock (article TEXT PRIMARY KEY, pieces INTEGER)")
    shop.execute("CREATE TABLE deliveries (number INTEGER, state TEXT, amount INTEGER)")
    shop.executemany("INSERT INTO stock VALUES (?, ?)", STOCK.items())
    shop.commit()
    asyncio.run(place_orders(path))

    for kill in (True, True, False):
        command = [sys.executable, __file__, str(path)]
        worker = subprocess.Popen(command, stderr=subprocess.DEVNULL)  # noqa: S603 - this very file
        before = shop.execute("SELECT count(*) FROM deliveries").fetchone()[0]
        while kill and worker.poll() is None:
            if shop.execute("SELECT count(*) FROM deliveries").fetchone()[0] >= before + 60:
                break
            time.sleep(0.005)
        if kill:
            worker.kill()
            print("killed the worker in the middle of its work")
        worker.wait()

    numbers = [row[0] for row in shop.execute("SELECT number FROM deliveries ORDER BY number")]
    print("every order handled exactly once:", numbers == list(range(ORDERS)))
    left = dict(shop.execute("SELECT article, pieces FROM stock"))
    print("stock is never negative:", min(left.values()) >= 0)
    refused = shop.execute("SELECT count(*) FROM deliveries WHERE state <> 'delivered'").fetchone()
    print("orders that found no stock:", refused[0] > 0 and left["cocoa"] <= 2)
    shop.close()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(work(sys.argv[1]))
    else:
        main()
