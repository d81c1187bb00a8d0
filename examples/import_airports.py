"""Import 28,000 airports into SQLite, each row by its own task, as the requests of a service would.

    python examples/import_airports.py [airports.sqlite]

Every task awaits ``batcher.submit(row)``; what comes together is written in one transaction. A few
rows are broken on purpose and fail alone. For comparison the first rows go in once more, each in a
transaction of its own, and what all of them would have taken that way is extrapolated.
"""

import asyncio
import csv
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from time import perf_counter

import airportsdata
from tqdm import tqdm

from microbatch import Batcher

Row = dict[str, str | None]
SAMPLE = 2_000  # rows that also get a transaction each: enough to tell, soon done on a slow disk
SCHEMA = """PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; DROP TABLE IF EXISTS airport;
CREATE TABLE airport (
    icao TEXT PRIMARY KEY, name TEXT NOT NULL, city TEXT, country TEXT NOT NULL, tz TEXT NOT NULL,
    elevation REAL CONSTRAINT "elevation must be a number" CHECK (typeof(elevation) = 'real'),
    lat REAL CONSTRAINT "lat must be within 90 degrees" CHECK (lat BETWEEN -90 AND 90),
    lon REAL CONSTRAINT "lon must be within 180 degrees" CHECK (lon BETWEEN -180 AND 180))"""
INSERT = "INSERT INTO airport VALUES (:icao, :name, :city, :country, :tz, :elevation, :lat, :lon)"
BROKEN: list[Row] = [  # changes to a copy of a real row; none: its code is taken
    {},
    {"icao": "XX01", "elevation": "unknown"},
    {"icao": "XX02", "lat": "91.5"},
    {"icao": "XX03", "lon": "-200"},
    {"icao": "XX04", "country": None},
]


class Airports:
    """The table in its file, and the bulk handler that writes to it."""

    def __init__(self, path: Path) -> None:
        self.transactions = 0
        self.database = sqlite3.connect(path, check_same_thread=False)  # one thread at a time
        self.database.executescript(SCHEMA)

    def insert(self, rows: list[Row]) -> list[sqlite3.IntegrityError | None]:
        """Write the rows in one transaction; if one breaks a rule, the others all the same."""
        self.transactions += 1
        try:
            with self.database:  # commits, or rolls back
                self.database.executemany(INSERT, rows)
            return [None] * len(rows)
        except sqlite3.IntegrityError:  # rare: once more, and each with its own answer
            with self.database:
                return [self.insert_one(row) for row in rows]

    def insert_one(self, row: Row) -> sqlite3.IntegrityError | None:
        """Write one row, or say why not: SQLite undoes the statement, not the transaction."""
        try:
            self.database.execute(INSERT, row)
        except sqlite3.IntegrityError as error:
            return error
        return None


class Run:
    """Every row through ``submit`` by a task of its own, all started at once."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self.failed: list[tuple[Row, Exception]] = []

    async def go(
        self, submit: Callable[[Row], Coroutine[object, object, object]], rows: list[Row]
    ) -> None:
        """Start the tasks and wait for the last; the bar shows on a terminal only."""

        async def request(row: Row) -> None:
            start = perf_counter()
            try:
                await submit(row)
            except sqlite3.IntegrityError as error:
                self.failed.append((row, error))
            self.waits.append(perf_counter() - start)
            bar.update()

        begin = perf_counter()
        with tqdm(total=len(rows), unit=" rows", disable=None, leave=False) as bar:
            async with asyncio.TaskGroup() as tasks:
                for row in rows:
                    tasks.create_task(request(row))
        self.seconds = perf_counter() - begin

    def show(self, title: str, transactions: int, times: float = 1.0) -> None:
        """Print a line of the table, as if there had been so many times the rows."""
        count, waits, seconds = len(self.waits) * times, sorted(self.waits), self.seconds * times
        p50, p99 = (waits[int(len(waits) * part)] * times for part in (0.5, 0.99))
        print(f"{title:<24}{count:>7,.0f}{transactions * times:>14,.0f}{seconds:>9.2f}", end="")
        print(f"{count / seconds:>9,.0f}{p50:>7.2f} s{p99:>7.2f} s")


async def main(path: Path) -> None:
    """Import, compare, print, and count what is in the database."""
    with Path(airportsdata.__file__).with_name("airports.csv").open(encoding="utf-8") as file:
        real: list[Row] = list(csv.DictReader(file))
    rows = list(real)
    for number, change in enumerate(BROKEN, 1):
        rows.insert(number * 5_000, real[number] | change)

    airports, batched, single, turn = Airports(path), Run(), Run(), asyncio.Lock()
    async with Batcher(airports.insert, max_batch_size=500) as batcher:
        await batched.go(batcher.submit, rows)

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # on the same disk
        other = Airports(Path(folder) / "other.sqlite")

        async def insert(row: Row) -> None:
            async with turn:
                await asyncio.to_thread(other.insert, [row])

        await single.go(insert, real[:SAMPLE])
        other.database.close()

    print(f"{'':<24}{'rows':>7}{'transactions':>14}{'seconds':>9}{'rows/s':>9}{'p50':>9}{'p99':>9}")
    batched.show("batched", airports.transactions)
    single.show("one transaction a row", other.transactions)
    single.show("  extrapolated to all", other.transactions, len(rows) / SAMPLE)
    print(f"\n{len(batched.failed)} rows, broken on purpose, failed alone:")
    for row, error in batched.failed:
        print(f"  {row['icao']}  {error}")
    (stored,) = airports.database.execute("SELECT count(*) FROM airport").fetchone()
    airports.database.close()
    print(f"\n{len(rows):,} submitted - {len(batched.failed)} failed = {stored:,} in {path.name}")
    if not stored == len(real) == len(rows) - len(batched.failed):
        sys.exit("the counts do not match")


if __name__ == "__main__":
    asyncio.run(main(Path(*sys.argv[1:] or ["airports.sqlite"])))
