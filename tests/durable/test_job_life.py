"""A job's life, transition by transition; its outcome, its codes and its pace, by example and by law."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from session_model import File

from microbatch import Skipped
from microbatch._pure.report import outcome_of as outcome_in_memory
from microbatch.durable._file import job_life, job_sql
from microbatch.durable._file.job_life import (
    FOLLOWING,
    Counts,
    Event,
    JobLife,
    Pace,
    add_codes,
    job_outcome,
    rate_of,
)
from microbatch.durable._file.job_records import NewJob
from microbatch.durable._file.limits import Limits
from microbatch.durable._file.session import Session, run
from microbatch.durable.errors import ItemCancelled, ItemExpired, ItemFailed

#: What follows, written down once more, by hand: who changes the table changes this too.
WANTED = {
    "staged": {"shown": "queued", "abandoned": "going"},
    "queued": {"began": "running", "stopped": "cancelling", "finished": "ended"},
    "running": {"stopped": "cancelling", "finished": "ended"},
    "cancelling": {"finished": "ended"},
    "ended": {"deleted": "going"},
    "going": {},
}


@pytest.mark.parametrize(("life", "event"), list(itertools.product(JobLife, Event)))
def test_every_transition_is_what_is_wanted(life: JobLife, event: Event) -> None:
    """No other event changes a life: an ended job stays ended, whoever cancels it."""
    wanted = WANTED[life.name.lower()].get(event.name.lower())
    found = FOLLOWING.get((life, event))
    assert (found and found.name.lower()) == wanted


@pytest.mark.parametrize(("life", "event"), list(itertools.product(JobLife, Event)))
def test_the_statements_do_what_the_table_says(file, life: JobLife, event: Event) -> None:
    """They are made of it: one that moved another life too would change what has ended."""

    def make(session: Session):
        begun = yield from session.jobs.begin(file.queue, NewJob("u"), 1, Limits())
        return begun.number

    job = file.write(make)
    file.raw.execute("UPDATE microbatch_jobs SET life = ? WHERE id = ?", (int(life), job))
    values = {"job": job, "now": 5.0, "total": 1, "state": 5, "outcome": "succeeded"}
    rows = run(file.raw, iter_steps(job_sql.MOVE[event], values))
    ((after,),) = file.raw.execute("SELECT life FROM microbatch_jobs WHERE id = ?", (job,))
    assert after == FOLLOWING.get((life, event), life)
    assert bool(rows) == ((life, event) in FOLLOWING)


def iter_steps(statement: str, values: dict[str, object]):
    return (yield statement, values, False)


@pytest.fixture
def file(tmp_path):

    file = File(tmp_path / "q.db")
    file.queue = file.write(lambda session: session.queue("q")).id
    yield file
    file.raw.close()


@pytest.mark.parametrize(
    ("tally", "outcome"),
    [
        (Counts(), "succeeded"),
        (Counts(succeeded=3), "succeeded"),
        (Counts(succeeded=1, skipped=1), "succeeded"),
        (Counts(skipped=2), "succeeded"),
        (Counts(succeeded=1, failed=1), "partially_succeeded"),
        (Counts(skipped=1, failed=1), "partially_succeeded"),
        (Counts(failed=2), "failed"),
        (Counts(failed=2, expired=1), "expired"),
        (Counts(succeeded=5, expired=1), "expired"),
        (Counts(succeeded=5, failed=1, expired=1, cancelled=1), "cancelled"),
        (Counts(cancelled=1), "cancelled"),
    ],
)
def test_the_outcome_follows_from_the_counts(tally: Counts, outcome: str) -> None:
    """Cancelled before expired before failed: what somebody did comes before what happened."""
    assert job_outcome(tally) == outcome


def test_codes_are_counted_up_to_a_bound() -> None:
    """A handler that makes a code of each item's text must not make a row of any length."""
    many = {f"code-{n}": 1 for n in range(150)}
    found = add_codes({}, many)
    assert len(found) == job_life.CODES_MAX + 1
    assert found["other"] == 50
    again = add_codes(found, {"code-1": 4, "code-149": 1, "x" * 500: 1})
    assert again["code-1"] == 5
    assert again["other"] == 52
    assert len(again) == len(found)
    assert add_codes({}, {"x" * 500: 2}) == {"x" * 100: 2}


@given(st.lists(st.dictionaries(st.text(max_size=3), st.integers(1, 9), max_size=9), max_size=40))
def test_no_error_is_lost_among_the_codes(found: list[dict[str, int]]) -> None:
    """Whatever they are called, there are as many as failed."""
    counted: dict[str, int] = {}
    for more in found:
        counted = add_codes(counted, more)
    assert sum(counted.values()) == sum(sum(more.values()) for more in found)
    assert len(counted) <= job_life.CODES_MAX + 1


def test_the_rate_is_that_of_late() -> None:
    """It does not fall while a batch takes its usual time, and does once nothing has ended for long."""
    pace = Pace(before_at=100.0, before_done=50, last_at=110.0, done=150)
    assert rate_of(pace, 110.0) == 10.0
    assert rate_of(pace, 119.0) == 10.0
    assert rate_of(pace, 130.0) == pytest.approx(100 / 30)
    assert rate_of(pace._replace(done=50), 111.0) == 0.0
    assert rate_of(pace._replace(last_at=100.0), 111.0) == 0.0


def test_an_outcome_says_how_its_item_ended() -> None:
    """One word to filter by, the same in memory and of a job's items."""
    errors = [ValueError(), Skipped("known"), ItemCancelled(7), ItemExpired(7)]
    outcomes = [outcome_in_memory(0, 1), *(outcome_in_memory(1, error) for error in errors)]
    kinds = ["succeeded", "failed", "skipped", "cancelled", "expired"]
    assert [one.kind for one in outcomes] == kinds


def test_the_code_of_a_stored_error_is_that_of_the_first_one() -> None:
    """What is counted after a restart must be what was counted before it."""
    stored = ItemFailed(1, "ItemError", "no", 1, code="bad_row")
    assert outcome_in_memory(0, stored).code == "bad_row"
    assert outcome_in_memory(0, ItemFailed(1, "OSError", "no", 1)).code == "internal_error"
