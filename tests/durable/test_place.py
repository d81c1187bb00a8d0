"""Where a queue's file is, and what must be true of a file there."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from presence_support import in_child

from microbatch.durable import QueueUnavailable
from microbatch.durable._file import place
from microbatch.durable._file.place import (
    adopt,
    create_and_check,
    identity,
    resolve,
    storable_name,
)

posix = pytest.mark.skipif(os.name != "posix", reason="modes, owners and links of POSIX")


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("", "it is empty"),
        (":memory:", "a queue in memory would not be durable"),
        ("file::memory:?cache=shared", "a queue in memory would not be durable"),
        ("file:queue.db", "give the path itself, not a URI"),
        ("FILE:///tmp/queue.db?mode=memory", "give the path itself, not a URI"),
        ("queue\0.db", "it has a NUL in it"),
        ("queue\ud800.db", "it has a lone surrogate in it"),
        ("queues/", "it is a directory: add the file's name"),
        ("..", "it is a directory: add the file's name"),
        (".", "it is a directory: add the file's name"),
    ],
)
def test_what_can_be_no_files_name_is_refused_by_name(path, why):
    """sqlite3 would make a database in memory, a file of another name, or an error that says nothing."""
    with pytest.raises(ValueError, match="path must name a file") as caught:
        resolve(path)
    assert f", got {path!r}: {why}" in str(caught.value)


@pytest.mark.parametrize("path", [b"queue.db", 7, None])
def test_a_path_is_a_str(path):
    """bytes would be another file for every message that names it."""
    with pytest.raises(TypeError):
        resolve(path)


def test_a_path_is_resolved_once(tmp_path, monkeypatch):
    """The working directory and the links may change before the first call."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real" / "name.db").symlink_to("queue.db")
    monkeypatch.chdir(tmp_path)
    resolved = resolve(Path("link") / ".." / "link" / "name.db")
    assert resolved == tmp_path.resolve() / "real" / "queue.db"
    assert resolve(os.fspath(resolved)) == resolved


@posix
def test_a_name_that_is_no_text_is_one_to_the_system(tmp_path):
    """Its bytes are kept as surrogates, which the system takes back."""
    path = resolve(os.fspath(tmp_path) + "/queue\udcff.db")
    create_and_check(path)
    assert os.fsencode(path) in [os.fsencode(found) for found in tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("value", "error"), [("", TypeError), (None, TypeError), ("a\ud800", ValueError)]
)
def test_a_name_that_cannot_stand_in_the_file_is_refused_by_name(value, error):
    """SQLite would refuse it in the middle of somebody else's transaction."""
    with pytest.raises(error, match="queue must"):
        storable_name("queue", value)
    assert storable_name("queue", "ünüsual") == "ünüsual"


@posix
def test_a_new_file_is_its_owners_alone_whatever_the_umask(path):
    """Items may be secrets."""
    before = os.umask(0)
    try:
        found = create_and_check(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert found == identity(path) == create_and_check(path, allowed=False)


def test_what_a_file_must_not_be_is_refused_by_name(path):
    """Each would hang, damage data, or give an error that names something else."""
    cases = []
    with pytest.raises(QueueUnavailable, match="it was deleted under way"):
        create_and_check(path, allowed=False)
    path.mkdir()
    cases.append((path, "it is a directory"))
    cases.append((path / "no" / "queue.db", "its directory '.*no' does not exist"))
    blocker = path / "file"
    blocker.touch()
    cases.append((blocker / "queue.db", "(?i)not a directory"))
    if os.name == "posix":
        os.mkfifo(path / "pipe")
        cases.append((path / "pipe", "it is no regular file"))
        (path / "circle").symlink_to("circle")
        cases.append((path / "circle", "(?i)symbolic links"))
        os.link(blocker, path / "other name")
        cases.append((blocker, r"it has 2 names \(hard links\)"))
    for refused, why in cases:
        with pytest.raises(QueueUnavailable, match=why) as caught:
            create_and_check(refused)
        assert caught.value.path == str(refused)


def test_another_process_may_be_first(path, monkeypatch):
    """Between the look and the creation."""
    path.touch()
    looks = []
    real = Path.stat

    def absent_at_first(self, **settings):
        looks.append(self)
        if len(looks) == 1:
            raise FileNotFoundError
        return real(self, **settings)

    monkeypatch.setattr(Path, "stat", absent_at_first)
    assert create_and_check(path) == (real(path).st_dev, real(path).st_ino)


@posix
def test_no_other_thread_can_open_a_new_file_before_it_is_closed(path, monkeypatch):
    """A close drops the locks of the whole process: SQLite's, so that two of them would write at once."""
    alone = []
    close = os.close

    def watched(descriptor):
        alone.append(place._creating.locked())
        close(descriptor)

    monkeypatch.setattr(place.os, "close", watched)
    create_and_check(path)
    assert alone == [True]
    assert not place._creating.locked()


@posix
def test_a_fork_while_a_file_is_created_leaves_the_child_able_to(path):
    """A queue that was made and never opened works in a forked child."""
    with place._creating:
        assert in_child(lambda: create_and_check(path) == identity(path))
    before = place._creating
    place._forget_mutex()
    assert place._creating is not before


@posix
def test_files_beside_the_database_get_its_mode(path):
    """Whoever may use the queue must be able to use what belongs to it, made under whatever umask."""
    create_and_check(path)
    path.chmod(0o660)
    log = path.with_name("queue.db-wal")
    log.touch(0o600)
    create_and_check(path)
    assert stat.S_IMODE(log.stat().st_mode) == 0o660


@posix
def test_sqlite_gives_its_own_files_the_mode(path):
    """What it does is not done again here."""
    create_and_check(path)
    path.chmod(0o640)
    with contextlib.closing(sqlite3.connect(path)) as raw:
        raw.execute("PRAGMA journal_mode = WAL")
        raw.execute("CREATE TABLE one (x)")
        modes = {
            stat.S_IMODE(path.with_name(f"queue.db{suffix}").stat().st_mode)
            for suffix in ("", "-wal", "-shm")
        }
    assert modes == {0o640}


@posix
def test_no_link_is_followed_and_no_other_files_mode_is_changed(path, tmp_path):
    """In a directory that others may write to, a link could lead to anything."""
    create_and_check(path)
    other = tmp_path / "other"
    other.touch(0o644)
    side = path.with_name("queue.db-wal")
    side.symlink_to(other)
    adopt(path, side)
    side.unlink()
    os.link(other, side)
    adopt(path, side)
    assert stat.S_IMODE(other.stat().st_mode) == 0o644


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
def test_root_leaves_nothing_of_its_own_behind(path):
    """An administrator's look must not lock the service out."""
    create_and_check(path)
    os.chown(path, 12345, 23456)
    side = path.with_name("queue.db-alive")
    side.touch()
    create_and_check(path)
    assert (side.stat().st_uid, side.stat().st_gid) == (12345, 23456)


@posix
def test_what_a_process_may_not_give_away_stays_its_own(path, monkeypatch):
    """The group is tried then, and no failure of either is an error: the user may be the right one."""
    create_and_check(path)
    asked = []

    def refuse(side, owner, group, **settings):
        asked.append(owner)
        raise PermissionError

    monkeypatch.setattr(place.os, "chown", refuse)
    side = path.with_name("queue.db-alive")
    side.touch(0o644)
    found = side.lstat()
    monkeypatch.setattr(Path, "lstat", lambda self: os.stat_result((*found[:4], 12345, *found[5:])))
    adopt(path, side)
    assert asked == [found.st_uid, -1]
    assert stat.S_IMODE(os.stat(side).st_mode) == 0o600  # noqa: PTH116


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
def test_a_user_gives_his_file_the_databases_group():
    """He may not give it away; its group he may set if he is in it, and then the others of it can use it."""
    program = (
        "import os, sys, pathlib\n"
        "from microbatch.durable._file.place import adopt\n"
        "os.setgroups([23456]); os.setgid(12346); os.setuid(12346)\n"
        "adopt(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))\n"
    )
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are its user's alone
        Path(folder).chmod(0o777)
        path, side = Path(folder) / "queue.db", Path(folder) / "queue.db-alive"
        create_and_check(path)
        os.chown(path, 12345, 23456)
        path.chmod(0o660)
        side.touch(0o600)
        os.chown(side, 12346, 12346)
        subprocess.run([sys.executable, "-c", program, path, side], check=True)
        found = side.stat()
    assert (found.st_uid, found.st_gid) == (12346, 23456)
    assert stat.S_IMODE(found.st_mode) == 0o660
