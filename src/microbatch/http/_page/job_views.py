"""What the pages about jobs show."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from microbatch.durable import ResultsExpired

from .shown import cut_line, extract
from .views import PAGE_SIZE, note_of

if TYPE_CHECKING:
    from microbatch.durable import JobStatus

    from .views import View
    from .visit import Visit

#: How a job's items can have ended, and what the downloads offer.
KINDS = ("succeeded", "failed", "skipped", "cancelled", "expired")
FORMATS = ("ndjson", "csv", "json")

#: What can be done with a job in each of its lives.
JOB_ACTIONS = {
    "queued": ("pause-job", "cancel-job"),
    "running": ("pause-job", "cancel-job"),
    "cancelling": (),
    "ended": ("retry-job",),
}


def actions_of(status: JobStatus) -> tuple[str, ...]:
    """Return what can be done with a job now."""
    actions: tuple[str, ...] = JOB_ACTIONS[status.life]
    if status.paused:
        actions = tuple("resume-job" if one == "pause-job" else one for one in actions)
    if status.life == "ended" and not (status.failed or status.cancelled or status.expired):
        actions = ()
    return actions


def _head_of(visit: Visit) -> dict[str, Any]:
    insight = visit.queue
    return {"slug": visit.places.slug_of[insight], "title": visit.places.title_of[insight]}


async def jobs(visit: Visit) -> View:
    """Show a queue's jobs."""
    cursor = visit.number("cursor")
    page = await visit.queue.queue.jobs(cursor=cursor, limit=PAGE_SIZE)
    return "jobs.html", {
        "queue": _head_of(visit),
        "jobs": [(status, visit.shown.name(status.owner)) for status in page.jobs],
        "cursor": page.cursor,
        "newest": cursor is None,
    }


async def job(visit: Visit) -> View:
    """Show a job, with its failed items."""
    insight = visit.queue
    uid = visit.request.path_params["job"]
    status = await insight.queue.job(uid).status()
    after = visit.number("after")
    expired, failed, following = False, [], None
    try:
        outcomes, following = await insight.outcomes(
            uid, "failed", -1 if after is None else after, PAGE_SIZE
        )
        failed = [(one, visit.shown.name(one.id), visit.shown.error(one.error)) for one in outcomes]
    except ResultsExpired:
        expired = True
    counts = {kind: getattr(status, kind) for kind in KINDS}
    return "job.html", {
        "queue": _head_of(visit),
        "job": status,
        "owner": visit.shown.name(status.owner),
        "key": visit.shown.name(status.key),
        "metadata": None
        if status.metadata is None
        else extract(visit.shown.text(dict(status.metadata))),
        "counts": counts,
        "errors": sorted(status.errors.items(), key=lambda one: (-one[1], one[0])),
        "failed": [
            (one, name, error, "" if error is None else cut_line(error.message))
            for one, name, error in failed
        ],
        "following": following,
        "first": after is None,
        "expired": expired,
        "kinds": KINDS,
        "formats": FORMATS,
        "actions": actions_of(status) if visit.may_act else (),
        "note": note_of(visit),
    }
