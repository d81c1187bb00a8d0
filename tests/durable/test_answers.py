"""Answers to requests in a queue's file: who may run what came with a key, and what the others get."""

from __future__ import annotations

import os
import signal
import sqlite3
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from durable_support import Process, execute, rows, until

from microbatch.durable import DurableBatcher, DurableQueue, QueueUnavailable
from microbatch.durable._life.answer_seat import AnswerSeat
from microbatch.durable.answers import QueueAnswers

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio

SAME = b"content"
OTHER = b"other content"
DAY = 86_400.0


def queue(path: Path, **settings: Any) -> DurableQueue[int, Any]:
    return DurableQueue(path, item_type=int, poll_interval=0.02, **settings)


async def begun(answers: QueueAnswers, key: str, fingerprint: bytes = SAME) -> int:
    """Take a key that is free."""
    standing = await answers.begin(key, fingerprint)
    assert standing is not None
    assert standing.token is not None
    return standing.token


async def look(answers: QueueAnswers, key: str, fingerprint: bytes = SAME) -> Any:
    standing = await answers.begin(key, fingerprint)
    assert standing is not None
    assert standing.token is None
    return standing.same, standing.answer


async def test_a_key_is_taken_until_its_answer_is_there_for_good(path):
    """Whoever comes again gets what the first one got, and is told if he brings something else."""
    async with queue(path) as one:
        answers = QueueAnswers(one, 10)
        token = await begun(answers, "k")
        assert await look(answers, "k") == (True, None)
        assert await look(answers, "k", OTHER) == (False, None)
        await answers.finish("k", SAME, token, b"answer", DAY)
        assert await look(answers, "k") == (True, b"answer")
        assert await look(answers, "k", OTHER) == (False, b"answer")
    async with queue(path) as again, queue(path, queue="another") as another:
        assert await look(QueueAnswers(again, 10), "k") == (True, b"answer")
        await begun(QueueAnswers(another, 10), "k")  # each queue has its own


async def test_a_key_that_is_given_back_is_free(path):
    """What was refused before a handler saw it may come again."""
    async with queue(path) as one:
        answers = QueueAnswers(one, 10)
        await answers.finish("k", SAME, await begun(answers, "k"), None, DAY)
        await begun(answers, "k", OTHER)


async def test_an_answer_is_kept_for_its_time(path):
    """Then the key means something new, and the file lets go of what is over."""
    async with queue(path) as one:
        answers = QueueAnswers(one, 10)
        await answers.finish("old", SAME, await begun(answers, "old"), b"1", -1.0)
        await answers.finish("new", SAME, await begun(answers, "new"), b"2", DAY)
        assert rows(path, "SELECT key FROM microbatch_answers") == [("new",)]
        await answers.finish("new", SAME, 0, b"a stranger's", DAY)
        assert await look(answers, "new") == (True, b"2")
        execute(path, "UPDATE microbatch_answers SET expires = 0")
        await begun(answers, "new", OTHER)


async def test_the_oldest_answers_go_first_and_running_ones_never(path):
    """There is a bound, and it costs nobody what is under way."""
    async with queue(path) as one:
        answers = QueueAnswers(one, 3)
        running = await begun(answers, "running")
        for number in range(6):
            token = await begun(answers, str(number))
            await answers.finish(str(number), SAME, token, b"", DAY)
        tokens = {key: await begun(answers, key) for key in "xy"}
        kept = rows(path, "SELECT key FROM microbatch_answers WHERE number IS NOT NULL")
        assert [key for (key,) in kept] == ["3", "4", "5"]
        assert await answers.begin("z", SAME) is None  # three are held: there is no room for more
        await answers.finish("running", SAME, running, b"at last", DAY)
        assert await look(answers, "running") == (True, b"at last")
        for key, token in tokens.items():
            await answers.finish(key, SAME, token, None, DAY)


async def test_keys_that_nobody_holds_any_more_are_free(path):
    """A queue that closes while something runs leaves nothing taken."""
    async with queue(path) as one:
        token = await begun(left := QueueAnswers(one, 10), "k")
        assert rows(path, "SELECT count(*) FROM microbatch_consumers") == [(1,)]
    await left.finish("k", SAME, token, b"too late", DAY)
    assert rows(path, "SELECT * FROM microbatch_answers") == []
    async with queue(path) as one:
        await begun(QueueAnswers(one, 10), "k")


async def test_a_holder_that_is_nowhere_counts_as_gone(path):
    """As in a backup that was made while something ran."""
    async with queue(path) as one, queue(path) as other:
        mine, others = QueueAnswers(one, 10), QueueAnswers(other, 10)
        token = await begun(mine, "k")
        assert await look(others, "k") == (True, None)
        execute(path, "UPDATE microbatch_answers SET consumer = 999")
        later = await begun(others, "k")
        await mine.finish("k", SAME, token, b"the first one's", DAY)
        assert await look(mine, "k") == (True, None)  # it is not his any more
        await others.finish("k", SAME, later, b"the second one's", DAY)
        assert await look(mine, "k") == (True, b"the second one's")


async def test_an_answer_that_comes_after_its_key_was_freed_is_kept_all_the_same(path):
    """Its process was taken for dead, and nobody has come meanwhile: it did run."""
    async with queue(path) as one:
        answers = QueueAnswers(one, 10)
        token = await begun(answers, "k")
        execute(path, "DELETE FROM microbatch_answers")
        await answers.finish("k", SAME, token, b"answer", DAY)
        assert await look(answers, "k") == (True, b"answer")


async def test_what_cannot_be_written_is_written_when_the_key_comes_again(path, monkeypatch):
    """A disk that was full for a moment must not run anything twice."""
    trouble = QueueUnavailable(str(path), "disk full")

    async def failing(*_: object) -> None:
        raise trouble

    async with queue(path) as one:
        answers = QueueAnswers(one, 1)
        token = await begun(answers, "k")
        with monkeypatch.context() as patch:
            patch.setattr(AnswerSeat, "finish", failing)
            await answers.finish("k", SAME, token, b"answer", DAY)
            with pytest.raises(QueueUnavailable, match="disk full"):
                await answers.begin("k", SAME)
        assert await look(answers, "k") == (True, b"answer")
        token = await begun(answers, "other")
        with monkeypatch.context() as patch:
            patch.setattr(AnswerSeat, "release", failing)
            await answers.finish("other", SAME, token, None, DAY)
            token = await begun(answers, "third")
            await answers.finish("third", SAME, token, None, DAY)
        assert await look(answers, "other") == (True, None)  # the bound holds for these too
        await begun(answers, "third")


async def test_a_worker_removes_what_is_past_its_time(path):
    """Also where no request comes any more."""

    async def handler(items: list[int]) -> None:
        pass

    async with DurableBatcher(path, handler, item_type=int, result_ttl=0.1) as one:
        answers = QueueAnswers(one, 1_000)
        for number in range(120):
            await answers.finish(str(number), SAME, await begun(answers, str(number)), b"", DAY)
        execute(path, "UPDATE microbatch_answers SET expires = 0 WHERE key < '5'")
        await one.submit(1)
        await until(lambda: len(rows(path, "SELECT 1 FROM microbatch_answers")) < 120)


@pytest.mark.skipif(os.name != "posix", reason="kills processes")
async def test_a_key_whose_process_was_killed_is_free_at_once(path):
    """The lock is gone with the process, and nothing has to expire."""
    async with Process(path, "take_key") as other:
        assert await other.hear() == ["taken"]
        async with queue(path) as one:
            answers = QueueAnswers(one, 10)
            assert await look(answers, "k") == (True, None)
            other.signal(signal.SIGKILL)
            await other.end()
            token = await begun(answers, "k")  # the very next one gets it
            await answers.finish("k", SAME, token, b"answer", DAY)
            assert await look(answers, "k") == (True, b"answer")


async def test_who_comes_at_once_gets_one_key_between_them(path):
    """A storm of retries finds one to run."""
    async with queue(path) as one, queue(path) as other:
        both = [QueueAnswers(one, 100), QueueAnswers(other, 100)]
        got: list[Any] = []

        async def come(answers: QueueAnswers) -> None:
            got.append(await answers.begin("k", SAME))

        async with anyio.create_task_group() as tasks:
            for number in range(40):
                tasks.start_soon(come, both[number % 2])
        assert [standing.token is not None for standing in got].count(True) == 1


def test_answers_have_their_own_place_in_the_file(path):
    """Nobody else's table is touched by them."""
    anyio.run(_keep_one, path)
    with sqlite3.connect(path) as raw:
        (row,) = raw.execute("SELECT queue, key, consumer, number, answer FROM microbatch_answers")
    raw.close()
    assert row == (1, "k", None, 1, b"answer")


async def _keep_one(path: Path) -> None:
    async with queue(path) as one:
        answers = QueueAnswers(one, 10)
        await answers.finish("k", SAME, await begun(answers, "k"), b"answer", DAY)
