"""Who lives: the lock file alone, without a queue."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import sys
from types import SimpleNamespace

import pytest
from presence_support import other_process

from microbatch.durable import QueueUnavailable
from microbatch.durable._file.records import ConsumerRow
from microbatch.durable._life import lock_file, processes
from microbatch.durable._life.alive import DOUBT, GRACE, Presence, birth_of, is_held

pytestmark = pytest.mark.skipif(os.name != "posix", reason="record locks")


class Time:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Time()


@pytest.fixture
def presence(path, clock):
    path.touch(0o600)
    made = []

    def make(where=path, **settings):
        made.append(Presence(where, monotonic=clock, **settings))
        return made[-1]

    yield make
    for one in made:
        one.release()
    assert lock_file.files.open == {}


@pytest.fixture
def alive(path):
    return path.with_name("queue.db-alive")


def row(byte, identity, pid=None, born=None):
    if pid is None:
        pid, born = os.getpid(), birth_of(os.getpid())
    return ConsumerRow(byte, 1, identity, pid, born)


def gone_after(clock, eyes, consumer):
    """Return for how many seconds it is still believed to live; looks are 0.25 s apart."""
    began = clock.now
    while eyes.sees(consumer):
        clock.now += 0.25
        assert clock.now < began + 1_000
    return clock.now - began


def test_a_byte_is_held_by_one(presence):
    """In this process too, where the lock itself would not object."""
    first, second = presence(), presence()
    assert first.identity == ""
    assert first.take(1) == first.identity != ""
    assert second.take(1) is None
    assert second.take(2) == first.identity
    assert first.sees(row(2, first.identity))
    assert not first.sees(row(3, first.identity))
    second.release()
    second.release()
    assert not first.sees(row(2, first.identity))
    assert first.sees(row(1, first.identity))


def test_a_consumer_can_get_another_number(presence, path):
    """After its queue's file was replaced; the old one is free then."""
    first = presence()
    assert first.take(1) == first.take(1) == first.take(2)
    assert not is_held(path, 1)
    assert is_held(path, 2)


def test_a_consumer_whose_event_loop_has_ended_is_dead(presence):
    """Its process holds the lock still, and knows better."""
    loop_ended = False
    first, second = presence(lives=lambda: not loop_ended), presence()
    first.take(1)
    second.take(2)
    assert second.sees(row(1, second.identity))
    loop_ended = True
    assert not second.sees(row(1, second.identity))


def test_another_process_holds_its_byte_until_it_is_killed(presence, path):
    """At once: no lease has to run out. Who has not been waited for is as dead."""
    eyes = presence()
    with other_process(path, 2) as other:
        assert eyes.sees(other.row)
        assert presence().take(2) is None
        assert is_held(path, 2)
        other.process.kill()
        while processes.is_running(
            other.pid, other.born
        ):  # until the system has ended it; it is a zombie then
            pass
        assert other.process.returncode is None
        assert not eyes.sees(other.row)
    assert not is_held(path, 2)


@pytest.mark.parametrize("how", ["close", "copytree"])
def test_a_lock_that_was_dropped_is_back_at_the_next_look(presence, path, alive, tmp_path, how):
    """Any close of the file in this process drops it: a checksum, a backup, a curious look."""
    with other_process(path, 2) as other:
        drop = {
            "close": f"open({os.fspath(alive)!r}).close()",
            "copytree": f"__import__('shutil').copytree({os.fspath(tmp_path)!r}, {os.fspath(tmp_path / 'copy')!r})",
        }[how]
        assert presence().take(2) is None
        other.ask(drop)
        thief = presence()
        assert thief.take(2) is not None, "the lock was not even dropped"
        thief.release()
        assert other.ask("presence.hold()") == "True"
        assert presence().take(2) is None


def test_a_lock_that_is_away_for_a_moment_costs_nobody_his_items(presence, path, alive, clock):
    """Its process runs, so it is given time to take it anew; then it counts as gone."""
    eyes = presence()
    with other_process(path, 2) as other:
        other.ask(f"open({os.fspath(alive)!r}).close()")
        assert eyes.sees(other.row)
        clock.now += GRACE / 2
        assert eyes.sees(other.row)
        other.ask("presence.hold()")
        clock.now += 10 * GRACE
        assert eyes.sees(other.row)
        other.ask("presence.release()")
        assert gone_after(clock, eyes, other.row) == GRACE


def test_who_lost_his_byte_to_another_process_learns_it(presence, path, alive):
    """He must not go on under a number that is another's."""
    first = presence()
    first.take(2)
    with alive.open():
        pass
    with other_process(path, 2) as other:
        assert other.identity == first.identity
        assert not first.hold()
        other.kill()
        assert first.hold()
    assert not presence().hold()


def test_who_probes_is_not_taken_for_the_one_who_took_over(presence, monkeypatch):
    """He has the byte for microseconds."""
    first = presence()
    first.take(2)
    answers = [False, False, True]
    monkeypatch.setattr(lock_file, "_lock_again", lambda descriptor, byte: answers.pop(0))
    assert first.hold()


def test_two_who_probe_do_not_take_each_other_for_the_consumer(presence, path, clock):
    """Else a dead one would live for as long as several look."""
    first = presence()
    identity = first.take(1)
    program = f"""
import fcntl, sys
file = open({os.fspath(path)!r} + '-alive', 'r+')
fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, 2)
print('x 1 x', flush=True)
sys.stdin.read()
"""
    with other_process(path, 2, sys.executable, "-c", program):
        assert not first.sees(row(2, identity, pid=2**22 + 1, born=birth_of(os.getppid())))


def test_it_follows_a_lock_file_that_was_deleted_or_replaced(presence, path, alive):
    """Whoever opens the new one must see it there; whoever still looks into the old one, there."""
    first = presence()
    assert not first.follow()  # it holds nothing yet
    before = first.take(1)
    assert not first.follow()
    with other_process(path, 2) as other:
        alive.unlink()
        assert first.sees(other.row)  # neither calls the other one dead, whoever moves first
        assert (
            other.ask(
                f"presence.sees(ConsumerRow(1, 1, {before!r}, {os.getpid()}, {birth_of(os.getpid())!r}))"
            )
            == "True"
        )
        assert first.follow()
        assert not first.follow()
        assert first.identity != before
        assert first.sees(other.row)
        assert (
            other.ask(
                f"presence.sees(ConsumerRow(1, 1, {before!r}, {os.getpid()}, {birth_of(os.getpid())!r}))"
            )
            == "True"
        )
        assert other.ask("presence.follow()") == "True"
        assert other.ask("presence.identity") == first.identity
        assert first.sees(other.row)
        other.identity = first.identity
        assert first.sees(other.row)
        other.kill()
        assert not first.sees(other.row)
    assert presence().take(1) is None


def test_what_it_followed_from_is_let_go_the_next_time(presence, alive):
    """One descriptor is kept, not one for each time."""
    first = presence()
    identities = {first.take(1)}
    for _ in range(5):
        kept = alive.with_name("kept")
        alive.rename(kept)  # so that no inode is used again
        assert first.follow()
        assert first.hold()
        kept.rename(alive.with_name(f"kept {len(identities)}"))
        identities.add(first.identity)
        assert len(lock_file.files.open) == 2
    assert len(identities) == 6


def test_a_consumer_whose_lock_file_is_gone_is_judged_by_its_process(presence):
    """Nobody can ask the file, and the process is one that can be known again."""
    first = presence()
    first.take(1)
    parent = os.getppid()
    born = birth_of(parent)
    assert born is not None
    assert first.sees(row(2, "1:1", parent, born))
    boot, namespace, started = born.split("/")
    assert not first.sees(row(2, "1:1", parent, f"{boot}/{namespace}/1"))
    assert not first.sees(row(2, "1:1", parent, f"another boot/{namespace}/{started}"))
    assert not first.sees(row(2, "1:1", 2**22 + 1, born))


@pytest.mark.parametrize("born", [None, "17", "{boot}/pid:[1]/{started}"])
def test_a_number_says_nothing_across_namespaces(presence, clock, born):
    """Every container has a process 7: in doubt it lives, and a doubt has an end."""
    first = presence()
    first.take(1)
    parent = os.getppid()
    boot, _, started = str(birth_of(parent)).split("/")
    consumer = row(2, "1:1", parent, born and born.format(boot=boot, started=started))
    assert gone_after(clock, first, consumer) == DOUBT
    assert gone_after(clock, first, consumer._replace(lock_file=first.identity)) == GRACE


def test_doubts_are_not_kept_for_rows_that_are_gone(presence, clock):
    """Every one has a number of its own: they would only become more."""
    first = presence()
    first.take(1)
    for number in range(2, 200):
        assert first.sees(row(number, "1:1", 1, None))
        clock.now += 1.0
    assert len(first._doubts) <= 2 * DOUBT + 1


def test_a_process_with_this_ones_number_is_not_this_one(presence, clock):
    """In another container: two consumers that each are process 1 must not call each other dead."""
    first = presence()
    first.take(1)
    boot, namespace, started = str(birth_of(os.getpid())).split("/")
    elsewhere = f"{boot}/pid:[1]/{started}"
    assert first.sees(row(2, "1:1", os.getpid(), elsewhere))
    assert not first.sees(row(2, "1:1", os.getpid(), f"{boot}/{namespace}/{started}"))


def test_a_number_that_is_given_twice_is_its_holders(presence, clock):
    """After a backup was restored: what this process holds, nobody else does, and asking must not drop it."""
    first = presence()
    identity = first.take(2)
    assert gone_after(clock, first, row(2, identity, os.getppid(), birth_of(os.getppid()))) == GRACE
    with other_process(first.path.with_name("queue.db"), 2) as other:
        assert other.identity == "None"


def test_equal_inodes_on_two_devices_are_two_files(presence, path, tmp_path, monkeypatch):
    """One descriptor for both would lock one file in the other one's place."""
    (tmp_path / "elsewhere").mkdir()
    second_path = tmp_path / "elsewhere" / "queue.db"
    second_path.touch()
    real = lock_file._identity

    def on_two_devices(found):
        return real(SimpleNamespace(st_dev=found.st_ino, st_ino=7))

    monkeypatch.setattr(lock_file, "_identity", on_two_devices)
    first, second = presence(), presence(second_path)
    assert first.take(1) != second.take(1) is not None
    assert is_held(path, 1)
    assert is_held(second_path, 1)


def test_a_number_of_another_queue_file_of_this_process_says_nothing(presence, path, tmp_path):
    """Numbers begin at 1 in every file: a consumer that is gone would live on in another one's."""
    other = tmp_path / "other.db"
    other.touch()
    first, second = presence(), presence(other)
    first.take(1)
    second.take(3)
    assert not first.sees(row(3, "1:1"))
    assert second.sees(row(3, "1:1"))  # it may just be moving


def test_a_descriptor_that_a_program_closed_is_opened_anew(presence, path, alive):
    """``os.closerange`` closes what it does not know; another file may have its number then."""
    first, second, third = presence(), presence(), presence()
    for byte, one in enumerate((first, second, third), 1):
        one.take(byte)
    descriptor = lock_file.files.open[first.identity]._descriptor
    other = os.open(path, os.O_RDWR)
    os.dup2(other, descriptor)
    try:
        third.release()  # it has none, and touches nobody else's file
        assert first.hold()
        assert second.hold()
        assert is_held(path, 1)
        with other_process(path, 2) as elsewhere:
            assert elsewhere.identity == "None"
    finally:
        os.close(other)
        os.close(descriptor)


def test_a_descriptor_that_was_closed_with_its_file_gone_is_followed(presence, alive):
    """The row must name the new one."""
    first = presence()
    before = first.take(1)
    kept = os.open(alive, os.O_RDONLY)
    os.close(lock_file.files.open[before]._descriptor)
    alive.unlink()
    assert first.hold()
    assert first.identity != before
    assert first.follow()
    assert not first.follow()
    os.close(kept)


def test_a_descriptor_opened_twice_is_not_closed(presence, path, alive, monkeypatch):
    """The file came to be between two looks; closing the second descriptor would drop the locks."""
    first, second = presence(), presence()
    first.take(1)
    opened = []

    open_really = os.open

    def watched(*arguments):
        opened.append(open_really(*arguments))
        return opened[-1]

    monkeypatch.setattr(lock_file, "identity_at", lambda path: "")
    monkeypatch.setattr(lock_file.os, "open", watched)
    assert second.take(2) == first.identity
    monkeypatch.undo()
    with other_process(path, 1) as other:
        assert other.identity == "None"
    (extra,) = opened
    os.close(extra)


def no_locks(descriptor, *settings):
    raise OSError(errno.ENOLCK, "No locks available")


def test_a_system_without_locks_is_named_or_doubted(presence, alive, caplog, monkeypatch):
    """Taking says so; who has a lock cannot know more, and warns once."""
    first = presence()
    identity = first.take(1)
    monkeypatch.setattr(lock_file.fcntl, "lockf", no_locks)
    with pytest.raises(QueueUnavailable, match="No locks available") as caught:
        presence().take(2)
    assert caught.value.path == str(alive)
    assert first.hold()
    assert first.hold()
    assert first.sees(row(2, identity, 1, None))
    monkeypatch.undo()
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == [
        f"the lock file {str(alive)!r} cannot be used: [Errno 37] No locks available"
    ]


def test_a_lock_file_that_cannot_be_made_anew_is_not_followed(presence, path, alive, caplog):
    """The old lock still says that it lives, to whoever has the old file open."""
    first = presence()
    before = first.take(1)
    alive.unlink()
    alive.mkdir()
    assert not first.follow()
    assert first.hold()
    assert first.identity == before
    with pytest.raises(QueueUnavailable, match="directory") as caught:
        presence().take(2)
    assert caught.value.path == str(alive)
    assert not is_held(path, 1)
    alive.rmdir()
    assert first.follow()
    assert "cannot be used" in caplog.text


@pytest.mark.parametrize("kind", ["link", "pipe", "hard link"])
def test_a_lock_file_must_be_a_file_with_one_name(presence, alive, tmp_path, kind):
    """Through a link another queue's locks would be taken, or a file's mode changed."""
    other = tmp_path / "other"
    other.touch()
    {
        "link": lambda: alive.symlink_to(other),
        "pipe": lambda: os.mkfifo(alive),
        "hard link": lambda: os.link(other, alive),
    }[kind]()
    with pytest.raises(QueueUnavailable) as caught:
        presence().take(1)
    assert caught.value.path == str(alive)


def test_the_database_is_named_if_it_is_gone(presence, path):
    """There is nothing whose mode the lock file could have."""
    first = presence()
    path.unlink()
    with pytest.raises(QueueUnavailable) as caught:
        first.take(1)
    assert caught.value.path == str(path)


def test_a_copy_of_the_file_has_nobody_of_its_own(presence, path, tmp_path):
    """Its rows name consumers of the original."""
    first = presence()
    identity = first.take(1)
    copy = tmp_path / "copy.db"
    shutil.copy(path, copy)
    assert not presence(copy).sees(row(1, "1:1"))
    assert presence().sees(row(1, identity))
