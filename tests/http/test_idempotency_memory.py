"""Answers in memory: bounded, and never at the cost of what runs."""

from __future__ import annotations

import anyio
import pytest

from microbatch._pure.standing import Standing
from microbatch.http._remembering import AnswersInMemory

pytestmark = pytest.mark.anyio

SAME = b"content"


async def begun(answers: AnswersInMemory, key: str) -> int:
    standing = await answers.begin(key, SAME)
    assert standing is not None
    assert standing.token is not None
    return standing.token


async def answered(
    answers: AnswersInMemory, key: str, answer: bytes = b"", ttl: float = 60.0
) -> None:
    await answers.finish(key, SAME, await begun(answers, key), answer, ttl)


async def test_a_key_is_taken_until_its_answer_is_there() -> None:
    """And then everybody gets that."""
    answers = AnswersInMemory(10)
    token = await begun(answers, "k")
    assert await answers.begin("k", SAME) == Standing(None)
    assert await answers.begin("k", b"other") == Standing(None, same=False)
    await answers.finish("k", SAME, token, b"answer", 60.0)
    assert await answers.begin("k", SAME) == Standing(None, True, b"answer")
    assert await answers.begin("k", b"other") == Standing(None, False, b"answer")
    await answers.finish("k", SAME, token, b"again", 60.0)  # nobody's any more
    assert await answers.begin("k", SAME) == Standing(None, True, b"answer")


async def test_a_key_that_is_given_back_is_free() -> None:
    """Nothing is kept of it."""
    answers = AnswersInMemory(10)
    await answers.finish("k", SAME, await begun(answers, "k"), None, 60.0)
    assert len(answers) == 0


async def test_an_answer_is_kept_for_its_time() -> None:
    """Then the key means something new."""
    answers = AnswersInMemory(10)
    await answered(answers, "k", ttl=86_400.0)
    await anyio.sleep(86_399.0)
    assert await answers.begin("k", SAME) == Standing(None, True, b"")
    await anyio.sleep(1.0)
    await answered(answers, "k")


async def test_the_oldest_answers_go_first_and_running_ones_never() -> None:
    """Where all run there is no room."""
    answers = AnswersInMemory(3)
    running = await begun(answers, "running")
    for key in "abc":
        await answered(answers, key)
    assert len(answers) == 3
    await begun(answers, "a")
    token = await begun(answers, "d")
    assert await answers.begin("e", SAME) is None
    assert await answers.begin("running", SAME) == Standing(None)
    await answers.finish("running", SAME, running, b"at last", 60.0)
    await answers.finish("d", SAME, token, None, 60.0)
    assert await answers.begin("running", SAME) == Standing(None, True, b"at last")


async def test_answers_are_bounded_by_their_bytes_too() -> None:
    """Ten thousand large batches would fill the memory."""
    answers = AnswersInMemory(100, bytes_max=10)
    for key in "abc":
        await answered(answers, key, b"12345")
    assert await answers.begin("b", SAME) == Standing(None, True, b"12345")
    await answered(answers, "a", b"12345678901")
    assert len(answers) == 0


def test_what_ran_in_a_loop_that_has_ended_is_free() -> None:
    """As where each request of a test has an event loop of its own."""
    answers = AnswersInMemory(1)
    anyio.run(begun, answers, "k")
    anyio.run(begun, answers, "k")
