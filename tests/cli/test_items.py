"""``items``, ``show`` and ``dead``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import msgspec
from cli_support import fill, sql, work_off

from microbatch.durable import DurableQueue

if TYPE_CHECKING:
    from pathlib import Path


class Order(msgspec.Struct):
    number: int
    name: str = "tea"


def test_items_are_shown_as_built_in_values_whatever_their_type(
    path: Path, microbatch: Any
) -> None:
    """Who looks at three in the morning has not the application's types at hand."""

    async def make() -> None:
        async with DurableQueue(path, item_type=Order, telemetry=False) as queue:
            await queue.enqueue(Order(7, "mint"), key="k", priority=2, delay=1000)

    anyio.run(make)
    one = microbatch("items", path, "--json").object
    times = {one.pop("enqueued_at")[-6:], one.pop("due_at")[-6:]}
    assert times == {"+00:00"}
    assert one == {
        "id": 1, "queue": "default", "state": "scheduled", "key": "k", "priority": 2,
        "item": {"number": 7, "name": "mint"}, "attempts": 0, "ended_at": None, "code": None, "error": None,
    }  # fmt: skip
    line = microbatch("items", path).out.splitlines()[1]
    assert line.split()[:3] == ["1", "scheduled", "0"]
    assert '{"number":7,"name":"mint"}' in line


def test_items_by_state_and_limit(path: Path, microbatch: Any) -> None:
    """By id, across the bounds of ranges; the note says that there are more."""
    work_off(path, [1, 13, 2, 13, 3])
    fill(path, list(range(2500)))
    assert [
        one["id"] for one in microbatch("items", path, "--state", "dead", "--json").objects
    ] == [2, 4]
    ready = microbatch("items", path, "--state", "ready", "--limit", 2100, "--json").objects
    assert [one["item"] for one in ready] == list(range(2100))
    shown = microbatch("items", path, "--limit", 3)
    assert [line.split()[1] for line in shown.out.splitlines()[1:]] == ["done", "dead", "done"]
    assert shown.err == "microbatch: the first 3; --limit shows more\n"
    assert microbatch("items", path, "--state", "expired").out == "no items\n"


def test_dead_letters_with_what_they_died_of(path: Path, microbatch: Any) -> None:
    """The codes at the end tell whether it is one cause or many."""
    work_off(path, [13, {"a": 1}, 13])
    shown = microbatch("dead", path).out.splitlines()
    assert "thirteen is refused" in shown[1]
    assert shown[-2:] == ["2 items of code unlucky", "1 item of code internal_error"]
    first = microbatch("dead", path, "--json").objects[0]
    assert (first["code"], first["error"]["type"], first["attempts"]) == ("unlucky", "ItemError", 1)
    assert microbatch("dead", path, "--limit", 1).err.startswith("microbatch: the first 1")


def test_show_tells_all_of_one_item(path: Path, microbatch: Any) -> None:
    """With the traceback that the file has of its last error."""
    work_off(path, [13, None])
    shown = microbatch("show", path, 1)
    assert shown.out.splitlines()[0] == "item 1 of queue default: dead"
    assert "  error     ItemError: thirteen is refused" in shown.out.splitlines()
    one = microbatch("show", path, 2).out
    assert "TypeError" in one
    assert "Traceback" in one
    assert microbatch("show", path, 1, "--json").object["code"] == "unlucky"


def test_an_unknown_id_is_said_in_one_line(path: Path, microbatch: Any) -> None:
    """Exit code 1, as for other things that are not as hoped."""
    fill(path, [1])
    for number in (2, 0, 2**70):
        shown = microbatch("show", path, number)
        assert (shown.code, shown.out) == (1, "")
        assert shown.err.startswith(f"microbatch: queue 'default' has no item {number}")
        assert shown.err.count("\n") == 1


def test_no_payload_can_give_orders_to_the_terminal(path: Path, microbatch: Any) -> None:
    """A queue holds what strangers sent."""
    fill(path, ["\x1b[2J\x07\u202e\x9b31m", b"\x00\xff", {"\x1b": float("nan")}])
    for name in (["items"], ["show", 1]):
        out = microbatch(name[0], path, *name[1:]).out
        assert all(c.isprintable() or c == "\n" for c in out)
    assert microbatch("items", path, "--json").objects[1]["item"] == "AP8="


def test_a_payload_that_is_no_messagepack_is_shown_as_bytes(path: Path, microbatch: Any) -> None:
    """A look at a damaged item is no reason to fall."""
    fill(path, ["abc"])
    sql(path, "UPDATE microbatch_blobs SET payloads = x'c1c1c1c1'")
    assert microbatch("show", path, 1, "--json").object["item"] == "wcHBwQ=="


def test_a_payload_that_is_no_longer_kept_is_a_dash(path: Path, microbatch: Any) -> None:
    """Nobody needs that of an item that was done."""
    work_off(path, [1])
    sql(path, "DELETE FROM microbatch_blobs")
    assert microbatch("items", path).out.splitlines()[1].split()[-2:] == ["-", "-"]
    assert microbatch("show", path, 1, "--json").object["item"] is None
