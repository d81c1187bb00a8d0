"""Insert and read rows with Django's asynchronous ORM, for many tasks at once.

    python examples/insert_with_django.py

Each call of the asynchronous ORM goes to a worker thread and back, and each ``acreate`` is a statement and a
transaction of its own. A batcher makes one ``abulk_create`` of a hundred of them, and one ``ain_bulk`` of a
hundred reads. The database is an SQLite file in a temporary folder.
"""

import asyncio
import tempfile
from pathlib import Path
from time import perf_counter

import django
from asgiref.sync import sync_to_async
from django.conf import settings

from microbatch import Batcher, ItemNotFound

FOLDER = tempfile.TemporaryDirectory()
DATABASE = {"ENGINE": "django.db.backends.sqlite3", "NAME": Path(FOLDER.name) / "shop.sqlite"}
settings.configure(
    DATABASES={"default": DATABASE}, DEFAULT_AUTO_FIELD="django.db.models.BigAutoField"
)
django.setup()

from django.db import connection, connections, models  # noqa: E402 - after the settings

ROWS = 500


class Order(models.Model):  # type: ignore[misc]  # Django ships no types
    """A row; the application's label takes the place of an application."""

    name = models.CharField(max_length=40)

    class Meta:
        """Where the table belongs."""

        app_label = "shop"


def create_table() -> None:
    """Do what a migration does."""
    with connection.schema_editor() as editor:
        editor.create_model(Order)


async def insert(orders: list[Order]) -> list[int]:
    """Insert in one statement; the rows get their keys in the order of the list."""
    return [order.pk for order in await Order.objects.abulk_create(orders)]


async def read(keys: list[int]) -> list[str | Exception]:
    """Read in one statement; a key without a row is that caller's error alone."""
    found = await Order.objects.ain_bulk(keys)
    return [found[key].name if key in found else ItemNotFound(key) for key in keys]


async def one(order: Order) -> int:
    """Insert one row by itself."""
    await order.asave()
    return int(order.pk)


async def main() -> None:
    """Insert the same number of rows singly and in batches, then read them back."""
    await sync_to_async(create_table)()
    async with Batcher(insert) as inserts, Batcher(read, coalesce=lambda key: key) as reads:
        for title, way in (("acreate", one), ("batched", inserts.submit)):
            start = perf_counter()
            orders = [Order(name=f"{title} {number}") for number in range(ROWS)]
            keys = await asyncio.gather(*map(way, orders))
            milliseconds = (perf_counter() - start) * 1e3
            names = await asyncio.gather(*map(reads.submit, keys))
            own = sum(found == order.name for found, order in zip(names, orders, strict=True))
            print(f"{title:<8}{ROWS} rows in {milliseconds:>6,.0f} ms  own row: {own}")
        print(f"abulk_create: {inserts.stats().batches} calls, ain_bulk: {reads.stats().batches}")
        try:
            await reads.submit(-1)
        except ItemNotFound as error:
            print(error)
    await sync_to_async(connections.close_all)()
    FOLDER.cleanup()


if __name__ == "__main__":
    asyncio.run(main())
