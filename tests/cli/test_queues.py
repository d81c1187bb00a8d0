"""``queues`` and ``stats``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import anyio
from cli_support import beside, fill, settled, sql, work_off

from microbatch.durable import DurableBatcher, DurableQueue

if TYPE_CHECKING:
    from pathlib import Path


def test_queues_lists_every_queue_with_its_counts(path: Path, microbatch: Any) -> None:
    """The first look at a file that somebody calls stuck."""
    fill(path, [1, 2, 3])
    work_off(path, [4, 13], queue="mail")
    shown = microbatch("queues", path)
    assert shown.code == 0
    assert [line.split()[:7] for line in shown.out.splitlines()] == [
        ["QUEUE", "READY", "SCHEDULED", "CLAIMED", "DONE", "DEAD", "CANCELLED"],
        ["default", "3", "0", "0", "0", "0", "0"],
        ["mail", "0", "0", "0", "1", "1", "0"],
    ]
    default, mail = microbatch("queues", path, "--json").objects
    assert (default["queue"], default["ready"], default["depth"], default["paused"]) == (
        "default", 3, 3, False,
    )  # fmt: skip
    assert default["oldest_age"] > 0
    assert (mail["done"], mail["dead"]) == (1, 1)


def test_stats_tells_the_rate_between_two_looks(path: Path, microbatch: Any) -> None:
    """Nothing ends here meanwhile, and with one look there is nothing to tell."""
    work_off(path, [1, 2])
    assert microbatch("stats", path, "--json", "--interval", "0.01").object["rate"] == 0.0
    assert microbatch("stats", path, "--json", "--interval", "0").object["rate"] is None


async def test_stats_shows_who_works_and_what_they_hold(
    path: Path, microbatch: Any, anyio_backend: Any
) -> None:
    """A worker with items in hand, and since when at most."""
    begun, free = anyio.Event(), anyio.Event()

    async def held(items: list[Any]) -> list[Any]:
        begun.set()
        await free.wait()
        return settled(items)

    async with DurableBatcher(path, held, item_type=Any, telemetry=False) as batcher:
        await batcher.enqueue_many([1, 2, 3])
        await begun.wait()
        shown = microbatch("stats", path, "--interval", "0", "--json").object
        lines = microbatch("stats", path, "--interval", "0").out.splitlines()
        free.set()
    (one,) = shown["consumers"]
    assert (one["pid"], one["alive"], one["stopped"], one["held"]) == (os.getpid(), True, False, 3)
    assert one["held_for"] >= 0
    assert lines[-1].split()[:4] == ["default", str(os.getpid()), "alive", "3"]


def test_a_file_without_queues_is_no_error(path: Path, microbatch: Any) -> None:
    """An empty list is an answer."""

    async def make() -> None:
        async with DurableQueue(path, item_type=int, telemetry=False):
            pass

    anyio.run(make)
    sql(path, "DELETE FROM microbatch_queues")
    for name in ("queues", "stats"):
        assert microbatch(name, path, *(["--interval", "0"] if name == "stats" else [])) == (
            0,
            "no queues\n",
            "",
        )
        assert microbatch(
            name, path, "--json", *(["--interval", "0"] if name == "stats" else [])
        ) == (0, "", "")


def test_looking_leaves_nothing_beside_the_file(path: Path, microbatch: Any) -> None:
    """A look by root must not leave files there that the worker's user cannot open."""
    fill(path, [1])
    before, content, changed = beside(path), path.read_bytes(), path.stat().st_mtime_ns
    assert microbatch("queues", path).code == 0
    assert (beside(path), path.read_bytes(), path.stat().st_mtime_ns) == (before, content, changed)
