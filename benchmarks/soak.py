"""A durable queue under load for an hour, with kills and a long reader: all should stay flat.

Two producers store items of 1,000 bytes at a fixed rate, two workers handle them, and a prober submits one
item after the other to its result. Every so often a worker is killed with SIGKILL and started anew, and a
reader keeps a transaction open for half a minute. Done items are kept for ten seconds.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import output
from benchmarks.options import positive
from microbatch.durable import DurableBatcher, DurableQueue

OPTIONS = {
    "seconds": {"type": positive, "default": 3600, "help": "how long (default: an hour)"},
    "rate": {"type": positive, "default": 200, "help": "items a second and producer"},
}
PAYLOAD = b"x" * 1000
KEPT = {"result_ttl": 10.0, "key_ttl": 10.0}
#: Seconds between two samples, two kills, two long readers, and for each of these.
SAMPLE, KILL, READ, READING = 5.0, 20.0, 120.0, 30.0


async def _work(path):
    async def handler(items):
        await asyncio.sleep(0.002)
        return [len(item) for item in items]

    async with DurableBatcher(path, handler, item_type=bytes, max_concurrency=2, **KEPT):
        await asyncio.sleep(10**9)


async def _produce(path, rate):
    async with DurableQueue(path, item_type=bytes, **KEPT) as queue:
        due = time.monotonic()
        while True:
            due += 10 / rate
            await asyncio.gather(*(queue.enqueue(PAYLOAD) for _ in range(10)))
            await asyncio.sleep(max(0.0, due - time.monotonic()))


def _start(*arguments):
    command = [sys.executable, "-m", "benchmarks.soak", *map(str, arguments)]
    return subprocess.Popen(command, cwd=output.ROOT)


def _resident(process):
    text = Path(f"/proc/{process.pid}/statm").read_text()
    return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def _probe(queue, waits):
    while True:
        began = time.monotonic()
        await queue.submit(PAYLOAD)
        waits.append(time.monotonic() - began)
        await asyncio.sleep(0.02)


async def _observe(path, seconds, rate):
    """Return a sample every few seconds."""
    producers = [_start("produce", path, rate) for _ in range(2)]
    workers = [_start("work", path) for _ in range(2)]
    samples = []
    waits = []
    kills = 0
    reader = None
    next_kill, next_read, end_read = KILL, READ / 2, 0.0
    try:
        async with DurableQueue(path, item_type=bytes, **KEPT) as queue:
            await queue.submit(PAYLOAD)  # the others have started
            began = time.monotonic()
            probing = asyncio.create_task(_probe(queue, waits))
            while (now := time.monotonic() - began) < seconds:
                await asyncio.sleep(SAMPLE)
                if now > next_kill:
                    next_kill += KILL
                    victim = workers.pop(0)
                    victim.send_signal(signal.SIGKILL)
                    victim.wait()
                    kills += 1
                    workers.append(_start("work", path))
                if reader is not None and now > end_read:
                    reader.close()
                    reader = None
                if now > next_read:
                    next_read, end_read = next_read + READ, now + READING
                    reader = sqlite3.connect(path, isolation_level=None)
                    reader.execute("BEGIN")
                    reader.execute("SELECT count(*) FROM microbatch_ranges").fetchall()
                stats = await queue.stats()
                waits.sort()
                samples.append(
                    {
                        "seconds": round(now + SAMPLE),
                        "file MB": stats.file_bytes / 1e6,
                        "log MB": stats.wal_bytes / 1e6,
                        "depth": stats.depth,
                        "kept": stats.done,
                        "dead": stats.dead,
                        "worker MB": max(map(_resident, workers)) / 1e6,
                        "producer MB": max(map(_resident, producers)) / 1e6,
                        "submits": len(waits),
                        "p50 ms": waits[len(waits) // 2] * 1e3 if waits else None,
                        "p99 ms": waits[int(len(waits) * 0.99)] * 1e3 if waits else None,
                    }
                )
                waits.clear()
            probing.cancel()
    finally:
        for process in (*producers, *workers):
            process.kill()
            process.wait()
    return {"samples": samples, "kills": kills}


def draw(samples, path):
    """Draw what should stay flat, over time."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "microbatch", "svg.fonttype": "none", "font.size": 9})
    import matplotlib.pyplot as plt

    rows = (
        ("file MB", "log MB"),
        ("worker MB", "producer MB"),
        ("p50 ms", "p99 ms"),
        ("depth", "kept"),
    )
    figure, axes = plt.subplots(len(rows), 1, figsize=(8, 7), sharex=True)
    minutes = [sample["seconds"] / 60 for sample in samples]
    for axis, names in zip(axes, rows, strict=True):
        for name in names:
            axis.plot(minutes, [sample[name] for sample in samples], label=name, linewidth=1)
        axis.set_ylim(bottom=0)
        axis.legend(loc="upper left", fontsize=8)
    axes[-1].set_xlabel("minutes")
    figure.tight_layout()
    figure.savefig(path, format="svg", metadata={"Date": None})


def _of(samples, name):
    return sorted(sample[name] for sample in samples if sample[name] is not None)


def run(chosen, page):
    if not chosen.tiny:
        importlib.import_module("matplotlib")  # an hour later it would be too late to miss it
    seconds = 12 if chosen.tiny else chosen.seconds
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(_observe(Path(folder) / "queue.db", seconds, chosen.rate))
    samples = found["samples"]
    quarter = max(1, len(samples) // 4)
    first, last = samples[quarter : 2 * quarter] or samples, samples[-quarter:]
    page.say(
        f"{seconds} s, two producers of {chosen.rate} items/s each, two workers, {found['kills']} kills."
    )
    page.table(
        ["what", "second quarter, median", "last quarter, median", "most"],
        [
            [
                name,
                f"{_of(first, name)[len(_of(first, name)) // 2]:.1f}",
                f"{_of(last, name)[len(_of(last, name)) // 2]:.1f}",
                f"{_of(samples, name)[-1]:.1f}",
            ]
            for name in samples[0]
            if name != "seconds" and _of(first, name) and _of(last, name)
        ],
    )
    if not chosen.tiny:
        draw(samples, page.path("svg"))
    return found


if __name__ == "__main__":
    kind, where, *rest = sys.argv[1:]
    asyncio.run(_work(Path(where)) if kind == "work" else _produce(Path(where), int(rest[0])))
