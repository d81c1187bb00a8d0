"""``backup``: a consistent copy while everything runs."""

from __future__ import annotations

import errno
import sqlite3
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


def test_what_another_file_has_left_is_no_part_of_a_copy(path: Path, microbatch: Any) -> None:
    """SQLite takes a log that lies there for the copy's own, and writes it in."""
    fill(path, [1])
    target = path.with_name("copy.db")
    for suffix in ("-wal", "-journal"):
        rest = target.with_name(target.name + suffix)
        rest.touch()
        refused = microbatch("backup", path, target)
        assert (refused.code, target.exists()) == (2, False)
        assert f"copy.db{suffix} is there" in refused.err
        rest.unlink()
    refused = microbatch("backup", path, path.with_name("shop.db-wal"))
    assert (refused.code, "belongs to the queue's file" in refused.err) == (2, True)


def test_a_file_system_without_links_gets_a_copy_too(
    path: Path, microbatch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stick's; and what has the name by then keeps it."""
    fill(path, [1])
    target = path.with_name("copy.db")

    def refuse(*_: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    def be_late(_: Any, there: Path) -> None:
        there.write_text("his")
        refuse()

    monkeypatch.setattr("microbatch.cli._backup.os.link", refuse)
    assert microbatch("backup", path, target).code == 0
    assert microbatch("queues", target, "--json").object["ready"] == 1
    target.unlink()
    monkeypatch.setattr("microbatch.cli._backup.os.link", be_late)
    taken = microbatch("backup", path, target)
    assert (taken.code, "File exists" in taken.err, target.read_text()) == (2, True, "his")
    assert beside(path) == {"shop.db", "copy.db"}


def test_a_full_disk_is_the_copys(
    path: Path, microbatch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the copy: nothing is wrong with the file."""
    fill(path, [bytes(1000)] * 100)
    connect = sqlite3.connect

    def small(name: str, **more: Any) -> Any:
        opened = connect(name, **more)
        if name.endswith(".part?mode=rw"):
            opened.execute("PRAGMA max_page_count = 5")
        return opened

    monkeypatch.setattr("microbatch.durable._file.looking.sqlite3.connect", small)
    done = microbatch("backup", path, path.with_name("copy.db"))
    assert (done.code, done.out) == (2, "")
    assert done.err.endswith("copy.db cannot be written: No space left on device\n")
    assert beside(path) == {"shop.db"}
