"""One transaction on the tables: what only shows with real bounds, many rows, or damage."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any

import pytest
from session_model import File

from microbatch.durable._file import payloads, view
from microbatch.durable._file.limits import Limits
from microbatch.durable._file.records import (
    Demand,
    NewItem,
    Settlement,
    State,
    Verdict,
)
from microbatch.durable._file.session import Ids, Session, run
from microbatch.durable.errors import QueueCorrupt, QueueFull, QueueUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LIMITS = Limits()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[File]:
    file = File(tmp_path / "q.db")
    file.queue = file.write(lambda s: s.queue("q")).id
    file.consumer = file.write(lambda s: s.register(file.queue, 1, "born"))
    file.statements.clear()
    yield file
    file.raw.close()


def append(file: File, content: list[bytes], **limits: Any) -> Any:
    bounds = Limits(**limits)
    return file.write(lambda s: s.append(file.queue, bounds, content, None, None))


def claim(file: File, number: int = 1, slots: int = 1, size: int = 100) -> Any:
    demand = Demand(file.consumer, number, slots, size)
    return file.write(lambda s: s.claim(file.queue, demand))[0]


def settle(
    file: File, number: int, done: Any, result: bytes | None = b"r", verdicts: Any = ()
) -> Any:
    settlement = Settlement(number, list(done), [result] * len(list(done)), list(verdicts))
    return file.write(lambda s: s.settle(file.queue, LIMITS, file.consumer, [settlement]))


def scalar(file: File, statement: str) -> Any:
    return file.raw.execute(statement).fetchone()[0]


# Ids


def test_ids_are_reserved_by_the_ten_thousand(file: File) -> None:
    """One page less in each transaction."""
    assert append(file, [b"a"]).first == 1
    assert append(file, [b"b"]).first == 2
    assert scalar(file, "SELECT last_id FROM microbatch_schema") == view.RESERVED
    append(file, [b"x"] * 9_998)
    assert append(file, [b"y"]).first == 10_001
    assert append(file, [b"z"] * 12_000).first == 10_002


def test_ids_of_a_transaction_that_was_rolled_back_are_void(file: File) -> None:
    """Its reservation is not on the disk either: another process may have those ids by now."""
    with pytest.raises(ZeroDivisionError):
        file.write(lambda s: failing(s, file.queue))
    assert scalar(file, "SELECT last_id FROM microbatch_schema") == 0
    other = Ids()
    file.ids, mine = other, file.ids
    assert append(file, [b"theirs"]).first == 1
    file.ids = mine
    assert append(file, [b"ours"]).first == view.RESERVED + 1


def failing(session: Session, queue: int) -> Any:
    yield from session.append(queue, LIMITS, [b"x"], None, None)
    raise ZeroDivisionError


def test_without_a_reserve_each_call_takes_its_own_ids(file: File) -> None:
    """An application's own transaction may be rolled back, and has no reserve that could know."""
    file.ids = None
    assert append(file, [b"a", b"b"]).first == 1
    assert append(file, [b"c"]).first == 3
    assert scalar(file, "SELECT last_id FROM microbatch_schema") == 3


# Bounds


def test_a_blob_holds_64_kib_or_one_item(file: File) -> None:
    """A claim of one item must not read megabytes of its neighbours."""
    append(file, [b"x" * 30_000] * 5 + [b"y" * 200_000] + [b"z"] * 1_500)
    rows = file.raw.execute("SELECT count, length(payloads) FROM microbatch_blobs").fetchall()
    assert rows == [(2, 60_000), (2, 60_000), (1, 30_000), (1, 200_000), (1_000, 1_000), (500, 500)]


def test_a_claim_holds_4_mib_or_one_item(file: File) -> None:
    """A hundred items of 5 MB at once would be half a gigabyte."""
    append(file, [b"a" * 3_000_000, b"b" * 3_000_000, b"c" * 9_000_000, b"d", b"e" * 4_194_303])
    claims = claim(file, slots=4)
    assert [[one[:1] for one in each.payloads] for each in claims] == [
        [b"a"],
        [b"b"],
        [b"c"],
        [b"d", b"e"],
    ]
    assert [len(each.ranges) for each in claims] == [1, 1, 1, 1]


def test_the_short_way_holds_4_mib_or_one_item(file: File) -> None:
    """What is claimed without being read obeys the same bound."""
    content = [b"a" * 3_000_000, b"b" * 3_000_000, b"c"]
    demand = Demand(file.consumer, 1, 2, 100)
    answer = file.write(lambda s: s.append(file.queue, LIMITS, content, None, demand))
    assert [len(each.payloads) for each in answer.claims] == [1, 2]
    groups = [[NewItem(one, priority=1)] for one in content]
    settle(file, 1, [1])
    settle(file, 2, [2, 3])
    demand = Demand(file.consumer, 3, 1, 100)
    _, claims = file.write(lambda s: s.enqueue(file.queue, LIMITS, groups, demand))
    assert [len(each.payloads) for each in claims] == [1]


def test_great_payloads_are_read_one_by_one(file: File) -> None:
    """A read of many blobs must not bring sixty-four of a megabyte at once."""
    append(file, [b"a" * 1_000_000] * 10)
    file.statements.clear()
    (got,) = claim(file, size=10)
    assert len(got.payloads) == 4
    assert sum("SELECT payloads FROM" in one for one in file.statements) == 4


def test_a_file_that_is_full_takes_nothing_new_and_says_which_bound(file: File) -> None:
    """Settling still has room."""
    assert append(file, [b"x"], max_file_bytes=1)[1:] == (0, [], "max_file_bytes")
    limits = Limits(max_file_bytes=1)
    items = [NewItem(b"x")]
    ((refused,), _) = file.write(lambda s: s.enqueue(file.queue, limits, [items], None))
    assert (refused.queue, refused.limit, refused.allowed) == ("q", "max_file_bytes", 1)
    refused = file.write(lambda s: s.stage(file.queue, limits, items, file.consumer, 1))
    assert isinstance(refused, QueueFull)
    assert file.write(lambda s: s.enqueue(file.queue, limits, [[]], None)) == ([[]], [])


def test_what_is_staged_counts_towards_the_depth(file: File) -> None:
    """Ten calls that each stage what there is room for would take ten times the room."""
    limits = Limits(max_depth=5)
    items = [NewItem(b"x")] * 4
    assert file.write(lambda s: s.stage(file.queue, limits, items, file.consumer, 1)) is None
    assert append(file, [b"a", b"b"], max_depth=5)[1:] == (1, [], "max_depth")


# Who is not there


def test_a_consumer_that_the_file_does_not_know_gets_nothing(file: File) -> None:
    """Nobody would take back what it had: the file was replaced under it."""
    append(file, [b"a"])
    stranger = Demand(99, 1, 1, 10)
    assert file.write(lambda s: s.claim(file.queue, stranger))[0] == []
    file.write(lambda s: s.purge(file.queue, [1]))
    claim(file)
    settle(file, 1, [1])
    answer = file.write(lambda s: s.append(file.queue, LIMITS, [b"b"], None, stranger))
    assert answer.claims == []


def test_a_queue_that_the_file_does_not_know_is_named(file: File) -> None:
    """Another file stands at the path."""
    with pytest.raises(QueueUnavailable, match=r"it has no queue 99: was it replaced\?"):
        file.write(lambda s: s.look(99))


@pytest.mark.parametrize(
    ("damage", "left"),
    [
        ("UPDATE microbatch_blobs SET payloads = x'00'", [b"", b"", b""]),
        (
            "UPDATE microbatch_blobs SET count = 2, lengths = '[1,1]', payloads = x'6162'",
            [b"a", b"b", b""],
        ),
        (
            "UPDATE microbatch_blobs SET lengths = '[1,null,1]', payloads = x'6163'",
            [b"a", b"", b"c"],
        ),
        ("UPDATE microbatch_blobs SET lengths = '[1,'", [b"", b"", b""]),
        ("UPDATE microbatch_blobs SET lengths = '7'", [b"", b"", b""]),
        ("DELETE FROM microbatch_blobs", [b"", b"", b""]),
    ],
)
def test_a_payload_that_is_missing_is_no_other_items(
    file: File, damage: str, left: list[bytes]
) -> None:
    """Nothing stands in its place, which no decoder takes: its item fails, those beside it go on."""
    append(file, [b"a", b"b", b"c"])
    append(file, [b"d"] * 2)
    file.raw.execute(f"{damage} WHERE first_id = 1")
    (got,) = claim(file)
    assert got.payloads == [*left, b"d", b"d"]


def test_a_key_whose_items_payload_is_missing_is_damage(file: File) -> None:
    """Nobody can tell whether the second one is the same item."""
    keyed = [[NewItem(b"a", "key")]]
    file.write(lambda s: s.enqueue(file.queue, LIMITS, keyed, None))
    file.raw.execute("DELETE FROM microbatch_blobs")
    with pytest.raises(QueueCorrupt, match="the payload of item 1, which has the key, is missing"):
        file.write(lambda s: s.enqueue(file.queue, LIMITS, keyed, None))


# Order and time


def test_of_many_overdue_items_the_urgent_ones_go_first(file: File) -> None:
    """Six hundred that were due before it must not hide it."""
    groups = [[NewItem(b"slow", delay=1.0 + n)] for n in range(600)]
    groups += [[NewItem(b"urgent", priority=9, delay=5_000.0)]]
    file.write(lambda s: s.enqueue(file.queue, LIMITS, groups, None))
    file.now += 10_000
    (got,) = claim(file, size=2)
    assert got.payloads == [b"urgent", b"slow"]
    (rest,) = claim(file, number=2, size=10_000)
    assert len(rest.payloads) == 599


def test_nothing_overtakes_what_had_to_wait_for_the_next_claim(file: File) -> None:
    """A claim that makes 500 ready may want more: those of lower priority are not next."""
    append(file, [b"low"] * 5)
    groups = [[NewItem(b"high", priority=1, delay=1.0 + n)] for n in range(501)]
    file.write(lambda s: s.enqueue(file.queue, LIMITS, groups, None))
    file.now += 10_000
    (got,) = claim(file, size=1_000)
    assert got.payloads == [b"high"] * 500
    (rest,) = claim(file, number=2, size=1_000)
    assert rest.payloads == [b"high"] + [b"low"] * 5


def test_a_clock_that_was_wrong_for_a_moment_delays_nothing(file: File) -> None:
    """A reading in 2036 must not make a second of back-off wait for ten years."""
    file.now += 300_000_000
    file.write(lambda s: s.enqueue(file.queue, LIMITS, [[NewItem(b"later", delay=5.0)]], None))
    append(file, [b"then"])
    file.now -= 300_000_000
    append(file, [b"now"])
    (got,) = claim(file)
    assert got.payloads == [b"then", b"now"]
    assert file.write(lambda s: s.next_due(file.queue)) == file.now + 5.0
    assert file.write(lambda s: s.look(file.queue)).latest <= file.now + 1.0


def test_what_was_claimed_when_the_clock_was_mended_is_mended_later(file: File) -> None:
    """It comes back with the wrong reading still in it."""
    file.now += 1_000
    append(file, [b"x"] * 2)
    claim(file)
    file.now -= 1_000
    claim(file, 2)
    file.write(lambda s: s.give_back(file.queue, file.consumer))
    claim(file, 3)
    (one,) = file.ranges()
    assert (one.due, one.since) == (file.now, file.now)


def test_jobs_lanes_are_mended_too(file: File) -> None:
    """The heads of all lanes change when the clock does."""
    file.raw.execute("INSERT INTO microbatch_lanes (queue, lane) VALUES (?, 4)", (file.queue,))
    file.now += 1_000
    append(file, [b"x"])
    file.raw.execute("UPDATE microbatch_ranges SET lane = 4")
    file.raw.execute(
        "UPDATE microbatch_lanes SET priority = 0, due = ?, first_id = 1 WHERE lane = 4",
        (file.now,),
    )
    file.now -= 1_000
    claim(file, size=1)
    settle(file, 1, [])
    file.write(lambda s: s.give_back(file.queue, file.consumer))
    head = file.raw.execute("SELECT due FROM microbatch_lanes WHERE lane = 4").fetchone()
    assert head == (file.now,)


def test_figures_are_right_with_thousands_of_priorities(file: File) -> None:
    """The oldest item may have the lowest one."""
    append(file, [b"old"])
    file.now += 100
    groups = [[NewItem(b"x", priority=n)] for n in range(1, 3_000)]
    file.write(lambda s: s.enqueue(file.queue, LIMITS, groups, None))
    queue, oldest, file_bytes = file.write(lambda s: s.stats(file.queue))
    assert oldest == file.now - 100
    assert queue.counts[State.READY] == 3_000
    assert file_bytes == scalar(file, "PRAGMA page_count") * 4_096
    claim(file, size=5_000)
    assert file.write(lambda s: s.stats(file.queue))[1] == file.now - 100


# What is kept


def test_little_that_is_needed_of_a_blob_is_written_anew_once(file: File) -> None:
    """One dead letter must not keep 64 KiB for as long as it lies there."""
    append(file, [b"x" * 100] * 100)
    claim(file)
    verdicts = [Verdict(n, State.DEAD, b"e") for n in (7, 8, 50)]
    settle(file, 1, [n for n in range(1, 101) if n not in (7, 8, 50)], None, verdicts)
    assert scalar(file, "SELECT length(payloads) FROM microbatch_blobs") == 10_000
    assert file.write(lambda s: s.tidy(file.queue)) is False
    assert scalar(file, "SELECT length(payloads) FROM microbatch_blobs") == 300
    letters = file.write(lambda s: s.dead_letters(file.queue, 0, 10))
    assert [(one.id, one.payload) for one in letters] == [(n, b"x" * 100) for n in (7, 8, 50)]
    file.statements.clear()
    file.write(lambda s: s.purge(file.queue, [7, 50]))
    assert scalar(file, "SELECT length(payloads) FROM microbatch_blobs") == 300
    file.write(lambda s: s.purge(file.queue, [8]))
    assert scalar(file, "SELECT count(*) FROM microbatch_blobs") == 0


def test_upkeep_looks_only_at_what_ended_since(file: File) -> None:
    """A hundred idle queues cost nothing."""
    append(file, [b"x"])
    claim(file)
    settle(file, 1, [1])
    file.write(lambda s: s.tidy(file.queue))
    file.statements.clear()
    assert file.write(lambda s: s.tidy(file.queue)) is False
    assert len(file.statements) == 1
    file.ids = None
    assert file.write(lambda s: s.tidy(file.queue)) is False


def test_a_lone_caller_s_items_are_one_row_when_done(file: File) -> None:
    """A thousand calls an hour would be a million rows in a month."""
    for number in range(1, 51):
        append(file, [b"x"])
        claim(file, number)
        settle(file, number, [number])
        file.now += 1.0
    assert scalar(file, "SELECT count(*) FROM microbatch_ranges") == 1


def test_retention_of_a_great_range_goes_by_ten_thousand_items(file: File) -> None:
    """Writers wait for one step at most."""
    for start in range(3):
        append(file, [b"x"] * 10_000)
        claim(file, start + 1, size=10_000)
        settle(file, start + 1, range(start * 10_000 + 1, start * 10_000 + 10_001), None)
    limits = Limits(keep_done=1)
    left = []
    while file.write(lambda s: s.prune(file.queue, limits)):
        left.append(file.write(lambda s: s.look(file.queue)).counts[State.DONE])
    assert left == [20_000, 10_000]
    assert file.write(lambda s: s.look(file.queue)).counts[State.DONE] == 1
    assert file.write(lambda s: s.find(file.queue, [29_999, 30_000]))[0].id == 30_000


def test_a_removed_result_takes_no_neighbour_along(file: File) -> None:
    """Results that were settled together lie in one row."""
    append(file, [b"x"] * 5)
    claim(file)
    settlement = Settlement(1, [1, 2, 3, 4, 5], [b"1", b"2", None, b"4", b"5"], [])
    file.write(lambda s: s.settle(file.queue, LIMITS, file.consumer, [settlement]))
    file.write(lambda s: s.purge(file.queue, [2, 4]))
    found = file.write(lambda s: s.find(file.queue, range(1, 6)))
    assert [(one.id, one.result) for one in found] == [(1, b"1"), (3, None), (5, b"5")]
    assert file.values("results", "results") == {1: b"1", 5: b"5"}


# Reading


def test_dead_letters_come_page_by_page(file: File) -> None:
    """A page may end and begin in the middle of a range."""
    append(file, [b"%d" % n for n in range(1, 11)])
    claim(file)
    settle(file, 1, [], None, [Verdict(n, State.DEAD, b"e%d" % n) for n in range(2, 10)])
    assert scalar(file, "SELECT count(*) FROM microbatch_ranges WHERE state = 7") == 1
    pages, after = [], 0
    while page := file.write(lambda s, after=after: s.dead_letters(file.queue, after, 3)):
        pages.append([one.id for one in page])
        assert all(one.payload == b"%d" % one.id and one.error == b"e%d" % one.id for one in page)
        after = page[-1].id
    assert pages == [[2, 3, 4], [5, 6, 7], [8, 9]]


def test_who_waits_is_told_what_ended_since(file: File) -> None:
    """Thousands of waiters ask for that, and not for each of theirs."""
    append(file, [b"x"] * 6)
    claim(file, size=2)
    claim(file, 2, size=2)
    settle(file, 1, [1, 2])
    before = file.write(lambda s: s.look(file.queue)).ended
    assert file.write(lambda s: s.ended_since(file.queue, before)) == []
    settle(file, 2, [3], None, [Verdict(4, State.DEAD)])
    file.write(lambda s: s.cancel(file.queue, LIMITS, 5))
    found = file.write(lambda s: s.ended_since(file.queue, before))
    numbers = {n for first, count in found for n in range(first, first + count)}
    assert {3, 4, 5} <= numbers
    assert 6 not in numbers


def test_a_ticket_is_its_own_item_s_only(file: File) -> None:
    """A restored backup gives the same ids to other items."""
    append(file, [b"x"])
    assert file.write(lambda s: s.cancel(file.queue, LIMITS, 1, None)) is None
    assert file.write(lambda s: s.cancel(file.queue, LIMITS, 1, 8)) is None
    assert file.write(lambda s: s.cancel(file.queue, LIMITS, 2)) is None
    assert file.write(lambda s: s.cancel(file.queue, LIMITS, 1, 7)) is True


def test_the_earlier_error_is_told_beside_the_death(file: File) -> None:
    """ "Process died" alone hides what the handler said before."""
    append(file, [b"x"])
    claim(file)
    from microbatch.durable._file.codec import encode_reason

    error = encode_reason("ValueError", "no such city")
    settle(file, 1, [], None, [Verdict(1, State.SCHEDULED, error, 0.0)])
    claim(file, 2)
    assert file.write(lambda s: s.take_back(file.queue, file.consumer, 2, [2])) == ([1], False)
    (found,) = file.write(lambda s: s.find(file.queue, [1]))
    assert found.attempts == 2
    for words in (b"ProcessDied", b"alone, once; attempts: 2", b"ValueError: no such city"):
        assert words in (found.error or b"")


def test_consumers_are_registered_placed_and_forgotten(file: File) -> None:
    """Their numbers are never used again: they are bytes of the lock file."""
    file.write(lambda s: s.place(file.consumer, "12:34"))
    assert [tuple(one) for one in file.write(lambda s: s.consumers())] == [
        (file.consumer, file.queue, "12:34", 1, "born")
    ]
    file.write(lambda s: s.forget(file.consumer))
    assert file.write(lambda s: s.register(file.queue, 2, None)) == file.consumer + 1


def test_what_a_consumer_holds_is_told_with_its_claims(file: File) -> None:
    """A look compares it with what it has in hand."""
    append(file, [b"x"] * 3)
    claim(file, 1, slots=2, size=2)
    held = file.write(lambda s: s.held(file.queue, file.consumer))
    assert [(one.first, one.count, one.claim) for one in held] == [(1, 2, 1), (3, 1, 2)]
    assert file.write(lambda s: s.give_back(file.queue, file.consumer, [2])) is False
    held = file.write(lambda s: s.held(file.queue, file.consumer))
    assert [one.claim for one in held] == [1]


def test_a_statement_for_many_gets_no_rows() -> None:
    """The next statement must not be taken for its answer."""
    raw = sqlite3.connect(":memory:")
    answers: list[Any] = []

    def steps() -> Any:
        yield "CREATE TABLE t (a)", (), False
        answers.append((yield "INSERT INTO t VALUES (?)", [(1,), (2,)], True))
        answers.append((yield "SELECT a FROM t", (), False))
        return "end"

    assert run(raw, steps()) == "end"
    assert answers == [None, [(1,), (2,)]]
    raw.close()


def test_thin_leaves_alone_what_is_not_there(file: File) -> None:
    """An id past the last blob, or without any."""
    assert run(file.raw, payloads.thin(5)) is False
    append(file, [b"x"])
    assert run(file.raw, payloads.thin(5)) is False
