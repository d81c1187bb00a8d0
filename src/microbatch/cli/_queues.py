"""``queues`` and ``stats``: how much there is, how old, how fast, and who works on it."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Any

from ._arguments import add_file, seconds_from
from ._command import DONE, WRONG_USE, Command, CommandEnd
from ._live import LiveView
from ._opening import chosen_queue, inspect
from ._wording import bytes_text, columns_text, rate_text, safe_text, seconds_text

if TYPE_CHECKING:
    import argparse

    from microbatch.durable import QueueStats
    from microbatch.durable.inspection import ConsumerLook, Inspection

    from ._console import Console

_HEADS = ("QUEUE", "READY", "SCHEDULED", "CLAIMED", "DONE", "DEAD", "CANCELLED", "OLDEST", "PAUSED")
_RIGHT = "lrrrrrrrl"


def _queue_cells(name: str, stats: QueueStats) -> list[str]:
    counts = (
        stats.ready, stats.scheduled, stats.claimed, stats.done, stats.dead, stats.cancelled,
    )  # fmt: skip
    age = seconds_text(stats.oldest_age) if stats.oldest_age else "-"
    return [safe_text(name), *(f"{n:,}" for n in counts), age, "yes" if stats.paused else "no"]


def _queue_fields(name: str, stats: QueueStats) -> dict[str, Any]:
    return {"queue": name, **dataclasses.asdict(stats), "depth": stats.depth}


def _run_queues(args: argparse.Namespace, console: Console) -> int:
    with inspect(args, console) as inspection:
        found = {name: inspection.stats(name) for name in inspection.queues()}
    if console.json:
        for name, stats in found.items():
            console.object(_queue_fields(name, stats))
    elif not found:
        console.line("no queues")
    else:
        console.table(_HEADS, [_queue_cells(*one) for one in found.items()], _RIGHT)
    return DONE


class _Meter:
    """How fast items of a queue end: between two looks, from what is kept of them."""

    def __init__(self) -> None:
        self._before: dict[str, tuple[float, int]] = {}

    def rate(self, name: str, stats: QueueStats, now: float) -> float | None:
        """Return items per second since the last look; None at the first one."""
        ended = stats.done + stats.dead + stats.cancelled
        before = self._before.get(name)
        self._before[name] = (now, ended)
        if before is None or now <= before[0]:
            return None
        return max(0, ended - before[1]) / (now - before[0])


@dataclasses.dataclass(frozen=True)
class _QueueLook:
    name: str
    stats: QueueStats
    rate: float | None
    consumers: list[ConsumerLook]


def _look_at(inspection: Inspection, names: list[str], meter: _Meter) -> list[_QueueLook]:
    looks = []
    for name in names:
        stats = inspection.stats(name)
        rate = meter.rate(name, stats, time.monotonic())
        looks.append(_QueueLook(name, stats, rate, inspection.consumers(name)))
    return looks


def _look_fields(look: _QueueLook, now: float) -> dict[str, Any]:
    return {
        **_queue_fields(look.name, look.stats),
        "rate": look.rate,
        "consumers": [
            {
                "id": one.id,
                "pid": one.pid,
                "alive": one.alive,
                "stopped": one.stopped,
                "held": one.held,
                "held_for": None if one.held_since is None else max(0.0, now - one.held_since),
            }
            for one in look.consumers
        ],
    }


def _look_lines(looks: list[_QueueLook], now: float) -> list[str]:
    lines = columns_text(
        (*_HEADS, "RATE"),
        [[*_queue_cells(look.name, look.stats), rate_text(look.rate)] for look in looks],
        _RIGHT + "r",
    )
    shared = looks[0].stats
    sizes = bytes_text(shared.file_bytes), bytes_text(shared.wal_bytes)
    lines += ["", "file: {} in use, log: {}".format(*sizes)]
    consumers = [
        [
            safe_text(look.name), str(one.pid),
            "stopped" if one.stopped else "alive" if one.alive else "dead",
            f"{one.held:,}",
            "-" if one.held_since is None else seconds_text(max(0.0, now - one.held_since)),
        ]
        for look in looks
        for one in look.consumers
    ]  # fmt: skip
    lines.append("")
    if not consumers:
        return [*lines, "no consumers"]
    return [
        *lines,
        *columns_text(("CONSUMER OF", "PID", "IS", "HOLDS", "DUE FOR"), consumers, "lrlrr"),
    ]


def _run_stats(args: argparse.Namespace, console: Console) -> int:
    if args.watch and not args.interval:
        message = "--watch needs an --interval above 0: it would look without a pause"
        raise CommandEnd(message, WRONG_USE)
    meter = _Meter()

    def look() -> list[_QueueLook]:
        with inspect(args, console) as inspection:
            names = list(inspection.queues())
            if args.queue is not None:
                names = [chosen_queue(inspection, args.queue)]
            return _look_at(inspection, names, meter)

    with LiveView(console, on=args.watch) as view:
        looks = look()
        while True:
            if args.interval:
                time.sleep(args.interval)
                looks = look()
            view.show(_show_stats(looks, console))
            if not args.watch:
                return DONE


def _show_stats(looks: list[_QueueLook], console: Console) -> list[str]:
    now = time.time()
    if console.json:
        for look in looks:
            console.object(_look_fields(look, now))
        return []
    return _look_lines(looks, now) if looks else ["no queues"]


def _stats_arguments(parser: argparse.ArgumentParser) -> None:
    add_file(parser)
    parser.add_argument("--queue", metavar="NAME", help="only this queue")
    parser.add_argument("--watch", action="store_true", help="go on until Ctrl-C")
    parser.add_argument(
        "--interval",
        type=seconds_from(0),
        default=1.0,
        metavar="SECONDS",
        help="seconds between two looks, which give the rate (1.0); with 0 it looks once and gives no rate",
    )


COMMANDS = (
    Command(
        "queues",
        "List every queue in a file: its counts, the age of its oldest item, whether it is paused.",
        "microbatch queues shop.db",
        add_file,
        _run_queues,
    ),
    Command(
        "stats",
        "Show counts, rate, sizes of the file and its log, and who works on each queue.",
        "microbatch stats shop.db",
        _stats_arguments,
        _run_stats,
        "The rate is how many of the items that are still kept ended per second between two looks. "
        "A consumer holds the items that it has claimed; DUE FOR says how long ago the first of them was "
        "due, which is the longest that it can have been in its hands.",
    ),
)
