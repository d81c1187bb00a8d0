"""What a user gains: rows a second, latency and commits on PostgreSQL and on SQLite.

So many callers insert one row after the other, each waiting until its own row is committed: with
one statement each, through a Batcher at default settings, and, as the bound, batched by hand (one
caller who has all rows at hand and sends as many at once as there are callers, at most 100).

PostgreSQL is started in a temporary folder, by its defaults (fsync on), under an unprivileged
user if this runs as root. SQLite runs with WAL and synchronous=FULL.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import getpass
import os
import pwd
import shutil
import sqlite3
import statistics
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks import output, runner
from microbatch import Batcher

CREATE = "CREATE TABLE row_of_text (id bigint PRIMARY KEY, body text NOT NULL)"
BODY = "x" * 100

# PostgreSQL


def postgres_programs():
    """Return the folder with initdb and postgres, or None."""
    for folder in [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]:
        if (folder / "initdb").exists():
            return folder
    found = shutil.which("initdb")
    return Path(found).resolve().parent if found else None


@contextlib.contextmanager
def postgres():
    """Start a server in a temporary folder; yield the folder of its socket and its user."""
    programs = postgres_programs()
    as_user = {}
    user = getpass.getuser()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        if os.getuid() == 0:  # PostgreSQL refuses to run as root
            nobody = pwd.getpwnam("nobody")
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
            as_user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            user = "nobody"
        data = str(Path(folder) / "data")
        subprocess.run(
            [programs / "initdb", "-D", data, "-A", "trust", "-U", user, "--no-locale"],
            check=True, stdout=subprocess.DEVNULL, cwd=folder, **as_user,
        )  # fmt: skip
        with (Path(folder) / "log").open("wb") as log:
            server = subprocess.Popen(
                [programs / "postgres", "-D", data, "-k", folder, "-c", "listen_addresses="],
                stdout=log, stderr=log, cwd=folder, **as_user,
            )  # fmt: skip
            try:
                yield folder, user
            finally:
                server.terminate()
                server.wait(120)


class Postgres:
    """The three ways of writing, over a pool of ten connections."""

    def __init__(self, pool):
        self.pool = pool

    async def one(self, key):
        await self.pool.execute("INSERT INTO row_of_text VALUES ($1, $2)", key, BODY)

    async def many(self, keys) -> None:
        await self.pool.execute(
            "INSERT INTO row_of_text SELECT id, $2 FROM unnest($1::bigint[]) AS id", keys, BODY
        )

    def batcher(self):
        return Batcher(self.many)

    async def transactions(self):
        return int(await self.pool.fetchval("SELECT pg_current_xact_id()::text"))

    async def clear(self):
        await self.pool.execute("TRUNCATE row_of_text")
        await self.pool.execute("CHECKPOINT")


@contextlib.asynccontextmanager
async def on_postgres():
    import asyncpg

    with postgres() as (folder, user):
        for _ in range(600):
            try:
                pool = await asyncpg.create_pool(
                    host=folder, user=user, database="postgres", min_size=10, max_size=10
                )
                break
            except (OSError, asyncpg.CannotConnectNowError):
                await asyncio.sleep(0.1)
        async with pool:
            await pool.execute(CREATE)
            yield Postgres(pool)


# SQLite


class Sqlite:
    """The same over one connection, in one thread."""

    def __init__(self, connection, thread):
        self.connection, self.thread = connection, thread
        self.commits = 0

    def _write(self, keys):
        with self.connection:
            self.connection.executemany(
                "INSERT INTO row_of_text VALUES (?, ?)", [(key, BODY) for key in keys]
            )
        self.commits += 1

    async def one(self, key):
        await self.many([key])

    async def many(self, keys) -> None:
        await asyncio.get_running_loop().run_in_executor(self.thread, self._write, keys)

    def batcher(self):
        return Batcher(self.many)

    async def transactions(self):
        return self.commits

    async def clear(self):
        await asyncio.get_running_loop().run_in_executor(
            self.thread, self.connection.executescript, "DELETE FROM row_of_text"
        )


@contextlib.asynccontextmanager
async def on_sqlite():
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, ThreadPoolExecutor(1) as thread:
        path = str(Path(folder) / "gain.db")
        connection = sqlite3.connect(path, check_same_thread=False)
        connection.executescript(f"PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; {CREATE};")
        yield Sqlite(connection, thread)
        connection.close()


# Measuring


async def _callers(call, callers, seconds):
    """Let so many callers insert one row after the other; return what each call took."""
    took, keys = [], iter(range(1, 1 << 60))
    end = time.perf_counter() + seconds

    async def caller():
        while (began := time.perf_counter()) < end:
            await call(next(keys))
            took.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*[caller() for _ in range(callers)])
    return took, len(took), time.perf_counter() - began


async def one_each(database, callers, seconds):
    return await _callers(database.one, callers, seconds)


async def by_hand(database, callers, seconds):
    took, chunk, done = [], min(callers, 100), 0
    start = time.perf_counter()
    while (began := time.perf_counter()) < start + seconds:
        await database.many(list(range(done + 1, done + chunk + 1)))
        took.append(time.perf_counter() - began)
        done += chunk
    return took, done, time.perf_counter() - start


async def through_batcher(database, callers, seconds):
    async with database.batcher() as batcher:
        return await _callers(batcher.submit, callers, seconds)


WAYS = {"one statement each": one_each, "microbatch": through_batcher, "batched by hand": by_hand}


async def cell(database, way, callers, seconds):
    await database.clear()
    gc.collect()
    before, cpu = await database.transactions(), time.process_time()
    took, rows, lasted = await WAYS[way](database, callers, seconds)
    cpu = time.process_time() - cpu
    commits = await database.transactions() - before
    milliseconds = sorted(t * 1e3 for t in took)
    return {
        "rows_per_s": rows / lasted,
        "p50_ms": statistics.median(milliseconds),
        "p99_ms": milliseconds[min(len(milliseconds) - 1, int(len(milliseconds) * 0.99))],
        "commits_per_1000_rows": commits / rows * 1000,
        "cpu_us_per_row": cpu / rows * 1e6,
    }


async def compare(open_database, numbers, seconds, rounds):
    """Return {way: {callers: spreads of a cell's figures}}."""
    results = {way: {} for way in WAYS}
    async with open_database() as database:
        for n in numbers:
            found = {way: [] for way in WAYS}
            for way in runner.turns(WAYS, rounds):
                found[way].append(await cell(database, way, n, seconds))
            for way, cells in found.items():
                results[way][n] = runner.spreads({key: [c[key] for c in cells] for key in cells[0]})
    return results


def show(page, found, numbers):
    """Say one table: for each database the rows a second, the 50th and 99th percentile, the commits."""
    page.table(
        [
            "callers",
            "",
            *[f"{name}: rows/s (quartiles); p50, p99 ms; commits per 1,000 rows" for name in found],
        ],
        [
            (n, way, *[_cell(results[way][n]) for results in found.values()])
            for n in numbers
            for way in WAYS
        ],
    )


def _cell(figures):
    median = {key: spread["median"] for key, spread in figures.items()}
    return (
        f"{output.shown(figures['rows_per_s'], 0)}; {median['p50_ms']:.2f}, {median['p99_ms']:.2f}; "
        f"{median['commits_per_1000_rows']:.0f}"
    )


DATABASES = {"PostgreSQL": on_postgres, "SQLite": on_sqlite}
OPTIONS = {"databases": {"nargs": "+", "choices": [*DATABASES], "default": [*DATABASES]}}


def run(chosen, page):
    numbers = [1, 10] if chosen.tiny else [1, 100, 1000]
    seconds = 0.1 if chosen.tiny else 1.5
    rounds = chosen.rounds or (1 if chosen.tiny else 3)
    found = {}
    for name in chosen.databases:
        if name == "PostgreSQL" and postgres_programs() is None:
            print("PostgreSQL's programs are not installed: left out")
            continue
        found[name] = asyncio.run(compare(DATABASES[name], numbers, seconds, rounds))
        page.save({"numbers": numbers, "databases": found})
    show(page, found, numbers)
    return {"numbers": numbers, "databases": found}
