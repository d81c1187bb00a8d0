"""``doctor``: what is wrong with a file, what it means, and what to do."""

from __future__ import annotations

import dataclasses
import sqlite3
import time
from typing import TYPE_CHECKING

from microbatch.durable import QueueCorrupt
from microbatch.durable._file.schema import SQLITE_MINIMUM

from ._arguments import add_file, seconds_from
from ._command import DONE, FOUND, Command
from ._findings import (
    Finding,
    consumer_findings,
    dead_findings,
    library_findings,
    log_findings,
    page_findings,
    permission_findings,
    queue_findings,
)
from ._opening import chosen_queue, inspect
from ._wording import count_text, safe_text

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from microbatch.durable.inspection import ConsumerLook, Inspection

    from ._console import Console


def _run_doctor(args: argparse.Namespace, console: Console) -> int:
    if sqlite3.sqlite_version_info < SQLITE_MINIMUM:
        found = list(library_findings(set()))
    else:
        with inspect(args, console) as inspection:
            found = list(_examine(inspection, args))
    problems = sum(one.level == "problem" for one in found)
    found.sort(key=lambda one: one.level != "problem")
    for one in found:
        if console.json:
            console.object(dataclasses.asdict(one))
        else:
            _show_finding(console, one)
    if not console.json:
        notes = count_text(len(found) - problems, "note")
        console.line(f"{count_text(problems, 'problem')}, {notes}" if found else "nothing found")
    return FOUND if problems else DONE


def _show_finding(console: Console, one: Finding) -> None:
    where = "" if one.queue is None else f"queue {safe_text(one.queue)}: "
    console.line(f"{one.level}: {where}{safe_text(one.message)}")
    console.line(f"  it means: {safe_text(one.meaning)}")
    console.line(f"  do this:  {safe_text(one.action)}")


def _examine(inspection: Inspection, args: argparse.Namespace) -> Iterator[Finding]:
    yield from permission_findings(inspection.path, immutable=inspection.immutable)
    damaged = list(page_findings(inspection))
    yield from damaged
    try:
        yield from _examine_queues(inspection, args)
    except QueueCorrupt:
        if not damaged:
            raise


def _examine_queues(inspection: Inspection, args: argparse.Namespace) -> Iterator[Finding]:
    names = list(inspection.queues())
    if args.queue is not None:
        names = [chosen_queue(inspection, args.queue)]
    looks = {name: {one.id: [one] for one in inspection.consumers(name)} for name in names}
    if any(one.held for seen in looks.values() for (one,) in seen.values()):
        time.sleep(args.interval)  # only what is held then too, unmoved, is held for long
    for name in names:
        for one in inspection.consumers(name):
            looks[name].setdefault(one.id, []).append(one)
    now = time.time()
    log = 0
    for name in names:
        stats = inspection.stats(name)
        log = stats.wal_bytes
        yield from queue_findings(inspection, name, stats, now)
        yield from dead_findings(inspection, name, stats)
        yield from consumer_findings(name, stats, looks[name], args.held, now)
    yield from log_findings(inspection, log)
    yield from library_findings(_pids(looks))


def _pids(looks: dict[str, dict[int, list[ConsumerLook]]]) -> set[int]:
    return {seen[-1].pid for ones in looks.values() for seen in ones.values() if seen[-1].alive}


def _doctor_arguments(parser: argparse.ArgumentParser) -> None:
    add_file(parser)
    parser.add_argument("--queue", metavar="NAME", help="check only this queue, and the file")
    parser.add_argument(
        "--held",
        type=seconds_from(0),
        default=60.0,
        metavar="SECONDS",
        help="seconds after which items count as held for long (60)",
    )
    parser.add_argument(
        "--interval",
        type=seconds_from(0),
        default=1.0,
        metavar="SECONDS",
        help="seconds between two looks at held items (1.0)",
    )


COMMANDS = (
    Command(
        "doctor",
        "Find what is wrong with a file; say what it means and what to do.",
        "microbatch doctor shop.db",
        _doctor_arguments,
        _run_doctor,
        "It reads the whole file and changes nothing. The exit code is 1 if it found a problem; notes alone "
        "give 0.",
    ),
)
