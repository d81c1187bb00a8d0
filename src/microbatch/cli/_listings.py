"""``items``, ``show`` and ``dead``: what a queue holds, with payloads as built-in values."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from microbatch.durable.inspection import STATE_NAMES

from ._arguments import add_file, add_queue, whole_from
from ._command import DONE, Command
from ._jsonable import item_fields, json_text
from ._opening import chosen_queue, inspect
from ._wording import count_text, safe_lines, safe_text, time_text

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from microbatch.durable.inspection import StoredItem

    from ._console import Console

#: Characters of a payload, and of an error, in a table.
_PAYLOAD_SHOWN = 60
_ERROR_SHOWN = 80

_DEAD = STATE_NAMES["dead"]


def _run_items(args: argparse.Namespace, console: Console) -> int:
    with inspect(args, console) as inspection:
        queue = chosen_queue(inspection, args.queue)
        states = [] if args.state is None else [STATE_NAMES[args.state]]
        found = inspection.items(queue, states, args.limit)
        if console.json:
            for one in found:
                console.object(item_fields(queue, one))
            return DONE
        shown = list(found)
    if not shown:
        console.line("no items")
        return DONE
    cells = [
        [str(one.id), one.state, str(one.attempts), time_text(one.enqueued_at), _payload_of(one), _why(one)]
        for one in shown
    ]  # fmt: skip
    console.table(("ID", "STATE", "TRIES", "ENQUEUED", "ITEM", "ERROR"), cells, "rlrlll")
    return _bounded(console, shown, args.limit)


def _run_dead(args: argparse.Namespace, console: Console) -> int:
    with inspect(args, console) as inspection:
        queue = chosen_queue(inspection, args.queue)
        found = inspection.items(queue, [_DEAD], args.limit)
        if console.json:
            for one in found:
                console.object(item_fields(queue, one))
            return DONE
        shown = list(found)
    if not shown:
        console.line("no dead letters")
        return DONE
    cells = [
        [str(one.id), str(one.attempts), time_text(one.ended_at), _code_of(one), _payload_of(one), _why(one)]
        for one in shown
    ]  # fmt: skip
    console.table(("ID", "TRIES", "DIED", "CODE", "ITEM", "ERROR"), cells, "rrllll")
    codes = Counter(map(_code_of, shown))
    console.line()
    for code, count in sorted(codes.items(), key=lambda one: (-one[1], one[0])):
        console.line(f"{count_text(count, 'item')} of code {code}")
    return _bounded(console, shown, args.limit)


def _bounded(console: Console, shown: Sequence[StoredItem], limit: int) -> int:
    if len(shown) == limit:
        console.note(f"the first {limit}; --limit shows more")
    return DONE


def _code_of(one: StoredItem) -> str:
    return "-" if one.error is None else safe_text(one.error.code)


def _payload_of(one: StoredItem) -> str:
    if one.item is None and one.state in ("done", "skipped"):
        return "-"  # no longer kept
    return safe_text(json_text(one.item), _PAYLOAD_SHOWN)


def _why(one: StoredItem) -> str:
    if one.error is None:
        return "-"
    return safe_text(f"{one.error.kind}: {one.error.message}", _ERROR_SHOWN)


def _run_show(args: argparse.Namespace, console: Console) -> int:
    with inspect(args, console) as inspection:
        queue = chosen_queue(inspection, args.queue)
        one = inspection.item(queue, args.id)
    if console.json:
        console.object(item_fields(queue, one))
        return DONE
    console.line(f"item {one.id} of queue {safe_text(queue)}: {one.state}")
    facts = [
        ("key", None if one.key is None else safe_text(one.key)),
        ("priority", str(one.priority)),
        ("tries", str(one.attempts)),
        ("enqueued", time_text(one.enqueued_at)),
        ("due", None if one.due_at is None else time_text(one.due_at)),
        ("ended", None if one.ended_at is None else time_text(one.ended_at)),
        ("item", safe_text(json_text(one.item))),
    ]
    for name, value in facts:
        if value is not None:
            console.line(f"  {name:<9} {value}")
    if one.error is not None:
        console.line(f"  {'error':<9} {safe_text(one.error.kind)}: {safe_text(one.error.message)}")
        console.line(f"  {'code':<9} {safe_text(one.error.code)}")
        if one.error.traceback:
            console.line()
            console.line(safe_lines(one.error.traceback))
    return DONE


def _listing_arguments(parser: argparse.ArgumentParser) -> None:
    add_file(parser)
    add_queue(parser)
    parser.add_argument(
        "--limit",
        type=whole_from(1),
        default=100,
        metavar="N",
        help="how many at most, the lowest ids first (100)",
    )


def _items_arguments(parser: argparse.ArgumentParser) -> None:
    _listing_arguments(parser)
    parser.add_argument("--state", choices=list(STATE_NAMES), help="only those in this state")


def _show_arguments(parser: argparse.ArgumentParser) -> None:
    add_file(parser)
    parser.add_argument("id", metavar="ID", type=int, help="the item's id")
    add_queue(parser)


COMMANDS = (
    Command(
        "items",
        "List the items of a queue, with their payloads and last errors.",
        "microbatch items shop.db --state scheduled",
        _items_arguments,
        _run_items,
        "Payloads are shown as JSON, whatever type the application gives them. Of items that were done the "
        "payload may be gone.",
    ),
    Command(
        "show",
        "Show one item with all its fields and the traceback of its last error.",
        "microbatch show shop.db 2",
        _show_arguments,
        _run_show,
    ),
    Command(
        "dead",
        "List the dead letters of a queue with their errors, and count them by code.",
        "microbatch dead shop.db",
        _listing_arguments,
        _run_dead,
    ),
)
