"""What changes a queue: ``requeue``, ``purge``, ``cancel``, ``pause``, ``resume``."""

from __future__ import annotations

from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from microbatch.durable.errors import UnknownTicket
from microbatch.durable.inspection import STATE_NAMES

from ._arguments import add_file, add_queue, add_yes
from ._command import DONE, FOUND, WRONG_USE, Command, CommandEnd
from ._opening import act, chosen_queue, inspect
from ._wording import count_text, safe_text

if TYPE_CHECKING:
    import argparse
    from collections.abc import Awaitable, Callable, Iterable, Iterator

    from microbatch.durable import DurableQueue
    from microbatch.durable.inspection import Inspection

    from ._console import Console

#: Items that one call changes: each is one transaction, and between two of them an interruption comes through.
_AT_ONCE = 1_000

_ENDED = ("done", "skipped", "cancelled", "expired", "dead")
_DEAD_ONLY = ("dead",)


def confirm(args: argparse.Namespace, console: Console, question: str) -> None:
    """Ask, unless that was answered before.

    Raises:
        CommandEnd: If the answer is no, or there is nobody to give one.
    """
    if args.yes:
        return
    answer = console.ask(f"{question}?")
    if answer is None:
        message = (
            f"{question}? nothing was changed: answer with --yes, for there is no terminal to ask"
        )
        raise CommandEnd(message, WRONG_USE)
    if not answer:
        raise CommandEnd("nothing was changed", WRONG_USE)


def _chosen_ids(inspection: Inspection, queue: str, args: argparse.Namespace) -> list[int]:
    """Return the ids that requeue or purge is about: no item of a job is among them."""
    allowed = args.states
    if args.ids:
        return _given_ids(inspection, queue, args.ids, allowed)
    code = getattr(args, "code", None)
    states = [STATE_NAMES[state] for state in getattr(args, "state", None) or allowed]
    if code is None:
        return list(chain.from_iterable(inspection.ids(queue, states)))
    return [
        one.id
        for one in inspection.items(queue, states)
        if not one.of_job and one.error is not None and one.error.code == code
    ]


def _given_ids(
    inspection: Inspection, queue: str, ids: Iterable[int], allowed: Iterable[str]
) -> list[int]:
    found, unknown = [], []
    for number in sorted(set(ids)):
        try:
            one = inspection.item(queue, number)
        except UnknownTicket:
            unknown.append(number)
            continue
        if one.state in allowed and not one.of_job:
            found.append(number)
    if unknown:
        known = ", ".join(map(str, unknown[:10]))
        message = f"queue {queue!r} has no item {known}: nothing was changed"
        raise CommandEnd(message, FOUND)
    return found


def _change(args: argparse.Namespace, console: Console, verb: str, noun: str) -> int:
    with inspect(args, console) as inspection:
        queue = chosen_queue(inspection, args.queue)
        chosen = _chosen_ids(inspection, queue, args)
        of_jobs = _how_many_of_jobs(inspection, queue, args)
    done = 0
    if chosen:
        many = count_text(len(chosen), noun)
        confirm(args, console, f"{verb} {many} of queue {safe_text(queue)!r}")

        async def call(opened: DurableQueue[Any, Any]) -> None:
            nonlocal done
            change: Callable[[Iterable[int]], Awaitable[int]] = getattr(opened, verb)
            for some in _some_at_a_time(chosen):
                done += await change(some)

        try:
            act(args.file, queue, call)
        except KeyboardInterrupt:
            console.note(
                f"{_past_of(verb)} at least {done:,} of {len(chosen):,}; ask again for the rest"
            )
            raise
    left = len(set(args.ids)) - len(chosen) if args.ids else 0
    if console.json:
        console.object({"queue": queue, _past_of(verb): done})
        return DONE
    console.line(f"{_past_of(verb)} {count_text(done, noun)}")
    if left:
        console.note(f"{count_text(left, 'item')} left alone: not in such a state, or a job's")
    elif of_jobs:
        left_alone = f"{count_text(of_jobs, 'item')} of jobs left alone"
        console.note(f"{left_alone}: see microbatch jobs FILE, and job FILE ID --retry")
    return DONE


def _how_many_of_jobs(inspection: Inspection, queue: str, args: argparse.Namespace) -> int:
    """Return how many items a job keeps from a change of all in some states."""
    if args.ids or getattr(args, "code", None) is not None:
        return 0
    states = [STATE_NAMES[state] for state in getattr(args, "state", None) or args.states]
    return sum(map(len, inspection.ids(queue, states, jobs=True)))


def _past_of(verb: str) -> str:
    return f"{verb}d"


def _some_at_a_time(numbers: list[int]) -> Iterator[list[int]]:
    rest = iter(numbers)
    while some := list(islice(rest, _AT_ONCE)):
        yield some


def _run_requeue(args: argparse.Namespace, console: Console) -> int:
    if bool(args.ids) + args.all + (args.code is not None) != 1:
        raise CommandEnd("say what to requeue: ids, or --all, or --code", WRONG_USE)
    args.states = _DEAD_ONLY
    return _change(args, console, "requeue", "dead letter")


def _run_purge(args: argparse.Namespace, console: Console) -> int:
    if bool(args.ids) + bool(args.state) != 1:
        raise CommandEnd("say what to purge: ids, or --state", WRONG_USE)
    args.states = _ENDED
    return _change(args, console, "purge", "item")


def _run_cancel(args: argparse.Namespace, console: Console) -> int:
    with inspect(args, console) as inspection:
        queue = chosen_queue(inspection, args.queue)
        one = inspection.item(queue, args.id)
    cancelled = False
    if one.state in ("ready", "scheduled"):
        confirm(args, console, f"cancel 1 item of queue {safe_text(queue)!r}")
        cancelled = act(args.file, queue, lambda opened: opened.cancel(args.id))
    if console.json:
        console.object({"queue": queue, "cancelled": int(cancelled)})
    elif cancelled:
        console.line("cancelled 1 item")
    if not cancelled:
        reason = (
            "a handler has it" if one.state in ("ready", "scheduled", "claimed") else "it has ended"
        )
        raise CommandEnd(f"item {args.id} cannot be cancelled any more: {reason}", FOUND)
    return DONE


def _set_paused(args: argparse.Namespace, console: Console, *, paused: bool) -> int:
    with inspect(args, console) as inspection:
        queue = chosen_queue(inspection, args.queue)
    act(args.file, queue, lambda opened: opened.pause() if paused else opened.resume())
    if console.json:
        console.object({"queue": queue, "paused": paused})
    else:
        console.line(f"queue {safe_text(queue)!r} is {'paused' if paused else 'not paused'}")
    return DONE


def _run_pause(args: argparse.Namespace, console: Console) -> int:
    return _set_paused(args, console, paused=True)


def _run_resume(args: argparse.Namespace, console: Console) -> int:
    return _set_paused(args, console, paused=False)


def _ids_arguments(parser: argparse.ArgumentParser) -> None:
    add_file(parser)
    parser.add_argument("ids", metavar="ID", type=int, nargs="*", help="ids of items")
    add_queue(parser)
    add_yes(parser)


def _requeue_arguments(parser: argparse.ArgumentParser) -> None:
    _ids_arguments(parser)
    parser.add_argument("--all", action="store_true", help="all dead letters")
    parser.add_argument("--code", metavar="C", help="all dead letters whose error has this code")


def _purge_arguments(parser: argparse.ArgumentParser) -> None:
    _ids_arguments(parser)
    parser.add_argument(
        "--state", choices=_ENDED, action="append", help="all items in this state; may be repeated"
    )


def _cancel_arguments(parser: argparse.ArgumentParser) -> None:
    add_file(parser)
    parser.add_argument("id", metavar="ID", type=int, help="the item's id")
    add_queue(parser)
    add_yes(parser)


def _queue_arguments(parser: argparse.ArgumentParser) -> None:
    add_file(parser)
    add_queue(parser)


_ASKS = (
    "It says how many and asks. --yes answers; without it and without a terminal nothing is changed, and the "
    "exit code is 2."
)

COMMANDS = (
    Command(
        "requeue",
        "Make dead letters ready again, with all their attempts.",
        "microbatch requeue shop.db --code unlucky --yes",
        _requeue_arguments,
        _run_requeue,
        f"{_ASKS} Items of jobs are left alone: retry the job.",
    ),
    Command(
        "purge",
        "Remove items that have ended.",
        "microbatch purge shop.db --state done --yes",
        _purge_arguments,
        _run_purge,
        f"{_ASKS} Items of jobs are left alone: they go with their job.",
    ),
    Command(
        "cancel",
        "Cancel an item that no handler has yet.",
        "microbatch cancel shop.db 3 --yes",
        _cancel_arguments,
        _run_cancel,
        f"{_ASKS} An item that a handler has, or that has ended, gives exit code 1.",
    ),
    Command(
        "pause",
        "Pause a queue: no process begins an item of it until it is resumed.",
        "microbatch pause shop.db",
        _queue_arguments,
        _run_pause,
        "Items may still be enqueued, and batches in flight go on. It is stored in the file.",
    ),
    Command(
        "resume",
        "End a pause.",
        "microbatch resume shop.db",
        _queue_arguments,
        _run_resume,
    ),
)
