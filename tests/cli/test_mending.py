"""What changes a queue: requeue, purge, cancel, pause, resume."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING, Any

import pytest
from cli_support import fill, run_job, work_off

from microbatch.durable import DurableQueue

if TYPE_CHECKING:
    from pathlib import Path


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def answer(monkeypatch: pytest.MonkeyPatch, text: str) -> Terminal:
    """Let somebody at a terminal answer; return what he sees there."""
    seen = Terminal()
    monkeypatch.setattr(sys, "stdin", Terminal(text))
    monkeypatch.setattr(sys, "stderr", seen)
    return seen


def counts(microbatch: Any, path: Path) -> tuple[int, int, int, int]:
    one = microbatch("queues", path, "--json").object
    return one["ready"], one["done"], one["dead"], one["cancelled"]


def test_requeue_makes_dead_letters_ready_again(path: Path, microbatch: Any) -> None:
    """Some by id, then all, then none is left."""
    work_off(path, [13, 1, 13, 13])
    assert microbatch("requeue", path, 1, 3, "--yes")[:2] == (0, "requeued 2 dead letters\n")
    assert counts(microbatch, path) == (2, 1, 1, 0)
    assert microbatch("requeue", path, "--all", "--yes", "--json").object == {
        "queue": "default",
        "requeued": 1,
    }
    assert microbatch("requeue", path, "--all").out == "requeued 0 dead letters\n"


def test_requeue_by_code(path: Path, microbatch: Any) -> None:
    """One cause is mended: what it killed goes again, the rest stays."""
    work_off(path, [13, None, 13])
    assert (
        microbatch("requeue", path, "--code", "unlucky", "--yes").out == "requeued 2 dead letters\n"
    )
    assert microbatch("dead", path, "--json").object["id"] == 2


def test_purge_removes_what_has_ended(path: Path, microbatch: Any) -> None:
    """By state; what waits is left alone, and said so."""
    work_off(path, [13, 1, 2])
    fill(path, [5])
    waits = microbatch("items", path, "--state", "ready", "--json").object["id"]
    assert microbatch("purge", path, "--state", "done", "--yes").out == "purged 2 items\n"
    mixed = microbatch("purge", path, 1, waits, "--yes")
    assert mixed.out == "purged 1 item\n"
    assert mixed.err == "microbatch: 1 item left alone: not in such a state, or a job's\n"
    assert counts(microbatch, path) == (1, 0, 0, 0)


def test_a_job_keeps_its_items(path: Path, microbatch: Any) -> None:
    """Its counts add up at every moment, whatever hands do."""
    run_job(path, [13, 1])
    every = microbatch("requeue", path, "--all", "--yes")
    assert every.out == "requeued 0 dead letters\n"
    assert every.err == (
        "microbatch: 1 item of jobs left alone: see microbatch jobs FILE, and job FILE ID --retry\n"
    )
    assert "1 item of jobs" in microbatch("purge", path, "--state", "done", "--yes").err
    assert (
        microbatch("requeue", path, "--code", "unlucky", "--yes").out == "requeued 0 dead letters\n"
    )
    assert "1 item left alone" in microbatch("purge", path, 2, "--yes").err
    assert counts(microbatch, path) == (0, 1, 1, 0)


def test_cancel_takes_an_item_that_nobody_has(path: Path, microbatch: Any) -> None:
    """And only such a one."""
    fill(path, [1])
    fill(path, [2])
    other = microbatch("items", path, "--json").objects[1]["id"]
    assert microbatch("cancel", path, other, "--yes", "--json").object["cancelled"] == 1
    assert microbatch("cancel", path, 1, "--yes")[:2] == (0, "cancelled 1 item\n")
    again = microbatch("cancel", path, 1, "--yes", "--json")
    assert (again.code, again.object) == (1, {"queue": "default", "cancelled": 0})
    assert again.err == "microbatch: item 1 cannot be cancelled any more: it has ended\n"


def test_pause_and_resume_never_ask(path: Path, microbatch: Any) -> None:
    """The one thing to do at once."""
    fill(path, [1])
    assert microbatch("pause", path)[:2] == (0, "queue 'default' is paused\n")
    assert microbatch("queues", path, "--json").object["paused"] is True
    assert microbatch("resume", path, "--json").object == {"queue": "default", "paused": False}
    assert microbatch("queues", path, "--json").object["paused"] is False


ASKING = [
    ("requeue", "--all", "requeue 1 dead letter of queue 'default'?"),
    ("purge", "--state=dead", "purge 1 item of queue 'default'?"),
    ("cancel", None, "cancel 1 item of queue 'default'?"),
]


@pytest.mark.parametrize("asking", ASKING, ids=[one[0] for one in ASKING])
def test_without_an_answer_nothing_is_changed(
    path: Path, microbatch: Any, monkeypatch: pytest.MonkeyPatch, asking: tuple[str, Any, str]
) -> None:
    """A script that forgot --yes ends with 2, as does a no; a yes does it."""
    name, argument, question = asking
    work_off(path, [13])
    fill(path, [1])
    argument = argument or microbatch("items", path, "--state", "ready", "--json").object["id"]
    before = counts(microbatch, path)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    silent = microbatch(name, path, argument)
    assert (silent.code, silent.out) == (2, "")
    assert silent.err == (
        f"microbatch: {question} nothing was changed: answer with --yes, for there is no terminal to ask\n"
    )
    for no in ("n\n", "\n", ""):
        seen = answer(monkeypatch, no)
        assert microbatch(name, path, argument).code == 2
        assert seen.getvalue().startswith(f"{question} [y/N] ")
    monkeypatch.undo()
    assert counts(microbatch, path) == before
    answer(monkeypatch, "y\n")
    assert microbatch(name, path, argument).code == 0
    monkeypatch.undo()
    assert counts(microbatch, path) != before


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["requeue", "--yes"], 2, "say what to requeue: ids, or --all, or --code"),
        (["requeue", "1", "--all", "--yes"], 2, "say what to requeue"),
        (["purge", "--yes"], 2, "say what to purge: ids, or --state"),
        (["requeue", "99", "1", "--yes"], 1, "queue 'default' has no item 99: nothing was changed"),
        (["requeue", "--all", "--queue", "x"], 2, "there is no queue 'x' in"),
    ],
)
def test_what_cannot_be_done_is_said(
    path: Path, microbatch: Any, arguments: list[str], code: int, message: str
) -> None:
    """In one line, and nothing is changed."""
    work_off(path, [13])
    shown = microbatch(arguments[0], path, *arguments[1:])
    assert shown.code == code
    assert message in shown.err
    assert counts(microbatch, path) == (0, 0, 1, 0)


def test_the_queue_must_be_named_where_there_are_several(path: Path, microbatch: Any) -> None:
    """To guess would be to mend the wrong one."""
    fill(path, [1])
    fill(path, [2], queue="mail")
    for name in ("items", "dead", "pause", "jobs"):
        shown = microbatch(name, path)
        assert shown.code == 2
        assert "has several queues: name one with --queue (default, mail)" in shown.err
    assert microbatch("items", path, "--queue", "mail", "--json").object["item"] == 2


def test_an_interruption_says_how_many_were_done(
    path: Path, microbatch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is done is done, and the rest is as it was."""
    work_off(path, [13] * 5)
    monkeypatch.setattr("microbatch.cli._mending._AT_ONCE", 2)
    requeue, calls = DurableQueue.requeue, []

    async def interrupted(self: Any, ids: list[int]) -> int:
        calls.append(ids)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return await requeue(self, ids)

    monkeypatch.setattr(DurableQueue, "requeue", interrupted)
    shown = microbatch("requeue", path, "--all", "--yes")
    assert shown.code == 130
    assert shown.err == (
        "microbatch: requeued at least 4 of 5; ask again for the rest\nmicrobatch: interrupted\n"
    )
    assert counts(microbatch, path) == (4, 0, 1, 0)
