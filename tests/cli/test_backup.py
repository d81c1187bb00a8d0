"""``backup``: a consistent copy while everything runs."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, Any

import anyio
from cli_support import beside, fill

from microbatch.durable import DurableBatcher, DurableQueue

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


async def test_a_backup_is_taken_beside_a_worker_and_works(
    path: Path, microbatch: Any, anyio_backend: Any
) -> None:
    """With what stands in the log alone; somebody goes on with it as with the file."""
    target = path.with_name("copy.db")
    async with DurableQueue(path, item_type=int, telemetry=False) as queue:
        await queue.enqueue_many(range(5000))
        done = microbatch("backup", path, target, "--json")
        await queue.enqueue(1)
    assert (done.code, done.object["bytes"]) == (0, target.stat().st_size)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert beside(path) == {"shop.db", "copy.db"}
    assert microbatch("queues", target, "--json").object["ready"] == 5000
    seen: list[int] = []
    all_seen = anyio.Event()

    async def remember(items: list[int]) -> None:
        seen.extend(items)
        if len(seen) >= 5000:
            all_seen.set()

    async with DurableBatcher(target, remember, item_type=int, max_batch_size=1000):
        await all_seen.wait()
    assert sorted(seen) == list(range(5000))


def test_nothing_is_overwritten(path: Path, microbatch: Any) -> None:
    """Yesterday's backup may be the one that is needed."""
    fill(path, [1])
    for target in (path, path.parent):
        shown = microbatch("backup", path, target)
        assert (shown.code, shown.out) == (2, "")
    elsewhere = microbatch("backup", path, path.parent / "nowhere" / "x.db")
    assert (elsewhere.code, "cannot be written" in elsewhere.err) == (2, True)


def test_half_a_backup_is_removed(
    path: Path, microbatch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C comes through between two pieces."""
    fill(path, [bytes(1000)] * 5000)
    calls: list[tuple[int, int]] = []

    def interrupt(left: int, pages: int) -> None:
        calls.append((left, pages))
        if len(calls) == 2:
            raise KeyboardInterrupt

    from microbatch.cli import _live

    monkeypatch.setattr(_live.ProgressBar, "show", lambda *_, **more: interrupt(1, more["total"]))
    assert microbatch("backup", path, path.with_name("copy.db")).code == 130
    assert len(calls) == 2
    assert beside(path) == {"shop.db"}
