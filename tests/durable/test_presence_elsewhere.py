"""Who lives, among processes that share little: forked ones, other users', other containers'."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from presence_support import PROGRAM, in_child, other_process

from microbatch.durable import QueueUnavailable
from microbatch.durable._file.records import ConsumerRow
from microbatch.durable._life import lock_file, processes
from microbatch.durable._life.alive import Presence, birth_of, is_held

pytestmark = pytest.mark.skipif(os.name != "posix", reason="record locks, forks and users")
root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root to become somebody else"
)


def can_unshare():
    if shutil.which("unshare") is None:
        return False
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", "true"], capture_output=True, check=False
    )
    return done.returncode == 0


def test_a_forked_child_touches_nothing_of_its_parents(path):
    """It has the descriptor and none of the locks: using it would say that both are one."""
    path.touch()
    parent = Presence(path)
    identity = parent.take(1)
    me = ConsumerRow(1, 1, identity, os.getpid(), birth_of(os.getpid()))
    descriptor = lock_file.files.open[identity]._descriptor

    def child():
        assert lock_file.files.open == {}
        assert parent.identity == ""
        assert not parent.hold()
        assert not parent.follow()
        parent.release()
        assert os.path.samestat(os.fstat(descriptor), parent.path.stat())  # not closed
        # What was made and never opened works, and sees the parent as another process.
        mine = Presence(path)
        assert mine.take(1) is None
        assert mine.take(2) == identity
        assert parent.take(3) == identity
        return mine.sees(me) and mine.hold()

    unused = Presence(path)
    assert in_child(child)
    assert in_child(lambda: unused.take(4) == identity and unused.hold())
    assert parent.hold()
    assert is_held(path, 1)
    parent.release()


def test_a_child_does_not_wait_for_a_lock_of_a_thread_that_it_has_not(path):
    """Some thread may be in the middle of a look when another one forks."""
    path.touch()
    held, done = threading.Event(), threading.Event()

    def look():
        with lock_file.files.mutex:
            held.set()
            done.wait(20)

    thread = threading.Thread(target=look)
    thread.start()
    assert held.wait(20)
    try:
        assert in_child(lambda: bool(signal.alarm(60) or Presence(path).take(1)))
    finally:
        done.set()
        thread.join()
    child = lock_file._Files()
    child.open["x"] = lock_file.LockFile(-1, "x")
    before = child.mutex
    child.forget()
    assert child.open == {}
    assert child.mutex is not before


def test_the_child_is_another_process_by_birth():
    """What was remembered of the parent must not be said of the child."""
    born = processes.own_birth(os.getpid())
    assert in_child(lambda: processes.own_birth(os.getpid()) != born)


@pytest.mark.skipif(sys.platform != "linux" or not can_unshare(), reason="needs pid namespaces")
def test_two_containers_do_not_call_each_other_dead(path):
    """Each of them may be process 1: with one lock file, with one that was deleted, with two."""
    path.touch()
    mine = Presence(path)
    mine.take(1)
    unshare = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
    with other_process(path, 2, *unshare) as one, other_process(path, 3, *unshare) as other:
        assert one.pid == other.pid  # the same number, in either namespace
        assert one.born != other.born

        def all_live():
            ask = "presence.sees(ConsumerRow({0}, 1, {1.identity!r}, {1.pid}, {1.born!r}))"
            return (
                mine.sees(one.row),
                mine.sees(other.row),
                one.ask(ask.format(3, other)) == "True",
                other.ask(ask.format(2, one)) == "True",
            )

        assert all_live() == (True,) * 4
        mine.path.unlink()
        assert all_live() == (True,) * 4
        assert one.ask("presence.follow()") == "True"
        assert all_live() == (True,) * 4
        one.identity = one.ask("presence.identity")
        assert all_live() == (True,) * 4
        assert other.ask("presence.follow()") == "True"
        assert mine.follow()
        assert all_live() == (True,) * 4
        other.identity = other.ask("presence.identity")
        assert one.identity == other.identity == mine.identity
        assert all_live() == (True,) * 4
    mine.release()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_a_proc_of_another_namespace_is_not_believed(path):
    """Its numbers are other processes'."""
    if not can_unshare():
        pytest.skip("needs pid namespaces")
    path.touch()
    with other_process(path, 1, "unshare", "--pid", "--fork", "--kill-child") as other:
        assert other.born == "None"


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize("hidden", [True, False])
def test_a_user_may_be_shown_no_process_but_his_own(hidden, monkeypatch):
    """Then the system is asked for the number alone; a refusal says that it is there."""
    born = birth_of(os.getpid())
    assert processes.is_running(os.getpid(), born)

    def answer(pid, number):
        raise PermissionError if hidden else ProcessLookupError

    monkeypatch.setattr(processes, "_stat", lambda pid: None)
    monkeypatch.setattr(processes.os, "kill", answer)
    assert processes.is_running(1, born) is hidden
    monkeypatch.setattr(processes.os, "kill", lambda pid, number: None)
    assert processes.is_running(1, born)
    assert birth_of(1) is None


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_where_proc_is_not_this_processs_nothing_is_told(tmp_path, monkeypatch):
    """There is none, say, or it is another namespace's: a number alone is not believed."""
    pid = os.getpid()
    proc = tmp_path / "proc"
    monkeypatch.setattr(processes, "_PROC", proc)
    assert processes._here.__wrapped__(pid) is None
    (proc / "sys/kernel/random").mkdir(parents=True)
    (proc / "sys/kernel/random/boot_id").write_text("a boot\n")
    (proc / str(pid) / "ns").mkdir(parents=True)
    (proc / str(pid) / "ns/pid").symlink_to("pid:[7]")
    (proc / "self").symlink_to(str(pid))
    assert processes._here.__wrapped__(pid) == ("a boot", "pid:[7]")
    assert processes._here.__wrapped__(pid + 1) is None
    assert birth_of(pid) is None
    monkeypatch.setattr(processes, "_here", lambda pid: None)
    assert birth_of(pid) is None
    assert processes.is_running(pid, "a boot/pid:[7]/1") is None


def test_the_lock_file_has_the_databases_mode_whatever_the_umask(path):
    """Else a second user, who may use the queue, is locked out."""
    path.touch()
    path.chmod(0o660)
    before = os.umask(0o077)
    try:
        one = Presence(path)
        one.take(1)
    finally:
        os.umask(before)
    assert stat.S_IMODE(one.path.stat().st_mode) == 0o660
    one.release()


@root
def test_the_lock_file_has_the_databases_owner_and_an_error_names_it():
    """Root, who looked first, leaves a file that the service can use; a stranger is told which one he cannot."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        path = Path(folder) / "queue.db"
        path.touch(0o600)
        os.chown(path, 12345, 12345)
        one = Presence(path)
        one.take(1)
        found = one.path.stat()
        assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (12345, 0o600)
        as_user = (
            "import os, sys; exec(PROGRAM.partition('presence =')[0]);"
            "os.setgid(USER); os.setuid(USER);"
            "from microbatch.durable import QueueUnavailable\n"
            "try: print(Presence(path).take(byte))\n"
            "except QueueUnavailable as error: print(error)"
        )
        said = [
            subprocess.run(
                [
                    sys.executable,
                    "-c",
                    as_user.replace("PROGRAM", repr(PROGRAM)).replace("USER", user),
                    path,
                    byte,
                ],
                capture_output=True,
                text=True,
                check=True,
            ).stdout.strip()
            for user, byte in (("12345", "1"), ("12345", "2"), ("23456", "3"))
        ]
        assert said[:2] == ["None", one.identity]
        assert said[2] == (
            f"the queue file {str(one.path)!r} cannot be used: "
            "Permission denied: who uses the queue must be able to read and write it"
        )
        one.release()


def test_a_lock_file_of_somebody_else_is_named(path, monkeypatch):
    """Wherever the tests run as root, whom no mode keeps out."""
    path.touch()

    def refuse(*arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(lock_file.os, "open", refuse)
    with pytest.raises(QueueUnavailable, match="who uses the queue must be able") as caught:
        Presence(path).take(1)
    assert caught.value.path == f"{path}-alive"
    assert not is_held(path, 1)
    assert Presence(path).sees(ConsumerRow(1, 1, "1:1", 1, None))
