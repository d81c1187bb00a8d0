"""``jobs`` and ``job``: groups of items that are watched, stopped and retried as one thing."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Any

from microbatch.durable import JobNotEnded

from ._arguments import add_file, add_queue, add_yes, seconds_from, whole_from
from ._command import DONE, FOUND, WRONG_USE, Command, CommandEnd
from ._live import LiveView
from ._mending import confirm
from ._opening import act, chosen_queue, inspect
from ._wording import count_text, rate_text, safe_text, seconds_text

if TYPE_CHECKING:
    import argparse

    from microbatch.durable import DurableQueue, JobStatus
    from microbatch.durable.inspection import Inspection

    from ._console import Console

_BAR_WIDTH = 20

#: Seconds for which outcomes count as kept: as long as they are there, for how long that is the workers say.
_LONG = 1e9


def status_fields(status: JobStatus) -> dict[str, Any]:
    """Return a job's status for JSON."""
    derived = {"done": status.done, "pending": status.pending, "fraction": status.fraction}
    return {**dataclasses.asdict(status), **derived}


def _bar(fraction: float) -> str:
    full = int(fraction * _BAR_WIDTH)
    return f"{'#' * full}{'.' * (_BAR_WIDTH - full)} {int(fraction * 100):3d} %"


def _life_of(status: JobStatus) -> str:
    if status.outcome is not None:
        return status.outcome
    return "paused" if status.paused else status.life


def _run_jobs(args: argparse.Namespace, console: Console) -> int:
    with inspect(args, console) as inspection:
        page = inspection.jobs(chosen_queue(inspection, args.queue), args.limit)
    if console.json:
        for status in page.jobs:
            console.object(status_fields(status))
        return DONE
    if not page.jobs:
        console.line("no jobs")
        return DONE
    cells = [
        [
            one.id, _life_of(one), _bar(one.fraction), f"{one.total:,}", f"{one.failed:,}",
            rate_text(one.rate) if one.rate else "-", seconds_text(one.eta),
            one.created_at.strftime("%Y-%m-%d %H:%M:%S"),
        ]
        for one in page.jobs
    ]  # fmt: skip
    heads = ("JOB", "IS", "DONE", "ITEMS", "FAILED", "RATE", "LEFT", "CREATED")
    console.table(heads, cells, "lllrrrrl")
    if page.cursor is not None:
        console.note(f"the newest {args.limit}; --limit shows more")
    return DONE


def _job_lines(status: JobStatus) -> list[str]:
    parts = ("succeeded", "failed", "skipped", "cancelled", "expired", "pending")
    counts = ", ".join(
        f"{getattr(status, part):,} {part}" for part in parts if getattr(status, part)
    )
    lines = [
        f"job {status.id} of queue {safe_text(status.queue)}: {_life_of(status)}",
        f"  {_bar(status.fraction)}  {count_text(status.total, 'item')}"
        + (f": {counts}" if counts else ""),
    ]
    if status.rate:
        lines.append(f"  {rate_text(status.rate)}, {seconds_text(status.eta)} left")
    facts = {"owner": status.owner, "key": status.key, "retry of": status.retry_of}
    lines += [f"  {name} {safe_text(value)}" for name, value in facts.items() if value is not None]
    for code, count in sorted(status.errors.items(), key=lambda one: (-one[1], one[0])):
        lines.append(f"  {count_text(count, 'item')} of code {safe_text(code)}")
    return lines


def _run_job(args: argparse.Namespace, console: Console) -> int:
    action = next((one for one in _ACTIONS if getattr(args, one)), None)
    if action is not None:
        return _act_on(args, console, action)
    with LiveView(console, on=args.watch) as view:
        while True:
            with inspect(args, console) as inspection:
                status = inspection.job(chosen_queue(inspection, args.queue), args.id)
            if console.json:
                console.object(status_fields(status))
            else:
                view.show(_job_lines(status))
            if not args.watch:
                return DONE
            if status.life == "ended":
                return DONE if status.outcome == "succeeded" else FOUND
            time.sleep(args.interval)


_ACTIONS = ("cancel", "pause", "resume", "retry")


def _act_on(args: argparse.Namespace, console: Console, action: str) -> int:
    with inspect(args, console) as inspection:
        queue = chosen_queue(inspection, args.queue)
        status = inspection.job(queue, args.id)
        if action == "retry":
            many = _to_retry(inspection, queue, status)
            confirm(args, console, f"retry {count_text(many, 'item')} of job {args.id}")
    if action == "cancel" and status.life != "ended":
        confirm(args, console, f"cancel {count_text(status.pending, 'item')} of job {args.id}")

    async def call(opened: DurableQueue[Any, Any]) -> JobStatus:
        job = opened.job(args.id)
        if action == "retry":
            return await (await job.retry_failed()).status()
        await getattr(job, action)()
        return await job.status()

    after: JobStatus = act(args.file, queue, call, result_ttl=_LONG)
    if console.json:
        console.object(status_fields(after))
        return DONE
    if status.life == "ended" and action != "retry":
        console.note("the job had ended: nothing was changed")
    for line in _job_lines(after):
        console.line(line)
    return DONE


def _to_retry(inspection: Inspection, queue: str, status: JobStatus) -> int:
    """Return how many items a retry takes: what was cancelled, expired, or failed and may do better."""
    if status.life != "ended":
        raise CommandEnd(str(JobNotEnded(status.id, queue)), WRONG_USE)
    failed = inspection.outcomes(queue, status.id, "failed")
    again = sum(1 for one in failed if getattr(one.error, "retryable", False))
    return again + status.cancelled + status.expired


def _jobs_arguments(parser: argparse.ArgumentParser) -> None:
    add_file(parser)
    add_queue(parser)
    parser.add_argument(
        "--limit",
        type=whole_from(1, 10_000),
        default=20,
        metavar="N",
        help="how many at most, the newest first (20)",
    )


def _job_arguments(parser: argparse.ArgumentParser) -> None:
    add_file(parser)
    parser.add_argument("id", metavar="ID", help="the job's id")
    add_queue(parser)
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--watch", action="store_true", help="go on until it has ended")
    group.add_argument("--cancel", action="store_true", help="cancel it: no further item begins")
    group.add_argument(
        "--pause", action="store_true", help="pause it: no item begins until --resume"
    )
    group.add_argument("--resume", action="store_true", help="end a pause")
    group.add_argument(
        "--retry",
        action="store_true",
        help="make a new job of the items that failed and may be retried, were cancelled or expired",
    )
    parser.add_argument(
        "--interval",
        type=seconds_from(0.05),
        default=0.5,
        metavar="SECONDS",
        help="seconds between two looks (0.5)",
    )
    add_yes(parser)


COMMANDS = (
    Command(
        "jobs",
        "List the jobs of a queue with their progress.",
        "microbatch jobs shop.db",
        _jobs_arguments,
        _run_jobs,
    ),
    Command(
        "job",
        "Show a job, watch it, or stop, pause, resume or retry it.",
        "microbatch job shop.db JOB",
        _job_arguments,
        _run_job,
        "--cancel and --retry say how many items they change and ask; --yes answers yes. --watch ends when the "
        "job has ended, with exit code 1 unless its outcome is succeeded.",
    ),
)
