"""Several processes on one file: who has what, and what happens when one of them dies, stops or forks."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections import Counter

import anyio
import pytest
from durable_support import (
    Handler,
    Process,
    batcher,
    check_counts,
    execute,
    looked,
    rows,
    until,
    writer_of,
)

from microbatch.durable import DurableQueue, ItemFailed
from microbatch.durable._life import neighbours
from microbatch.durable._life.polling import Polling

#: As in use: in the tests workers look about more often (`conftest.quick_pace`).
ALIVE_INTERVAL = neighbours.ALIVE_INTERVAL

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(os.name != "posix", reason="kills processes")]


async def test_the_first_look_after_a_process_was_killed_takes_its_item_back(path, monkeypatch):
    """The lock is gone with the process: nobody waits for a lease. Looks are a quarter of a second apart."""
    seen = []
    sees = neighbours.Presence.sees

    def seeing(presence, consumer):
        seen.append((ended, sees(presence, consumer)))
        return seen[-1][1]

    monkeypatch.setattr(neighbours.Presence, "sees", seeing)
    ended = False
    async with Process(path, "hold") as other:
        assert await other.hear() == ["ready"]
        handler = Handler()
        async with DurableQueue(path, item_type=int, result_type=int) as queue:
            ticket = await queue.enqueue(1)
            assert await other.hear() == ["handling", "1"]
            async with batcher(path, handler) as durable:
                await looked(durable)
                assert handler.batches == []  # it lives
                assert (False, True) in seen
                other.signal(signal.SIGKILL)
                await other.end()
                ended = True
                assert await durable.result(ticket, 20) == 2
                assert (True, True) not in seen
                assert 2 * ALIVE_INTERVAL < 1  # "within a second", as the pages say
                assert await queue.result(ticket, 20) == 2
    check_counts(path)


async def test_and_so_it_is_at_a_restart(path, monkeypatch):
    """The first look does not wait for anything."""
    async with Process(path, "hold") as other:
        await other.hear()
        async with DurableQueue(path, item_type=int) as queue:
            ticket = await queue.enqueue(1)
        await other.hear()
        other.signal(signal.SIGKILL)
        await other.end()
    monkeypatch.setattr(neighbours, "ALIVE_INTERVAL", 60)
    async with batcher(path, Handler()) as durable:
        assert await durable.result(ticket, 20) == 2


async def test_a_forked_child_does_not_keep_its_dead_parents_items(path):
    """It inherited the descriptor of the lock file, but record locks are not inherited."""
    async with Process(path, "hold_and_fork") as other:
        await other.hear()
        async with batcher(path, Handler(), queue="other"):
            pass
        async with DurableQueue(path, item_type=int) as queue:
            ticket = await queue.enqueue(1)
        child = int((await other.hear())[1])
        await other.hear()
        try:
            other.signal(signal.SIGKILL)
            await other.end()
            os.kill(child, 0)
            async with batcher(path, Handler()) as durable:
                assert await durable.result(ticket, 20) == 2
        finally:
            os.kill(child, signal.SIGKILL)


async def test_a_living_process_keeps_its_items_though_its_lock_file_was_deleted(path):
    """Somebody tidies up, and must not make two processes handle one item."""
    async with Process(path, "hold") as other:
        await other.hear()
        async with DurableQueue(path, item_type=int) as queue:
            ticket = await queue.enqueue(1)
        await other.hear()
        alive = path.with_name("queue.db-alive")
        before = _identity(alive)
        alive.unlink()
        handler = Handler()
        async with batcher(path, handler) as durable:
            await looked(durable)
            assert handler.batches == []
            await until(  # the other one has moved too
                lambda: alive.exists() and _locks(path) == {_identity(alive)}, 20
            )
            assert _identity(alive) != before
            await looked(durable)
            assert handler.batches == []
            other.signal(signal.SIGKILL)
            assert await durable.result(ticket, 20) == 2


def _identity(file):
    found = file.stat()
    return f"{found.st_dev}:{found.st_ino}"


def _locks(path):
    return {lock for (lock,) in rows(path, "SELECT lock_file FROM microbatch_consumers")}


async def test_two_consumers_in_one_process_are_told_apart(path):
    """A record lock does not conflict with the same process's."""
    slow, quick = Handler(), Handler()
    slow.hold()
    first = batcher(path, slow, max_batch_size=1)
    second = batcher(path, quick, max_batch_size=1)
    async with second:
        async with first:
            await second.pause()
            tickets = await second.enqueue_many([1, 2])
            await second.resume()
            await until(lambda: slow.batches or len(quick.items) == 2)
            await looked(second)
            if slow.batches:
                assert len(quick.items) == 1
                slow.free.set()
        for number, ticket in enumerate(tickets, 1):
            assert await second.result(ticket, 20) == number * 2
    assert sorted(slow.items + quick.items) == [1, 2]
    check_counts(path)


async def test_closing_one_of_two_consumers_leaves_the_others_lock(path):
    """Any close of the lock file would drop all locks of the process."""
    async with Process(path, "hold") as other:
        await other.hear()
        handler = Handler()
        handler.hold()
        async with batcher(path, handler, queue="own") as durable:
            await durable.enqueue(1)
            await until(lambda: handler.batches)
            async with batcher(path, Handler(), queue="own"):
                pass
            async with Process(path, "look_about", "own") as rival:
                assert await rival.hear() == ["handled"]
            assert rows(
                path, "SELECT count(*) FROM microbatch_consumers WHERE pid = ?", os.getpid()
            ) == [(1,)]
            locked = await _is_locked(
                path,
                rows(path, "SELECT id FROM microbatch_consumers WHERE pid = ?", os.getpid())[0][0],
            )
            assert locked
            handler.free.set()
    assert handler.batches == [[1]]


@pytest.mark.parametrize("how", ["closed", "copied", "deleted"])
async def test_whatever_this_process_does_to_its_lock_file_its_items_stay_here(path, tmp_path, how):
    """A backup program that reads it drops all locks of its process: nobody may take that for a death."""
    handler = Handler()
    handler.hold()
    lock_file = path.with_name("queue.db-alive")
    async with batcher(path, handler) as durable:
        await durable.enqueue(1)
        await until(lambda: handler.batches)
        for _ in range(3):
            async with Process(path, "look_about", "default") as rival:
                if how == "closed":
                    lock_file.open("rb").close()
                elif how == "copied":
                    shutil.copy(lock_file, tmp_path / "copy")
                else:
                    lock_file.unlink()
                assert await rival.hear() == ["handled"]
        handler.free.set()
        assert await durable.result(1, 20) == 2
    assert handler.batches == [[1]]
    check_counts(path)


async def _is_locked(path, byte: int) -> bool:
    program = (
        "import fcntl, sys\n"
        "try: fcntl.lockf(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, int(sys.argv[2]))\n"
        "except OSError: sys.exit(3)\n"
    )
    import sys

    result = await anyio.run_process(
        [sys.executable, "-c", program, f"{path}-alive", str(byte)], check=False
    )
    assert result.returncode in (0, 3)
    return result.returncode == 3


async def test_a_stopped_process_keeps_its_items_and_goes_on(path):
    """It is not dead; stats shows how old they get."""
    async with Process(path, "hold") as other:
        await other.hear()
        async with DurableQueue(path, item_type=int, result_type=int) as queue:
            ticket = await queue.enqueue(1)
            await other.hear()
            other.signal(signal.SIGSTOP)
            handler = Handler()
            async with batcher(path, handler) as durable:
                await looked(durable)
                stats = await durable.stats()
                assert (stats.claimed, handler.batches) == (1, [])
                assert stats.oldest_age >= 2 * neighbours.ALIVE_INTERVAL
                other.signal(signal.SIGCONT)
                other.tell()
                assert await durable.result(ticket, 20) == 2
            assert handler.batches == []


@pytest.mark.slow
async def test_an_item_that_kills_every_process_ends_as_a_dead_letter(path):
    """After three of them: in company once, alone twice. Its neighbours are handled."""
    async with DurableQueue(path, item_type=int) as queue:
        tickets = await queue.enqueue_many([11, 12, 13, 14, 15])
    handled: Counter[str] = Counter()
    for _ in range(4):
        async with Process(path, "suicide") as other:
            while words := await other.hear():
                if words[0] == "handling":
                    handled.update(words[1:])
    async with DurableQueue(path, item_type=int) as queue:
        assert [await queue.result(ticket, 20) for ticket in tickets if ticket.id != 3] == [
            11,
            12,
            14,
            15,
        ]
        with pytest.raises(ItemFailed, match="ProcessDied"):
            await queue.result(tickets[2], 20)
    assert handled == {"11": 2, "12": 2, "13": 3, "14": 2, "15": 2}
    check_counts(path)


async def test_the_next_look_finds_an_item_that_another_process_has_enqueued(path, monkeypatch):
    """So it starts within 100 ms at the default poll_interval."""
    looks, started = [], []

    async def handler(items):
        started.append(time.time())
        return items

    async with (
        batcher(path, handler, poll_interval=0.05),
        Process(path, "enqueue_late", 5) as other,
    ):
        do = Polling.do

        def looking(polling, now):
            begun = time.time()
            do(polling, now)
            looks.append((begun, bool(polling.writer.stirred)))

        monkeypatch.setattr(Polling, "do", looking)
        await other.hear()
        for number in range(1, 6):
            other.tell()
            before, after = map(float, await other.hear())
            await until(lambda number=number: len(started) == number)
            # It was committed between the two: the look under way at the first may have seen it, and the first one
            # that began after the second must have, if none between them did.
            early = [found for begun, found in looks if begun < before][-1:]
            between = [found for begun, found in looks if before <= begun < after]
            late = [found for begun, found in looks if begun >= after][:1]
            assert any(early + between + late)


async def test_a_process_without_a_handler_gets_results_from_one_that_has(path):
    """A web process submits, a worker process handles."""
    async with batcher(path, Handler()), Process(path, "submit", 21) as other:
        assert await other.hear() == ["42"]


async def test_a_program_that_forgets_to_close_still_exits(path):
    """aiosqlite's thread alone would keep it for ever."""
    async with Process(path, "forget_to_close") as other:
        assert await other.hear() == ["ready"]
        with anyio.fail_after(20):
            assert await other.end() == 0


async def share(path, processes: int, each: int) -> None:
    async with DurableQueue(path, item_type=int) as queue:
        await queue.enqueue_many(range(each * processes))
    handled: Counter[str] = Counter()
    async with anyio.create_task_group() as tasks:

        async def one() -> None:
            async with Process(path, "drain", each) as other:
                await other.hear()
                other.tell()
                words = await other.hear()
                assert int(words[1]) < 500, "starved"
                handled.update(words[2:])

        for _ in range(processes):
            tasks.start_soon(one)
    assert len(handled) == 2 * each * processes
    assert set(handled.values()) == {1}
    check_counts(path)


@pytest.mark.slow
async def test_two_processes_share_a_queue_and_handle_nothing_twice(path):
    """Both produce and both handle; while they live, no item has two handlers, and none starves for 5 s."""
    await share(path, 2, 500)


@pytest.mark.soak
async def test_four_processes_share_20_000_items(path):
    """The same at length."""
    await share(path, 4, 2_500)


@pytest.mark.parametrize(("version", "warnings"), [((3, 51, 2), 1), ((3, 51, 3), 0)])
async def test_an_sqlite_with_the_wal_bug_is_warned_of_once(
    path, monkeypatch, caplog, version, warnings
):
    """Where several processes share a file; one alone cannot meet it."""
    monkeypatch.setattr("microbatch.durable._file.schema._warned_of_wal_bug", False)
    monkeypatch.setattr("sqlite3.sqlite_version_info", version)
    async with batcher(path, Handler()) as durable:
        await durable.submit(1)
        await looked(durable, 1)
        assert caplog.messages == []
        for number in (101, 102):  # consumers of a process that lives, and that this one cannot ask
            execute(
                path,
                "INSERT INTO microbatch_consumers (id, queue, lock_file, pid)"
                f" SELECT {number}, id, 0, 1 FROM microbatch_queues",
            )
            await until(lambda number=number: number in _known(durable))
    assert sum("rare bug" in message for message in caplog.messages) == warnings


def _known(durable):
    return {consumer.id for consumer in writer_of(durable).neighbours._known}


async def test_queues_in_one_file_are_apart(path):
    """Security contexts may share a file by name."""
    first, second = Handler(), Handler()
    async with batcher(path, first, queue="a") as a, batcher(path, second, queue="b") as b:
        await a.pause()
        await a.enqueue(1)
        assert await b.submit(2) == 4
        assert (await a.stats()).ready == 1
        assert (await b.stats()).done == 1
        assert (first.items, second.items) == ([], [2])
    check_counts(path)


async def test_an_application_keeps_its_own_numbers(path):
    """`user_version` and `application_id` belong to it, and its tables are its own."""
    execute(
        path,
        "PRAGMA application_id = 42",
        "PRAGMA user_version = 7",
        "CREATE TABLE orders (number)",
    )
    async with batcher(path, Handler()) as durable:
        await durable.submit(1)
    assert rows(path, "PRAGMA application_id") == [(42,)]
    assert rows(path, "PRAGMA user_version") == [(7,)]
    names = {
        name
        for (name,) in rows(path, "SELECT name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'")
    }
    assert {name for name in names if not name.startswith("microbatch_")} == {"orders"}
