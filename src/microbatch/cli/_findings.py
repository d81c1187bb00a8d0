"""What doctor looks for, and what it says of it. Each check reads, and changes nothing."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from microbatch.durable import QueueCorrupt
from microbatch.durable._file.place import SIDE_FILES
from microbatch.durable._file.schema import SQLITE_MINIMUM, SQLITE_WITHOUT_WAL_BUG
from microbatch.durable.inspection import STATE_NAMES

from ._wording import bytes_text, count_text, safe_text, seconds_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from microbatch.durable import QueueStats
    from microbatch.durable.inspection import ConsumerLook, Inspection

#: Seconds that a clock may stand before another one.
_CLOCK_APART = 1.0

#: Bytes of the log from which it is large: twice what it is cut to once all of it stands in the file.
LOG_LARGE = 32 << 20

#: Seconds for which an item may wait beside living workers until that is worth a note: five minutes.
_LONG_WAIT = 300.0

#: Dead letters that are counted by code.
_CODES_FROM = 10_000


@dataclass(frozen=True)
class Finding:
    """Something that doctor found.

    Attributes:
        check: What was looked at.
        level: ``"problem"``, or ``"note"``: something to know that is no fault.
        message: What is so.
        meaning: What follows from it.
        action: What to do.
        queue: The queue that it is about; None: the file.
    """

    check: str
    level: str
    message: str
    meaning: str
    action: str
    queue: str | None = None


def library_findings(pids: set[int]) -> Iterator[Finding]:
    """Look at the SQLite that this Python has: what the workers' has may be another one."""
    have, version = sqlite3.sqlite_version_info, sqlite3.sqlite_version
    if have < SQLITE_MINIMUM:
        needed = ".".join(map(str, SQLITE_MINIMUM))
        yield Finding(
            "sqlite",
            "problem",
            f"SQLite {version} is too old: microbatch needs {needed}",
            "no queue can be opened with this Python",
            "use a Python with a newer SQLite",
        )
    elif have < SQLITE_WITHOUT_WAL_BUG:
        several = len(pids) > 1
        yield Finding(
            "sqlite",
            "problem" if several else "note",
            f"SQLite {version} has a rare bug, mended in 3.51.3",
            "two processes that write and checkpoint at the same moment may damage the file"
            + ("; several processes work on it now" if several else ""),
            "use a Python with SQLite 3.51.3 or newer, or let one process work on the file",
        )


def permission_findings(path: Path, *, immutable: bool) -> Iterator[Finding]:
    """Look at who may use the file and what lies beside it."""
    file = path.stat()
    mode = stat.S_IMODE(file.st_mode)
    for suffix in SIDE_FILES:
        side = path.with_name(path.name + suffix)
        try:
            found = side.lstat()
        except OSError:
            continue
        theirs = stat.S_IMODE(found.st_mode)
        if (found.st_uid, found.st_gid, theirs) != (file.st_uid, file.st_gid, mode):
            yield Finding(
                "permissions",
                "problem",
                f"{side.name} has owner {found.st_uid}:{found.st_gid} and mode {theirs:04o}, the file "
                f"{file.st_uid}:{file.st_gid} and {mode:04o}",
                "a worker of another user cannot use it, and says that the file cannot be opened",
                f"give it the file's: chown {file.st_uid}:{file.st_gid} and chmod {mode:04o}",
            )
    if mode & stat.S_IWOTH:
        yield Finding(
            "permissions",
            "problem",
            f"every user may write the file (mode {mode:04o})",
            "anybody on this machine can change or add items, which your handler then gets",
            "chmod 600, or 660 for a group",
        )
    elif mode & stat.S_IROTH:
        yield Finding(
            "permissions",
            "note",
            f"every user may read the file (mode {mode:04o})",
            "payloads can be read by everybody on this machine",
            "chmod 600, or 640 for a group, if that is not wanted",
        )
    if immutable:
        yield Finding(
            "permissions",
            "note",
            "this user may not write here",
            "workers of this user cannot use the queue",
            f"run them as user {file.st_uid}, or give this user the folder {os.fspath(path.parent)!r}",
        )


def page_findings(inspection: Inspection) -> Iterator[Finding]:
    """Look at all pages of the file."""
    try:
        faults = inspection.page_faults()
    except QueueCorrupt as error:
        faults = [error.reason]
    if faults:
        yield Finding(
            "pages",
            "problem",
            f"the file is damaged: {safe_text(faults[0], 200)}",
            "items may be lost, and workers stop when they come to the place",
            "stop the workers, keep a copy, and restore a backup; "
            "`sqlite3 FILE .recover` saves what can be read",
        )


def log_findings(inspection: Inspection, size: int) -> Iterator[Finding]:
    """Look at the write-ahead log."""
    if size < LOG_LARGE:
        return
    look = inspection.log()
    pids = [pid for pid in (look.readers if look else []) if pid != os.getpid()]
    who = f": process {', '.join(map(str, pids))} reads an old state of it" if pids else ""
    yield Finding(
        "log",
        "problem",
        f"the write-ahead log has {bytes_text(size)}, and does not shrink{who}",
        "while somebody keeps a read transaction open it grows with each write, until the disk is full",
        "end what reads: an open sqlite3 shell, a backup, a report. "
        "The log shrinks with the next writes after that",
    )


def queue_findings(
    inspection: Inspection, name: str, stats: QueueStats, now: float
) -> Iterator[Finding]:
    """Look at what stands in a queue."""
    if stats.paused:
        yield Finding(
            "paused",
            "problem" if stats.depth else "note",
            f"the queue is paused, {count_text(stats.depth, 'item waits', 'items wait')}",
            "no process begins an item of it until it is resumed",
            f"if that is not wanted: microbatch resume FILE --queue {safe_text(name)}",
            name,
        )
    faults = inspection.faults(name)
    if faults.counts or faults.jobs or faults.heads:
        wrong = [
            f"{state} is {stored}, there are {there}" for state, stored, there in faults.counts
        ]
        wrong += [f"job {uid}" for uid in faults.jobs[:5]]
        wrong += [f"the first item of {count_text(faults.heads, 'lane')}"] * bool(faults.heads)
        yield Finding(
            "counts",
            "problem",
            f"counts do not agree with the items: {'; '.join(wrong)}",
            "somebody changed the tables by hand, or the file was damaged: items may not be found, and "
            "figures and limits are wrong",
            "restore a backup, or enqueue what waits into a new file; change queues by the library or this "
            "command only",
            name,
        )
    if faults.payloads:
        yield Finding(
            "payloads",
            "problem",
            f"{count_text(faults.payloads, 'item')} without a payload",
            "they will fail and become dead letters",
            "restore a backup if they are needed",
            name,
        )
    if faults.keys:
        yield Finding(
            "keys",
            "problem",
            f"{count_text(faults.keys, 'key stands', 'keys stand')} for no item",
            "an enqueue with such a key may be refused, or get no result, until key_ttl is over",
            "wait for that, or use other keys; rows were removed by hand",
            name,
        )
    if faults.latest > now + _CLOCK_APART:
        yield Finding(
            "clock",
            "problem",
            f"something was written {seconds_text(faults.latest - now)} in the future",
            "the clock was ahead then, or is behind now; delays and retention are counted from a wrong time",
            "set the clock, for example by NTP. Workers mend the waiting items at their next claim",
            name,
        )


def dead_findings(inspection: Inspection, name: str, stats: QueueStats) -> Iterator[Finding]:
    """Look at the dead letters."""
    if not stats.dead:
        return
    states = [STATE_NAMES["dead"]]
    found = islice(inspection.items(name, states), _CODES_FROM)
    codes = Counter("unknown" if one.error is None else one.error.code for one in found)
    shown = ", ".join(f"{many:,} of code {safe_text(code)}" for code, many in codes.most_common(5))
    of_jobs = sum(map(len, inspection.ids(name, states, jobs=True)))
    mend = "retry the job (see microbatch jobs FILE, and job FILE ID --retry)"
    if not of_jobs:
        mend = "requeue or purge"
    elif of_jobs < stats.dead:
        mend = f"requeue or purge; for the {of_jobs:,} of jobs {mend}"
    yield Finding(
        "dead",
        "problem",
        f"{count_text(stats.dead, 'dead letter')}: {shown}",
        "they failed for good, and are not handled again by themselves",
        f"look with microbatch dead FILE --queue {safe_text(name)}; once the cause is mended, {mend}",
        name,
    )


def consumer_findings(
    name: str,
    stats: QueueStats,
    looks: Mapping[int, Sequence[ConsumerLook]],
    long: float,
    now: float,
) -> Iterator[Finding]:
    """Look at who works on a queue, in two looks.

    Args:
        name: The queue.
        stats: Its counts.
        looks: What was seen of each consumer, by its number: the first look, and the second.
        long: Seconds from which items have been held for long.
        now: The time.
    """
    last = [seen[-1] for seen in looks.values()]
    living = [one for one in last if one.alive]
    for one in living:
        if one.stopped:
            yield Finding(
                "consumers",
                "problem",
                f"process {one.pid} is stopped, and holds {count_text(one.held, 'item')}",
                "no other process gets them while it lives",
                f"let it go on (kill -CONT {one.pid}), or end it: then others take them within a second",
                name,
            )
    for seen in looks.values():
        one = seen[-1]
        held = 0.0 if one.held_since is None else now - one.held_since
        stays = len(seen) > 1 and (seen[0].held, seen[0].claim) == (one.held, one.claim)
        if one.alive and not one.stopped and one.held and stays and held >= long:
            yield Finding(
                "consumers",
                "problem",
                f"process {one.pid} holds {count_text(one.held, 'item')}, due for {seconds_text(held)}",
                "its handler is slow, or hangs: no other process gets them while it lives",
                "see what it does (py-spy dump --pid); set handler_timeout; if it ends, others take them",
                name,
            )
    dead = [one for one in last if not one.alive and one.held]
    if dead and not living:
        held_items = sum(one.held for one in dead)
        holders = count_text(len(dead), "dead process", "dead processes")
        yield Finding(
            "consumers",
            "problem",
            f"{count_text(held_items, 'item')} held by {holders}",
            "they wait for a worker that takes them over",
            "start a worker",
            name,
        )
    if stats.ready and not living:
        yield Finding(
            "consumers",
            "problem",
            f"{count_text(stats.ready, 'item is ready', 'items are ready')}, and nobody works on the queue",
            "they wait until a worker runs",
            "start a worker; if one should run, look into its log, and whether it names this queue and file",
            name,
        )
    elif stats.oldest_age > _LONG_WAIT and stats.ready and not stats.paused:
        yield Finding(
            "age",
            "note",
            f"the oldest item has waited for {seconds_text(stats.oldest_age)}",
            "more items come in than are handled, or urgent items go first",
            "raise max_batch_size or max_concurrency, or add workers; `microbatch bench` measures which helps",
            name,
        )
