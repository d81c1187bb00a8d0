"""Who lives: the lock file alone, without a queue."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from microbatch.durable.alive import Presence, birth_of
from microbatch.durable.records import Consumer

pytestmark = pytest.mark.skipif(os.name != "posix", reason="record locks")


@pytest.fixture
def presence(path):
    path.touch()
    made = []

    def make(**settings):
        made.append(Presence(path, **settings))
        return made[-1]

    yield make
    for one in made:
        one.release()


def row(byte, identity, pid=None, born=None):
    return Consumer(byte, identity, os.getpid() if pid is None else pid, born)


def test_a_byte_is_held_by_one(presence):
    """In this process too, where the lock itself would not object."""
    first, second = presence(), presence()
    assert first.take(1) == first.identity
    assert second.take(1) is None
    assert second.take(2) == first.identity
    assert first.sees(row(2, first.identity))
    assert not first.sees(row(3, first.identity))
    second.release()
    second.release()
    assert not first.sees(row(2, first.identity))
    assert first.sees(row(1, first.identity))


def test_a_consumer_whose_event_loop_has_ended_is_dead(presence):
    """Its process holds the lock still, and knows better."""
    loop_ended = False
    first, second = presence(lives=lambda: not loop_ended), presence()
    first.take(1)
    second.take(2)
    assert second.sees(row(1, second.identity))
    loop_ended = True
    assert not second.sees(row(1, second.identity))


def test_another_process_holds_its_byte(presence, path):
    """And has it no more when it is killed."""
    first = presence()
    first.take(1)
    program = (
        "import fcntl, sys\n"
        "file = open(sys.argv[1], 'r+')\n"
        "fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 2)\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program, f"{path}-alive"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert other.stdout is not None
    assert other.stdin is not None
    other.stdout.readline()
    assert first.sees(row(2, first.identity))
    assert presence().take(2) is None
    other.kill()
    other.wait()
    assert not first.sees(row(2, first.identity))
    other.stdout.close()
    other.stdin.close()


def test_a_lock_in_another_file_is_judged_by_its_process(presence):
    """That file was deleted, so nobody can ask it."""
    first = presence()
    first.take(1)
    parent = os.getppid()
    assert first.sees(row(2, 1, pid=parent, born=birth_of(parent)))
    assert not first.sees(row(2, 1, pid=parent, born="another birth"))
    assert not first.sees(row(2, 1, pid=2**22 + 1))
    assert first.sees(row(2, 1, pid=parent, born=None))


def test_this_process_knows_what_it_holds_in_whatever_file(presence):
    """A row that came with a copy of the file is nobody's; one that is just moving is somebody's."""
    first, ended = presence(), presence(lives=lambda: False)
    first.take(1)
    ended.take(3)
    assert first.sees(row(1, 1))
    assert not first.sees(row(2, 1))
    assert not first.sees(row(3, 1))


def test_a_process_of_another_user_lives(presence, monkeypatch):
    """The system refuses to signal it, which says that it is there."""
    first = presence()
    first.take(1)

    def refuse(pid, number):
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    assert first.sees(row(2, 1, pid=1))


def test_it_follows_a_lock_file_that_was_deleted_or_replaced(presence, path):
    """Whoever opens the new one must see it there."""
    first = presence()
    assert not first.follow()  # it holds nothing yet
    before = first.take(1)
    assert not first.follow()
    alive = path.with_name("queue.db-alive")
    held = os.open(alive, os.O_RDONLY)
    alive.unlink()
    assert first.follow()
    assert first.identity != before
    assert presence().take(1) is None
    assert presence().take(2) == first.identity
    os.close(held)


def test_a_descriptor_opened_twice_is_not_closed(presence, path, monkeypatch):
    """The file came to be between two looks; closing the second descriptor would drop the locks."""
    first, second = presence(), presence()
    first.take(1)
    monkeypatch.setattr(Presence, "_stat", lambda self: 0)
    assert second.take(2) == first.identity
    program = (
        "import fcntl, sys\n"
        "fcntl.lockf(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 1)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, f"{path}-alive"], capture_output=True, check=False
    )
    assert b"BlockingIOError" in done.stderr


def test_the_birth_of_a_process_that_is_not(monkeypatch):
    """Where there is no /proc, or no such process, there is nothing to tell."""
    assert birth_of(2**22 + 1) is None
    if sys.platform == "linux":
        assert birth_of(os.getpid()) is not None
