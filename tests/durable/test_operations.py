"""What the pages tell an operator to do, and that they name what there is."""

from __future__ import annotations

import ast
import asyncio
import os
import re
import sqlite3
from pathlib import Path

import pytest
from durable_support import Handler, batcher, check_counts, execute, states, until

from microbatch.durable import DurableQueue, UnknownTicket
from microbatch.durable._file.records import State
from microbatch.durable._file.schema import SCHEMA_VERSION

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/how-to/durable.md"
pytestmark = pytest.mark.anyio


def own_tests() -> set[str]:
    """Every test function of this folder, as `file.py::name`."""
    return {
        f"{path.name}::{node.name}"
        for path in Path(__file__).parent.glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }


def test_every_test_that_the_pages_name_exists():
    """What survives what is worth as much as the test that proves it."""
    tests = own_tests()
    guarantees = (ROOT / "docs/reference/guarantees.md").read_text(encoding="utf-8")
    named = re.findall(r"tests/durable/(test_\w+\.py::test_\w+)", guarantees)
    assert len(named) > 10
    assert set(named) <= tests
    bare = set(re.findall(r"`(test_\w+)`", PAGE.read_text(encoding="utf-8")))
    assert bare <= {test.partition("::")[2] for test in tests}


def test_the_page_on_upgrading_names_the_schema_that_a_file_gets():
    """Who reads it looks the number up in the file."""
    page = (ROOT / "docs/how-to/upgrading.md").read_text(encoding="utf-8")
    assert f"to schema {SCHEMA_VERSION}." in page


def test_the_chart_shows_every_state_and_no_other():
    """The page's numbers are the file's."""
    text = PAGE.read_text(encoding="utf-8")
    chart = re.search(r"```mermaid\n(.*?)```", text, re.DOTALL)[1]
    shown = set(re.findall(r"^ +(\w+) -->", chart, re.MULTILINE))
    assert shown == {state.name.lower() for state in State}
    numbers = re.search(r"with states (.*?)[.;]", text.replace("\n", " "))[1]
    assert numbers == ", ".join(f"{state.value} {state.name.lower()}" for state in State)


async def test_the_pages_statements_show_what_is_there(path):
    """On a file that is being worked on."""
    handler = Handler()
    handler.hold()
    async with batcher(path, handler, max_batch_size=2) as durable:
        await durable.enqueue_many([1, 2])
        await until(lambda: handler.batches)
        await durable.enqueue(3, key="three")
        (page,) = re.findall(r"```sql\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
        reader = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
        counts, working, coming = (
            reader.execute(statement).fetchall() for statement in page.split(";")[:3]
        )
        reader.close()
        handler.free.set()
    assert counts == [("default", 0, 1, 0, 2, 0, 0)]
    assert [row[1:3] for row in working] == [(os.getpid(), 2)]
    assert [row[4:] for row in coming] == [("three", "03")]


async def test_a_backup_can_be_made_while_everything_runs(path, tmp_path):
    """It is the file as it was between two transactions, and a queue like any other."""
    backup = tmp_path / "backup.db"
    async with batcher(path, Handler(), max_batch_size=5) as durable:
        await asyncio.gather(*(durable.enqueue(number) for number in range(20)))
        writing = [asyncio.ensure_future(durable.enqueue(100 + number)) for number in range(50)]
        await asyncio.to_thread(execute, path, f"VACUUM INTO '{backup}'")
        later = await asyncio.gather(*writing)
        last = await durable.enqueue(1)
    check_counts(backup)
    handler = Handler()
    async with batcher(backup, handler) as restored:
        await until(lambda: _empty(restored))
        assert set(states(backup).values()) == {"done"}
        with pytest.raises(UnknownTicket):
            await restored.result(last)
    assert len(later) == 50


async def _empty(durable):
    return (await durable.stats()).depth == 0


async def test_a_file_can_be_moved_when_every_process_has_closed_it(path, tmp_path):
    """Nothing of it is elsewhere; the lock file may stay behind, or go."""
    async with DurableQueue(path, item_type=int) as queue:
        ticket = await queue.enqueue(1)
    async with batcher(path, Handler(), queue="other"):
        pass
    assert sorted(p.name for p in path.parent.iterdir()) == ["queue.db", "queue.db-alive"]
    (tmp_path / "new").mkdir()
    moved = path.rename(tmp_path / "new" / "moved.db")
    path.with_name("queue.db-alive").unlink()
    async with batcher(moved, Handler()) as durable:
        assert await durable.result(ticket, 20) == 2


async def test_a_stream_of_urgent_items_goes_before_all_others(path):
    """Priority is strict, as the page says: nothing ages."""
    order = []

    async def handler(items):
        order.extend(items)
        if len(order) < 20:
            await durable.enqueue(len(order), priority=1)
        return items

    async with batcher(path, handler, max_batch_size=1) as durable:
        await durable.pause()
        waiting = await durable.enqueue(-1)
        await durable.enqueue(0, priority=1)
        await durable.resume()
        await durable.result(waiting, 20)
    assert order == [*range(20), -1]
