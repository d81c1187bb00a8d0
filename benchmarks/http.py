"""What HTTP costs beside what one writes by hand: shared inserts, a batch, an import.

`by_itself` is a Starlette endpoint that inserts one row for each request; both servers have ten connections to
a PostgreSQL of this run, and the load comes from this process. `by hand` decodes the list, calls the handler
once and encodes the same records; both are called without a server, and their CPU is compared. The import goes
through a server, into a queue without a worker; the memory is that process's own.

--only takes some of the parts.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from time import perf_counter

import anyio
import httpx

from benchmarks import http_apps, runner
from benchmarks.durable import Run, show
from benchmarks.gain import postgres, postgres_programs
from benchmarks.output import ROOT

CLIENTS = 64
PARTS = ("inserts", "batch", "imports")
OPTIONS = {"only": {"nargs": "+", "choices": PARTS, "default": PARTS, "help": "parts"}}
BODY = b'{"name": "Ann Example", "age": 30}'
REQUEST = (
    b"POST /users HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
)


@contextlib.contextmanager
def served(kind, folder, user):
    """Serve an app of `http_apps` in a process of its own; gives the process and its port."""
    command = [sys.executable, "-m", "benchmarks.http_apps", kind, str(folder), user]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server {kind} did not start")
        yield process, int(line)
    finally:
        process.terminate()
        process.wait(60)
        process.stdout.close()


async def load(port, clients, seconds):
    """Send requests over so many connections; return how long each took, shortest first."""
    took = []
    end = perf_counter() + seconds

    async def client():
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            start = perf_counter()
            while start < end or not took:
                await stream.send(REQUEST)
                answer = b""
                while not answer.endswith(b"}"):  # a small one comes in one piece or two
                    answer += await stream.receive()
                if not answer.startswith(b"HTTP/1.1 201"):
                    raise RuntimeError(answer.decode())
                took.append(perf_counter() - start)
                start = perf_counter()

    async with anyio.create_task_group() as tasks:
        for _ in range(clients):
            tasks.start_soon(client)
    return sorted(took)


def measured(port, clients, seconds):
    """Return requests a second, and p50 and p99 in ms."""
    took = asyncio.run(load(port, clients, seconds))
    at = [took[len(took) * part // 100] * 1e3 for part in (50, 99)]
    return len(took) / seconds, *at


def memory(pid, name):
    """Return what the kernel says of a process's memory, in MB."""
    with Path(f"/proc/{pid}/status").open(encoding="ascii") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


class Http(Run):
    """One run: its size, its lines."""

    def __init__(self, chosen, page):
        chosen.source = [None]
        super().__init__(chosen, page)
        self.rounds = chosen.rounds or (1 if chosen.tiny else 5)

    def inserts(self):
        if postgres_programs() is None:
            self.page.say("There is no PostgreSQL on this machine: no inserts.")
            return
        seconds = 0.3 if self.tiny else 5
        with postgres() as (folder, user):
            asyncio.run(prepared(folder, user))
            with contextlib.ExitStack() as stack:
                ports = {
                    kind: stack.enter_context(served(kind, folder, user))[1]
                    for kind in ("by_itself", "shared")
                }
                for port in ports.values():
                    measured(port, CLIENTS, seconds / 3)  # warms up
                many, one = (
                    runner.in_turns(
                        {kind: partial(measured, port, n, seconds) for kind, port in ports.items()},
                        self.rounds,
                    )
                    for n in (CLIENTS, 1)
                )
        group = f"POST /users by {CLIENTS} connections, of by_itself: requests/s / p99"
        for which, goal, least in ((0, 1.5, True), (2, 1.0, False)):
            mine, its = ([row[which] for row in many[kind]] for kind in ("shared", "by_itself"))
            word, unit = ("requests/s", "") if which == 0 else ("p99", " ms")
            middles = [runner.spread(figures)["median"] for figures in (mine, its)]
            note = f"{word} {middles[0]:,.0f}{unit} and {middles[1]:,.0f}{unit}"
            share = runner.share(mine, its)
            self.add(f"{group}: {word}", share, goal, least=least, group=group, note=note)
        mine, its = ([row[1] for row in one[kind]] for kind in ("shared", "by_itself"))
        middles = [runner.spread(figures)["median"] for figures in (mine, its)]
        note = f"{middles[0]:.2f} ms and {middles[1]:.2f} ms"
        self.add("p50 by one connection, of by_itself", runner.share(mine, its), 1.3, note=note)

    def batch(self):
        items, count = (100, 5) if self.tiny else (1_000, 200)
        ways = {
            kind: partial(runner.run_on, "asyncio", http_apps.batches, kind, items, count)
            for kind in ("by hand", "api")
        }
        costs = runner.in_turns(ways, self.rounds)
        each = [runner.spread(costs[kind])["median"] / count * 1e3 for kind in ("api", "by hand")]
        note = f"{each[0]:.2f} ms and {each[1]:.2f} ms a batch"
        share = runner.share(costs["api"], costs["by hand"])
        self.add("a batch of 1,000 items, CPU, of by hand", share, 1.25, note=note)

    def imports(self):
        rows = 2_000 if self.tiny else 1_000_000
        shares, grown, rates = [], [], []
        for _ in range(1 if self.tiny else min(self.rounds, 3)):
            with tempfile.TemporaryDirectory() as folder:
                alone = asyncio.run(http_apps.enqueue(folder, rows))
                with served("importing", folder, "") as (process, port):
                    start = memory(process.pid, "VmRSS:") if sys.platform == "linux" else 0.0
                    took = asyncio.run(imported(port, rows))
                    if sys.platform == "linux":
                        grown.append(memory(process.pid, "VmHWM:") - start)
            shares.append(alone / took)
            rates.append(rows / took)
        note = f"{runner.spread(rates)['median']:,.0f} rows/s"
        group = "import of NDJSON rows, of enqueue_job in process"
        self.add(group, runner.spread(shares), 0.5, least=True, note=note)
        if grown:
            self.add("memory above its start", runner.spread(grown), 80, unit=" MB", digits=0)


async def prepared(folder, user):
    import asyncpg

    for _ in range(300):
        try:
            database = await asyncpg.connect(host=folder, user=user, database="postgres")
            break
        except (OSError, asyncpg.CannotConnectNowError):
            await asyncio.sleep(0.1)
    await database.execute(http_apps.CREATE)
    await database.close()


async def imported(port, rows):
    """Return the seconds that an import of so many rows takes."""

    async def lines():
        for start in range(0, rows, 1_000):
            some = range(start, min(start + 1_000, rows))
            yield b"".join(b'{"name": "user %d", "age": 1}\n' % number for number in some)

    headers = {"content-type": "application/x-ndjson"}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=600) as client:
        began = perf_counter()
        answer = await client.post("/users/import", content=lines(), headers=headers)
        took = perf_counter() - began
    if answer.status_code != 202 or answer.json()["total"] != rows:
        raise RuntimeError(answer.text)
    return took


def run(chosen, page):
    one = Http(chosen, page)
    for part in chosen.only:
        getattr(one, part)()
    page.say(f"{one.rounds} rounds; the second figure beside a ratio is the hand-written one's.")
    page.say()
    show(page, one.rows)
    return one.data
