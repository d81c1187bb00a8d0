"""The examples with PostgreSQL, each against a server that the tests start."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from examples_support import output_of
from support import ENVIRONMENT

from benchmarks import servers

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """A PostgreSQL server of the test's own."""
    if servers.postgres_programs() is None:
        pytest.skip("PostgreSQL's initdb is not on this machine")
    with servers.postgres() as url:
        yield url


def test_reading_by_id_asks_once_for_many_and_once_for_each_id(postgres, tmp_path):
    """The dataloader case: equal ids share a slot, a missing row fails only who asked for it."""
    printed = output_of("read_by_id.py", postgres, folder=tmp_path)
    alone, batched = printed.splitlines()
    assert alone.split()[3:5] == ["10,000", "queries"]
    assert int(batched.split()[1]) <= 10
    answers = re.findall(r"Counter\((.*)\)", printed)
    assert answers[0] == answers[1]
    assert re.fullmatch(r"{'right': 9\d{3}, 'missing': \d+}", answers[0])


def test_the_web_service_answers_after_the_row_is_written(postgres, tmp_path):
    """Every answered request is a row once the application has been stopped, with and without batching."""
    printed = output_of("serve_inserts.py", postgres, "0.5", folder=tmp_path)
    head, single, batched, counts = printed.splitlines()
    assert head.split() == ["requests/s", "p50", "p99", "waits", "for", "a", "connection"]
    assert [single.split()[0], batched.split()[0]] == ["/single", "/batched"]
    assert batched.split()[-1] == "0"  # there is a connection for each slot
    answered, written = re.fullmatch(
        r"([\d,]+) requests answered, ([\d,]+) rows written", counts
    ).groups()
    assert answered == written


def test_a_pool_smaller_than_the_slots_is_seen(postgres, tmp_path, monkeypatch):
    """So the 0 above means something: with one connection for two slots batches wait."""
    monkeypatch.setitem(ENVIRONMENT, "POOL", "1")
    printed = output_of("serve_inserts.py", postgres, "0.5", folder=tmp_path)
    assert int(printed.splitlines()[2].split()[-1].replace(",", "")) > 0


def test_inserts_take_a_statement_a_batch_and_each_caller_gets_its_own_id(postgres, tmp_path):
    """One statement for a hundred rows, whichever driver writes it; ids that are mixed up would be worse than slow."""
    printed = output_of("insert_returning.py", postgres, folder=tmp_path)
    found = re.findall(r"^(\w+) +([\d,]+) statements .* own id: ([\d,]+)$", printed, re.MULTILINE)
    assert found == [("each", "2,000", "2,000"), ("unnest", "20", "2,000"), ("SQLAlchemy", "20", "2,000")]  # fmt: skip


def test_an_api_keeps_its_users_in_postgresql_too(postgres, tmp_path):
    """The same statements on another database: what is printed does not differ."""
    printed = output_of("users_api.py", "2000", postgres, folder=tmp_path)
    assert printed == output_of("users_api.py", "2000", folder=tmp_path)
