"""Corners of one transaction: groups that go apart, keys and upkeep at their bounds, jobs' items."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import pytest
from session_model import File, shrink

from microbatch.durable._file import sql
from microbatch.durable._file.client import Want
from microbatch.durable._file.limits import Limits
from microbatch.durable._file.records import (
    Clash,
    Demand,
    NewItem,
    Range,
    Settlement,
    State,
    Verdict,
)
from microbatch.durable._file.session import run
from microbatch.durable._file.transaction import WriteTransaction
from microbatch.durable._file.view import View

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    from microbatch.durable._file.records import Step

LIMITS = Limits()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[File]:
    file = File(tmp_path / "q.db")
    file.queue = file.write(lambda s: s.queue("q")).id
    file.consumer = file.write(lambda s: s.register(file.queue, 1, "born"))
    yield file
    file.raw.close()


def append(file: File, content: list[bytes], demand: Demand | None = None) -> Any:
    return file.write(lambda s: s.append(file.queue, LIMITS, content, None, demand))


def enqueue(file: File, *groups: list[NewItem], limits: Limits = LIMITS) -> Any:
    return file.write(lambda s: s.enqueue(file.queue, limits, list(groups), None))[0]


def claim(file: File, number: int, slots: int = 1, size: int = 100) -> list[list[int]]:
    demand = Demand(file.consumer, number, slots, size)
    claims = file.write(lambda s: s.claim(file.queue, demand))[0]
    return [
        [n for one in each.ranges for n in range(one.first, one.first + one.count)]
        for each in claims
    ]


def settle(file: File, number: int, done: list[int], *verdicts: Verdict) -> Any:
    settlement = Settlement(number, done, [b"r"] * len(done), list(verdicts))
    return file.write(lambda s: s.settle(file.queue, LIMITS, file.consumer, [settlement]))


def take_back(file: File, *claims: int) -> Any:
    return file.write(lambda s: s.take_back(file.queue, file.consumer, 9, claims))


def test_a_range_reads_back_as_it_was_written_whichever_of_its_columns_are_null(file: File) -> None:
    """Each combination has a statement of its own: a value in the wrong column would be another item's fate."""
    combinations = product(
        [(None,) * 3, (4, 5, 6), (None, 5, 6), (4, None, None)],
        [(None,) * 2, (7, 8)],
        [None, "key"],
        [(None,) * 3, (2.0, 3.0, 9), (2.0, None, 9)],
    )
    written = [
        Range(n, 1, 1, 0, 3, 0, 0.5, 0.25, 1, 2, *held, n, *job, key, 1.0, *over)
        for n, (held, job, key, over) in enumerate(combinations, 1)
    ]
    view = View(file.path, 0.0, None, None, int)

    def write() -> Generator[Step, Any, None]:
        row = yield from view.row(file.queue)
        yield from view.replace(row, (), written)

    run(file.raw, write())
    rows = file.raw.execute(f"SELECT {sql.COLUMNS} FROM microbatch_ranges ORDER BY first_id")
    assert [Range(*values) for values in rows] == written


def test_a_group_that_went_apart_is_cut_to_the_batch_and_its_rest_is_next(file: File) -> None:
    """A worker with smaller batches than the dead one must not get more than it asked for."""
    append(file, [b"x"] * 100)
    claim(file, 1)
    take_back(file, 1)
    append(file, [b"later"])
    assert claim(file, 2, slots=5, size=4) == [[1, 2, 3, 4]]
    assert claim(file, 3, slots=5, size=6)[0] == [5, 6, 7, 8, 9, 10]
    # A second death: what is left of a group does not fall in with the parts of the other.
    take_back(file, 2)
    assert claim(file, 4, slots=3, size=4) == [[1], [2], [3]]


def test_a_group_of_two_ranges_that_went_apart_is_cut_between_them(file: File) -> None:
    """What is left of it must not be lost, though nothing of its second range was taken."""
    append(file, [b"x"] * 40)
    assert claim(file, 1, size=40) == [list(range(1, 41))]
    settle(file, 1, [2])
    take_back(file, 1)
    assert claim(file, 2, size=1) == [[1]]
    assert claim(file, 3, size=100) == [[3, 4, 5]]


def test_what_a_transaction_removes_twice_it_counts_once(file: File) -> None:
    """Who waits looks for what was removed when this number moves, and not more often."""
    append(file, [b"x"] * 4)
    claim(file, 1, size=4)
    settle(file, 1, [1, 2, 3, 4])

    def purge_twice(session: Any) -> Generator[Step, Any, Any]:
        first = yield from session.purge(file.queue, [1])
        second = yield from session.purge(file.queue, [3])
        return first, second, (yield from session.look(file.queue))

    first, second, queue = file.write(purge_twice)
    assert (first, second, queue.removed) == (1, 1, 1)


def test_who_waits_for_company_gets_only_full_calls(file: File) -> None:
    """Before `max_wait` is over three items are no batch of ten."""

    class Client:
        queue, consumer, want = file.queue, file.consumer, Want(1, 1, 10, 10)

        def has_waited(self, _: float) -> bool:
            return False

    client: Any = Client()
    append(file, [b"x"] * 3)

    def serve(session: Any) -> Generator[Step, Any, Any]:
        transaction = WriteTransaction(session, {file.queue})
        yield from transaction.claim(client)
        return transaction.served

    assert file.write(serve) == []
    append(file, [b"x"] * 9)
    ((_, _, claims),) = file.write(serve)
    assert [one.count for one in claims[0][0].ranges] == [3, 7]


def test_a_group_that_went_apart_keeps_to_the_bound_of_bytes(
    file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later version may have a smaller one."""
    append(file, [b"x" * 10] * 30)
    claim(file, 1)
    take_back(file, 1)
    monkeypatch.setattr("microbatch.durable._file.payloads.CLAIM_BYTES", 20)
    assert claim(file, 2, slots=5) == [[1, 2]]
    assert claim(file, 3, slots=5) == [[3], [4, 5]]


def test_a_group_may_come_back_from_two_ranges(file: File) -> None:
    """A tenth of a claim of lone items spans them; it is one claim again."""
    for _ in range(20):
        append(file, [b"x"])
        file.now += 1.0
    claim(file, 1)
    take_back(file, 1)
    assert claim(file, 2, slots=10, size=100) == [[n, n + 1] for n in range(1, 20, 2)]
    settle(file, 2, [1], Verdict(2, State.READY, counted=False))
    assert claim(file, 12) == [[2]]


def test_what_goes_apart_never_joins_others(file: File) -> None:
    """It may kill its process again: nobody else shall suffer for it, and it has its place in the order."""
    append(file, [b"x"] * 3)
    claim(file, 1)
    take_back(file, 1)
    enqueue(file, [NewItem(b"urgent", priority=1)])
    assert claim(file, 2, slots=3) == [[4], [1], [2]]
    heads = file.raw.execute("SELECT first_id FROM microbatch_lanes").fetchall()
    assert heads == [(3,)]


def test_the_short_way_leaves_what_it_has_no_slot_for(file: File) -> None:
    """The rest is ready for whoever comes."""
    demand = Demand(file.consumer, 1, 1, 2)
    assert len(append(file, [b"x"] * 5, demand).claims[0].payloads) == 2
    assert claim(file, 2) == [[3, 4, 5]]


def test_the_short_way_is_free_beside_what_is_not_due(file: File) -> None:
    """One delayed item must not send everything the long way."""
    enqueue(file, [NewItem(b"later", delay=5.0)])
    assert len(append(file, [b"x"], Demand(file.consumer, 1, 1, 2)).claims) == 1
    file.now += 6.0
    assert append(file, [b"x"], Demand(file.consumer, 2, 1, 2)).claims == []


def test_a_key_is_free_once_its_item_is_gone_or_its_time_is_over(file: File) -> None:
    """So a ticket always stands for an item."""
    ((first,),) = enqueue(file, [NewItem(b"a", "k")])
    assert enqueue(file, [NewItem(b"a", "k")]) == [[first._replace(repeated=True)]]
    (clash,) = enqueue(file, [NewItem(b"b", "k"), NewItem(b"c")])
    assert clash == Clash("k", first.id, 7, b"a")
    file.now += LIMITS.key_ttl + 1  # it waits still
    assert enqueue(file, [NewItem(b"a", "k")])[0][0].repeated
    claim(file, 1)
    settle(file, 1, [first.id])
    ((second,),) = enqueue(file, [NewItem(b"b", "k")])
    assert second.id != first.id
    file.write(lambda s: s.purge(file.queue, [first.id]))  # takes nobody else's key along
    assert enqueue(file, [NewItem(b"b", "k")])[0][0].id == second.id
    file.write(lambda s: s.cancel(file.queue, LIMITS, second.id))
    assert not enqueue(file, [NewItem(b"c", "k")])[0][0].repeated


def test_a_stale_key_is_nobody_s(file: File) -> None:
    """A file that was mended by hand: the key's item is not there."""
    enqueue(file, [NewItem(b"a", "k")])
    file.raw.execute("UPDATE microbatch_keys SET item = 99")
    assert enqueue(file, [NewItem(b"b", "k")])[0][0].repeated is False


def test_a_key_twice_in_one_transaction_is_one_item(file: File) -> None:
    """Two callers in the same group commit."""
    groups = [
        [NewItem(b"a", "k"), NewItem(b"a", "k")],
        [NewItem(b"a", "k")],
        [NewItem(b"b", "k")],
    ]
    one, two, three = enqueue(file, *groups)
    assert [each.id for each in one + two] == [1, 1, 1]
    assert [each.repeated for each in one + two] == [False, True, True]
    assert three == Clash("k", 1, 7, b"a")


def test_a_done_key_keeps_its_result_until_it_expires(file: File) -> None:
    """Who comes again with it gets that; `keep_done` and `result_ttl` leave it alone."""
    enqueue(file, [NewItem(b"a", "k")], [NewItem(b"b", "l")], [NewItem(b"c")])
    claim(file, 1)
    settle(file, 1, [1, 3], Verdict(2, State.SKIPPED, b"why"))
    tight = Limits(keep_done=0, result_ttl=0.0)
    assert file.write(lambda s: s.prune(file.queue, tight)) is False
    assert [one.id for one in file.write(lambda s: s.find(file.queue, [1, 2, 3]))] == [1, 2]
    file.now += LIMITS.key_ttl
    file.write(lambda s: s.prune(file.queue, tight))
    assert file.write(lambda s: s.find(file.queue, [1, 2, 3])) == []
    assert file.raw.execute("SELECT * FROM microbatch_keys").fetchall() == []
    assert file.values("blobs", "payloads") == {}


def test_keep_done_takes_a_keyed_item_whose_key_is_over(file: File) -> None:
    """It is kept for its result alone then, like all others."""
    enqueue(file, [NewItem(b"a", "k")], limits=Limits(key_ttl=1.0))
    claim(file, 1)
    settle(file, 1, [1])
    file.now += 2.0
    file.write(lambda s: s.prune(file.queue, Limits(keep_done=0)))
    assert file.write(lambda s: s.find(file.queue, [1])) == []


def test_keep_dead_removes_the_first_ones(file: File) -> None:
    """By id, as they are listed."""
    append(file, [b"x"] * 5)
    claim(file, 1)
    settle(file, 1, [], *[Verdict(n, State.DEAD, b"e") for n in range(1, 6)])
    file.write(lambda s: s.prune(file.queue, Limits(keep_dead=2)))
    letters = file.write(lambda s: s.dead_letters(file.queue, 0, 9))
    assert [one.id for one in letters] == [4, 5]
    assert file.raw.execute("SELECT id FROM microbatch_errors").fetchall() == [(4,), (5,)]


def test_a_jobs_items_are_left_alone_by_hand_and_by_count(file: File) -> None:
    """They go with their job."""
    append(file, [b"x"] * 3)
    claim(file, 1)
    settle(file, 1, [1], Verdict(2, State.DEAD, b"e"), Verdict(3, State.SKIPPED))
    file.raw.execute("UPDATE microbatch_ranges SET job = 1")
    assert file.write(lambda s: s.purge(file.queue, [1, 2, 3])) == 0
    assert file.write(lambda s: s.requeue(file.queue, [2])) == 0
    assert file.write(lambda s: s.prune(file.queue, Limits(keep_done=0, keep_dead=0))) is False
    assert file.write(lambda s: s.look(file.queue)).counts[State.DONE] == 1


def test_only_the_claim_that_is_named_is_settled(file: File) -> None:
    """A stale settle hits nothing."""
    append(file, [b"x"] * 2)
    claim(file, 1, size=1)
    claim(file, 2, size=1)
    assert settle(file, 1, [1, 2]) == {1}
    assert settle(file, 1, [1]) == set()
    assert settle(file, 2, [77]) == set()
    found = file.write(lambda s: s.find(file.queue, [1, 2]))
    assert [one.state for one in found] == [State.DONE, State.CLAIMED]


def test_a_key_of_another_item_says_nothing_of_how_long_this_one_is_kept(file: File) -> None:
    """A requeued item's key may be another's by now."""
    enqueue(file, [NewItem(b"a", "k")])
    claim(file, 1)
    file.raw.execute("UPDATE microbatch_keys SET item = 99, expires = 1e12")
    settle(file, 1, [1])
    (one,) = file.ranges()
    assert one.keep_until == file.now + LIMITS.result_ttl


def test_large_claims_are_taken_back_in_steps(file: File) -> None:
    """Each holds the write lock for some milliseconds."""
    append(file, [b"x"] * 12_000)
    for number in range(1, 4):
        claim(file, number, size=6_000)
    append(file, [b"x"] * 5)
    claim(file, 3)
    steps = 0
    more = True
    while more:
        _, more = file.write(lambda s: s.take_back(file.queue, file.consumer, 9))
        steps += 1
    assert steps == 2
    assert file.write(lambda s: s.held(file.queue, file.consumer)) == []


def test_what_is_staged_goes_in_steps(file: File) -> None:
    """A million staged items of a dead process are no single transaction."""
    for part in (1, 2):
        items = [NewItem(b"x")] * 10_000
        file.write(lambda s, p=part, i=items: s.stage(file.queue, LIMITS, i, file.consumer, p))
    assert file.write(lambda s: s.drop_staged(file.queue, file.consumer, claim=1)) is False
    file.write(
        lambda s: s.stage(file.queue, LIMITS, [NewItem(b"y", priority=n) for n in range(5)], file.consumer, 3)
    )  # fmt: skip
    left = []
    while file.write(lambda s: s.drop_staged(file.queue, file.consumer, 2)):
        left.append(file.write(lambda s: s.look(file.queue)).counts[State.STAGED])
    assert left == [5, 3, 1]
    assert file.values("blobs", "payloads") == {}


def test_upkeep_goes_through_much_that_ended_in_steps(
    file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where one transaction ended more ranges than a step looks at."""
    shrink(monkeypatch)
    for number in range(1, 13):
        append(file, [b"x"])
        claim(file, number)
        settle(file, number, [number])
        file.now += 20_000.0  # too far apart to be merged
    enqueue(file, *[[NewItem(b"x", priority=n)] for n in range(6)])
    claim(file, 20)
    settle(file, 20, list(range(13, 19)))
    steps = 1
    while file.write(lambda s: s.tidy(file.queue)):
        steps += 1
    assert steps > 3
    assert file.write(lambda s: s.look(file.queue)).counts[State.DONE] == 18


def test_many_runs_are_merged_by_upkeep(file: File) -> None:
    """A settle looks at the neighbours of so many runs only."""
    append(file, [b"x"] * 100)
    claim(file, 1, size=100)
    settle(file, 1, list(range(1, 101, 2)))
    settle(file, 1, list(range(2, 101, 2)))
    while file.write(lambda s: s.tidy(file.queue)):
        pass
    assert len(file.ranges()) == 1


def test_a_paused_queue_is_paused_once(file: File) -> None:
    """A second call writes nothing."""
    file.write(lambda s: s.pause(file.queue, paused=True))
    file.statements.clear()
    file.write(lambda s: s.pause(file.queue, paused=True))
    assert len(file.statements) == 1
    append(file, [b"x"])
    assert claim(file, 1) == []


def test_a_transaction_may_do_many_things(file: File) -> None:
    """Settle, claim and enqueue of one queue are one transaction: each sees what the others did."""

    def work(session: Any) -> Any:
        queue = file.queue
        assert session.now == file.now
        demand = Demand(file.consumer, 1, 1, 2)
        yield from session.append(queue, LIMITS, [b"a", b"b", b"c", b"d"], None, None)
        yield from session.claim(queue, demand)
        verdicts = [Verdict(1, State.READY, counted=False)]
        yield from session.settle(
            queue, LIMITS, file.consumer, [Settlement(1, [2], [None], verdicts)]
        )
        claims, row = yield from session.claim(queue, demand._replace(claim=2))
        assert [one.payloads for one in claims] == [[b"a", b"c"]]
        assert (yield from session.look(queue)) == row
        yield from session.cancel(queue, LIMITS, 4)
        yield from session.give_back(queue, file.consumer)
        yield from session.pause(queue, paused=True)

    file.write(work)
    row = file.write(lambda s: s.look(file.queue))
    assert (row.paused, row.ended, row.depth) == (True, 1, 2)
    assert {s: n for s, n in zip(State, row.counts, strict=True) if n} == {
        State.READY: 2, State.DONE: 1, State.CANCELLED: 1,
    }  # fmt: skip
