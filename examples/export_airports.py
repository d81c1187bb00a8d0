"""Export the imported airports as zipped NDJSON and CSV, a page at a time, and read them back.

    python examples/export_airports.py [airports.sqlite]

Without that file (``import_airports.py`` makes it) the airports are imported first, by a stream.
The export reads the table in pages, by key, so it holds no lock and one page in memory, and each
file takes its name only when it is whole.
"""

import sqlite3
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from time import perf_counter
from typing import Any

import airportsdata
import anyio
import anyio.to_thread
import msgspec
from import_airports import Airports

from microbatch.files import read_rows, write_rows
from microbatch.streaming import map_batches

PAGE = 1_000
SELECT = """SELECT icao, name, city, country, tz, elevation, lat, lon FROM airport
    WHERE icao > ? ORDER BY icao LIMIT ?"""


class Airport(msgspec.Struct):
    """A row of the table."""

    icao: str
    name: str
    city: str
    country: str
    tz: str
    elevation: float
    lat: float
    lon: float


async def import_them(path: Path) -> None:
    """Stream the airports' CSV file into the table."""
    airports = Airports(path)
    source = Path(airportsdata.__file__).with_name("airports.csv")
    async with map_batches(read_rows(source), airports.insert, max_concurrency=1) as outcomes:
        async for outcome in outcomes:
            if outcome.error is not None:
                print(f"row {outcome.id}: {outcome.error}")
    airports.database.close()
    print(f"imported {outcomes.progress.succeeded:,} airports into {path.name}")


async def airports_of(path: Path) -> AsyncIterator[Airport]:
    """Yield the table's rows; each page is read in a thread."""
    database = sqlite3.connect(path, check_same_thread=False)

    def page(after: str) -> list[tuple[Any, ...]]:
        return database.execute(SELECT, (after, PAGE)).fetchall()

    try:
        after = ""
        while rows := await anyio.to_thread.run_sync(page, after):
            for row in rows:
                yield Airport(*row)
            after = str(rows[-1][0])
    finally:
        database.close()


async def differences(source: AsyncIterator[Airport], target: Path) -> int:
    """Count the rows of the file that are not the table's, one by one."""
    wrong = 0
    async for outcome in read_rows(target, Airport):
        wrong += not outcome.ok or outcome.value != await anext(source, None)
    return wrong + sum([1 async for _ in source])


async def main(path: Path) -> None:
    """Import if need be, export in both formats, compare."""
    if not path.exists():  # noqa: ASYNC240 - before anything else runs
        await import_them(path)
    for suffix in ("ndjson.gz", "csv.gz"):
        target = path.with_name(f"airports.{suffix}")
        start = perf_counter()
        count = await write_rows(target, airports_of(path))
        seconds = perf_counter() - start
        size = target.stat().st_size
        print(f"exported {count:,} airports to {target.name}: {size:,} bytes in {seconds:.1f} s")
        wrong = await differences(airports_of(path), target)
        print(f"  read back: {'the same' if not wrong else f'{wrong} differ'}")
        if wrong:
            sys.exit("the export does not match")


if __name__ == "__main__":
    anyio.run(main, Path(*sys.argv[1:] or ["airports.sqlite"]))
