"""The tables: made once, refused if newer, and taken over from version 1 without losing anything."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from microbatch.durable._file import migration, schema
from microbatch.durable._file.codec import decode_error
from microbatch.durable._file.limits import Limits
from microbatch.durable._file.records import Demand, Settlement, State
from microbatch.durable._file.session import Session, run
from microbatch.durable.errors import QueueUnavailable, SchemaTooNew

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Made by the code of version 1: queues `mail` (done, dead, keyed, cancelled, ready, delayed items, one that was
#: enqueued in an application's transaction; paused), `other`, `killed` (one item killed two processes and is
#: claimed by the second), `backoff` (one waits for its next attempt), `company` (three claimed by a dead process).
VERSION_1 = Path(__file__).parent / "version_1.db"
JOINED = 3959620838882026451
LIMITS = Limits()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "q.db"


@pytest.fixture
def raw(path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(path, isolation_level=None)
    yield connection
    connection.close()


@pytest.fixture
def old(path: Path, raw: sqlite3.Connection) -> sqlite3.Connection:
    shutil.copyfile(VERSION_1, path)
    return raw


def prepare(raw: sqlite3.Connection, path: Path, lives: Any = lambda _: False) -> None:
    schema.prepare(raw, path, "full", lives)


def do(raw: sqlite3.Connection, path: Path, work: Any) -> Any:
    session = Session(path=path, now=1_795_820_000.0, ticket=1, wal_size=lambda: 0)
    with raw:
        raw.execute("BEGIN IMMEDIATE")
        answer = run(raw, work(session))
        run(raw, session.finish())
    return answer


def test_tables_are_made_once(raw: sqlite3.Connection, path: Path) -> None:
    """The second process to open a file finds it ready."""
    prepare(raw, path)
    prepare(raw, path)
    assert raw.execute("SELECT * FROM microbatch_schema").fetchall() == [(4, 0)]
    assert raw.execute("PRAGMA secure_delete").fetchone() == (2,)
    assert not raw.in_transaction


def test_the_file_may_be_the_application_s_own(raw: sqlite3.Connection, path: Path) -> None:
    """Everything of ours is named so, and nothing else is touched."""
    raw.execute("PRAGMA user_version = 5")
    raw.execute("CREATE TABLE items (id)")
    prepare(raw, path)
    names = {name for (name,) in raw.execute("SELECT name FROM sqlite_master")} - {"items"}
    assert all(name.startswith(("microbatch_", "sqlite_")) for name in names)
    assert raw.execute("PRAGMA user_version").fetchone() == (5,)


def test_a_newer_schema_is_refused_and_left_alone(raw: sqlite3.Connection, path: Path) -> None:
    """An old worker among new ones must not write what they cannot read."""
    prepare(raw, path)
    raw.execute("UPDATE microbatch_schema SET version = 5")
    with pytest.raises(
        SchemaTooNew, match="its schema is version 5, this microbatch knows up to 4"
    ):
        prepare(raw, path)
    assert not raw.in_transaction


def test_another_process_may_have_made_the_tables_meanwhile(
    raw: sqlite3.Connection, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes that open a new file at once: the second one looks again once it may write."""
    prepare(raw, path)
    looks = iter([0, 4])
    monkeypatch.setattr(schema, "version", lambda _: next(looks))
    prepare(raw, path)
    assert list(looks) == []


def test_an_sqlite_that_is_too_old_is_named(
    raw: sqlite3.Connection, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """json_each may be missing there."""
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 37, 2))
    with pytest.raises(QueueUnavailable, match=r"needs SQLite 3\.38\.0"):
        prepare(raw, path)


def test_a_file_that_cannot_be_in_wal_mode_is_refused(path: Path) -> None:
    """On a network file system SQLite stays in another mode, and says nothing."""
    memory = sqlite3.connect(":memory:", isolation_level=None)
    with pytest.raises(QueueUnavailable, match="asked for WAL and synchronous=full, got memory"):
        prepare(memory, path)
    memory.close()


def test_the_bug_of_old_sqlites_is_named_once(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning for each opening would be noise."""
    monkeypatch.setattr(schema, "_warned_of_wal_bug", False)
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 40, 0))
    schema.warn_of_wal_bug(path)
    schema.warn_of_wal_bug(path)
    monkeypatch.setattr(schema, "_warned_of_wal_bug", False)
    monkeypatch.setattr(sqlite3, "sqlite_version_info", schema.SQLITE_WITHOUT_WAL_BUG)
    schema.warn_of_wal_bug(path)
    assert len(caplog.records) == 1


def test_the_log_s_size_is_known_also_without_one(path: Path) -> None:
    """`max_file_bytes` counts it."""
    assert schema.wal_size(path) == 0
    path.with_name("q.db-wal").write_bytes(b"12345")
    assert schema.wal_size(path) == 5


# From version 1


def test_nothing_is_migrated_under_a_living_process(old: sqlite3.Connection, path: Path) -> None:
    """It would find its tables gone."""
    seen: list[Any] = []
    with pytest.raises(QueueUnavailable, match=r"process \d+ still works on it with an older"):
        prepare(old, path, lambda consumer: seen.append(consumer) or True)
    assert schema.version(old) == 1
    assert not old.in_transaction
    assert len(seen) == 1
    assert len(seen[0]) == 4


def test_counts_and_pauses_are_carried_over(old: sqlite3.Connection, path: Path) -> None:
    """What waited waits, what is done stays done."""
    prepare(old, path)
    ready, scheduled, done, cancelled, dead = (
        State.READY, State.SCHEDULED, State.DONE, State.CANCELLED, State.DEAD
    )  # fmt: skip
    wanted = {
        "mail": (True, {ready: 8, scheduled: 3, done: 8, cancelled: 1, dead: 3}),
        "other": (True, {ready: 2}),
        "killed": (False, {ready: 3}),
        "backoff": (False, {scheduled: 1}),
        "company": (False, {ready: 3}),
    }
    for name, (paused, counts) in wanted.items():
        queue = do(old, path, lambda session, name=name: session.queue(name))
        assert queue.paused == paused
        assert {state: queue.counts[state] for state in State if queue.counts[state]} == counts


def test_results_errors_and_keys_are_carried_over(old: sqlite3.Connection, path: Path) -> None:
    """A ticket of version 1 stands for its item, a key for the item that has it."""
    prepare(old, path)
    found = {one.id: one for one in do(old, path, lambda s: s.find(1, range(1, 24)))}
    assert found[1].result == b"\x81\xa3did\xa6done 0"
    assert found[7].result is None
    assert found[7].state == State.DONE
    assert b"no bad 1" in (found[9].error or b"")
    assert found[1].ticket is None
    assert found[23].ticket == JOINED
    keys = old.execute("SELECT key, item FROM microbatch_keys ORDER BY key").fetchall()
    assert keys == [("k-dead", 11), ("k-done", 8), ("k-ready", 19)]


def test_payloads_stay_for_who_needs_them(old: sqlite3.Connection, path: Path) -> None:
    """What is done needs none, but for keyed items; everything else does."""
    prepare(old, path)
    there = {number for (number,) in old.execute("SELECT id FROM microbatch_items")}
    assert there == set(range(8, 33))


def test_items_come_in_their_order_with_their_payloads(old: sqlite3.Connection, path: Path) -> None:
    """The urgent one first, then as they came."""
    prepare(old, path)

    def work(session: Session) -> Any:
        yield from session.pause(1, paused=False)
        consumer = yield from session.register(1, 1, None)
        claims, _ = yield from session.claim(1, Demand(consumer, 1, 1, 100))
        return claims

    (claim,) = do(old, path, work)
    assert [payload[1:] for payload in claim.payloads] == [
        b"urgent", b"ready 0", b"ready 1", b"ready 2", b"ready 3", b"ready 4", b"keyed ready", b"joined",
    ]  # fmt: skip


def test_what_dead_processes_had_is_ready_and_handled_alone(
    old: sqlite3.Connection, path: Path
) -> None:
    """Three in company are charged with nothing; one that was alone is, once."""
    prepare(old, path)
    rows = old.execute(
        "SELECT first_id, state, attempts, deaths, apart FROM microbatch_ranges WHERE queue IN (3, 5)"
    ).fetchall()
    assert rows == [
        (26, 0, 2, 1, 26), (27, 0, 1, 0, 27), (28, 0, 0, 0, None),
        (30, 0, 0, 0, 30), (31, 0, 0, 0, 31), (32, 0, 0, 0, 32),
    ]  # fmt: skip
    assert old.execute("SELECT count(*) FROM microbatch_consumers").fetchone() == (0,)


def test_no_table_of_version_1_is_left_and_new_ids_follow(
    old: sqlite3.Connection, path: Path
) -> None:
    """Ids are never used again, whatever the version."""
    prepare(old, path)
    names = [name for (name,) in old.execute("SELECT name FROM sqlite_master")]
    assert [name for name in names if "v1" in name] == []
    answer = do(old, path, lambda s: s.append(2, LIMITS, [b"x"], None, None))
    assert answer.first == 33
    assert old.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_view_of_the_application_s_still_works(old: sqlite3.Connection, path: Path) -> None:
    """Renaming a table rewrites what others wrote about it, unless SQLite is told not to."""
    old.execute("CREATE VIEW mine AS SELECT id, state FROM microbatch_items")
    prepare(old, path)
    assert (32, "ready") in old.execute("SELECT * FROM mine").fetchall()
    assert old.execute("PRAGMA legacy_alter_table").fetchone() == (0,)


def test_a_migration_that_fails_leaves_version_1(
    old: sqlite3.Connection, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk under way: the older microbatch can go on."""
    before = old.execute("SELECT * FROM microbatch_items").fetchall()

    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(migration, "_count", fail)
    with pytest.raises(sqlite3.OperationalError, match="full"):
        prepare(old, path)
    assert schema.version(old) == 1
    assert old.execute("SELECT * FROM microbatch_items").fetchall() == before


def test_a_large_backlog_comes_over_in_few_rows(old: sqlite3.Connection, path: Path) -> None:
    """Thousands of items of one `enqueue_many` were thousands of rows."""
    old.execute(
        """INSERT INTO microbatch_items (id, queue, state, priority, due, attempts, enqueued_at, payload)
        WITH RECURSIVE n (id) AS (SELECT 100 UNION ALL SELECT id + 1 FROM n WHERE id < 3099)
        SELECT id, 2, 0, 0, 5.0, 0, 5.0, CAST(id AS BLOB) FROM n"""
    )
    old.execute("UPDATE microbatch_schema SET last_id = 3099")
    prepare(old, path)
    rows = old.execute("SELECT count(*), sum(count) FROM microbatch_ranges WHERE first_id >= 100")
    ((ranges, items),) = rows.fetchall()
    assert items == 3000
    assert ranges <= 4
    payload = old.execute("SELECT payload FROM microbatch_items WHERE id = 2000").fetchone()
    assert payload == (b"2000",)


def test_a_result_of_an_item_that_settled_later_is_found(
    old: sqlite3.Connection, path: Path
) -> None:
    """A migrated item goes its way like any other."""
    prepare(old, path)

    def work(session: Session) -> Any:
        consumer = yield from session.register(3, 1, None)
        (claim, *_), _ = yield from session.claim(3, Demand(consumer, 1, 1, 100))
        number = claim.ranges[0].first
        settlement = Settlement(1, [number], [b"at last"], [])
        yield from session.settle(3, LIMITS, consumer, [settlement])
        return (yield from session.find(3, [number]))

    (found,) = do(old, path, work)
    assert (found.state, found.result) == (State.DONE, b"at last")


# From version 2

#: Made by the code of version 2: queues `mail` (done, keyed, dead, skipped, cancelled, ready and delayed items; paused),
#: `killed` (three of five claimed by a dead process), `backoff` (one waits for its next attempt), `staged` (a
#: hundred that a dead process had staged).
VERSION_2 = Path(__file__).parent / "version_2.db"


@pytest.fixture
def second(path: Path, raw: sqlite3.Connection) -> sqlite3.Connection:
    shutil.copyfile(VERSION_2, path)
    return raw


def shape(raw: sqlite3.Connection) -> dict[str, Any]:
    """Return what tables have which columns, and the text of indexes and views."""
    found: dict[str, Any] = {}
    for kind, name, text in raw.execute("SELECT type, name, sql FROM sqlite_master").fetchall():
        if kind == "table":
            found[name] = raw.execute(f"SELECT * FROM pragma_table_info('{name}')").fetchall()
        elif text is not None:
            found[name] = " ".join(text.split())
    return found


#: Made by the code of version 3: queues `mail` (done, keyed, dead, skipped, ready and delayed items, a job that ended
#: in part and one that waits; paused), `killed` (a job of which a dead process had claimed all three items).
VERSION_3 = Path(__file__).parent / "version_3.db"


@pytest.fixture
def third(path: Path, raw: sqlite3.Connection) -> sqlite3.Connection:
    shutil.copyfile(VERSION_3, path)
    return raw


@pytest.mark.parametrize("older", [VERSION_1, VERSION_2, VERSION_3], ids=["1", "2", "3"])
def test_a_migrated_file_is_like_a_new_one(
    raw: sqlite3.Connection, path: Path, tmp_path: Path, older: Path
) -> None:
    """Else what was tested on new files would not hold for it."""
    shutil.copyfile(older, path)
    prepare(raw, path)
    new = sqlite3.connect(tmp_path / "new.db", isolation_level=None)
    prepare(new, tmp_path / "new.db")
    assert shape(raw) == shape(new)
    new.close()


def test_version_2_is_taken_over_as_it_is(second: sqlite3.Connection, path: Path) -> None:
    """Every row stays; what a dead process had is for whoever buries it."""
    columns = "id, name, paused, ready, scheduled, claimed, done, skipped, cancelled, dead, staged"
    before = {
        table: second.execute(f"SELECT * FROM microbatch_{table}").fetchall()
        for table in ("ranges", "blobs", "results", "errors", "keys", "consumers")
    }
    queues = second.execute(f"SELECT {columns} FROM microbatch_queues").fetchall()
    assert [row[1] for row in queues] == ["mail", "killed", "backoff", "staged"]
    prepare(second, path)
    assert schema.version(second) == 4
    for table, rows in before.items():
        assert rows
        assert second.execute(f"SELECT * FROM microbatch_{table}").fetchall() == rows
    assert second.execute(f"SELECT {columns} FROM microbatch_queues").fetchall() == queues
    assert not second.in_transaction


def test_version_2_is_not_taken_over_under_a_living_process(
    second: sqlite3.Connection, path: Path
) -> None:
    """It would claim a job's items without counting them."""
    with pytest.raises(QueueUnavailable, match=r"process \d+ still works on it with an older"):
        prepare(second, path, lambda _: True)
    assert schema.version(second) == 2


def test_items_of_version_2_go_on(second: sqlite3.Connection, path: Path) -> None:
    """Results and errors read back, what a dead process had claimed and staged is dealt with."""
    prepare(second, path)
    found = {one.id: one for one in do(second, path, lambda s: s.find(1, range(1, 30)))}
    assert found[1].state == State.DONE
    assert found[1].result == b"\x81\xa3did\x00"
    assert decode_error(found[4].error, 4, 1).code == "internal_error"
    assert decode_error(found[4].error, 4, 1).message == "no bad"
    consumers = {row.queue: row.id for row in do(second, path, lambda s: s.consumers())}
    do(second, path, lambda s: s.take_back(2, consumers[2], 3))
    do(second, path, lambda s: s.drop_staged(4, consumers[4]))
    assert do(second, path, lambda s: s.look(2)).counts[State.READY] == 5
    assert do(second, path, lambda s: s.look(4)).depth == 0

    def work(session: Session) -> Any:
        consumer = yield from session.register(2, 1, None)
        claims, _ = yield from session.claim(2, Demand(consumer, 1, 9, 9))
        done = [
            n
            for claim in claims
            for one in claim.ranges
            for n in range(one.first, one.first + one.count)
        ]
        settlements = [
            Settlement(
                c.number,
                sorted(n for one in c.ranges for n in range(one.first, one.first + one.count)),
                [None] * sum(one.count for one in c.ranges),
                [],
            )
            for c in claims
        ]
        settled = yield from session.settle(2, LIMITS, consumer, settlements)
        assert settled == set(done)
        return len(done)

    assert do(second, path, work) == 5


# From version 3


def test_version_3_is_taken_over_as_it_is(third: sqlite3.Connection, path: Path) -> None:
    """Only a table is new."""
    tables = [
        name
        for (name,) in third.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        if name not in {"microbatch_schema", "sqlite_sequence"}
    ]
    before = {table: third.execute(f"SELECT * FROM {table}").fetchall() for table in tables}
    assert all(before.values())
    prepare(third, path)
    assert schema.version(third) == 4
    for table, rows in before.items():
        assert third.execute(f"SELECT * FROM {table}").fetchall() == rows
    assert third.execute("SELECT count(*) FROM microbatch_answers").fetchone() == (0,)


def test_version_3_is_not_taken_over_under_a_living_process(
    third: sqlite3.Connection, path: Path
) -> None:
    """It would forget a consumer, and leave the keys that this one held."""
    with pytest.raises(QueueUnavailable, match=r"process \d+ still works on it with an older"):
        prepare(third, path, lambda _: True)
    assert schema.version(third) == 3
