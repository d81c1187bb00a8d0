"""What the page can do: every action asks first, and then does exactly what it asked for."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse

from microbatch.durable import UnknownTicket

from . import words
from .job_views import actions_of
from .views import ACTIONS, GROUPS
from .visit import number_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from microbatch.durable.insight import Insight

    from .views import View
    from .visit import Visit

#: Items that one transaction changes: some milliseconds each.
CHUNK = 5_000

#: Ids that a question names.
NAMED = 20

_ITEM_ACTIONS = ("requeue", "purge", "cancel")
_QUEUE_ACTIONS = ("pause", "resume")
_JOB_ACTIONS = ("cancel-job", "pause-job", "resume-job", "retry-job")

_QUESTIONS = {
    "requeue": ("Make {} ready again?", "Requeue", "They get all their attempts again."),
    "purge": ("Remove {} for good?", "Purge", "This cannot be undone."),
    "cancel": (
        "Cancel {}?",
        "Cancel them",
        "Items that a handler has already are not cancelled.",
    ),
    "pause": ("Pause the queue?", "Pause", "No process begins an item of it until it is resumed."),
    "resume": ("Resume the queue?", "Resume", "Its items are handled again."),
    "cancel-job": (
        "Cancel the job?",
        "Cancel the job",
        "Items that have not begun end as cancelled; the others are finished.",
    ),
    "pause-job": (
        "Pause the job?",
        "Pause the job",
        "No item of it begins until it is resumed.",
    ),
    "resume-job": ("Resume the job?", "Resume the job", "Its items are handled again."),
    "retry-job": (
        "Retry the items that did not succeed?",
        "Make a new job",
        "A new job gets the items that were cancelled, expired or failed.",
    ),
}


class Order(NamedTuple):
    """What somebody wants done.

    Attributes:
        action: Its name.
        ids: To which items.
        group: To all items of this group instead; empty for no group.
        job: To which job; empty for none.
        all_failed: For a retry: whether also what failed for good goes again.
        origin: The group whose list it came from; empty for no list.
    """

    action: str
    ids: Sequence[int]
    group: str
    job: str
    all_failed: bool
    origin: str


def order_of(fields: Sequence[tuple[str, str]]) -> Order:
    """Return what a form asks for.

    Raises:
        HTTPException: 400 if that is nothing that can be done.
    """
    one = dict(fields)
    action, group, job = one.get("do", ""), one.get("all", ""), one.get("job", "")
    ids = sorted({number_of(value, "id") for name, value in fields if name == "id"})
    if action not in _QUESTIONS:
        raise HTTPException(400, f"do must be one of {', '.join(_QUESTIONS)}.")
    if action in _ITEM_ACTIONS and not ids and not group:
        raise HTTPException(400, "Select at least one item.")
    if group and action not in ACTIONS.get(group, ()):
        raise HTTPException(400, "That cannot be done to all of these.")
    if action in _JOB_ACTIONS and not job:
        raise HTTPException(400, "Name the job.")
    if group in {"ready", "scheduled"}:
        raise HTTPException(400, "Select the items to be cancelled.")
    origin = one.get("from", "")
    return Order(
        action,
        () if group else ids,
        group,
        job,
        "all_failed" in one,
        group or (origin if origin in GROUPS else ""),
    )


async def ask(visit: Visit) -> View:
    """Ask whether an action is meant."""
    visit.check_may_act()
    insight = visit.queue
    order = order_of(visit.request.query_params.multi_items())
    question, button, details = _QUESTIONS[order.action]
    back = visit.queue_link()
    if order.action in _JOB_ACTIONS:
        status = await insight.queue.job(order.job).status()
        if order.action not in actions_of(status):
            raise HTTPException(409, "The job is not in a state in which that can be done.")
        back = visit.queue_link(f"jobs/{status.id}")
    count = len(order.ids)
    if order.group:
        count = sum([len(run) async for run in _runs_of_group(insight, order.group)])
    if order.action in _ITEM_ACTIONS:
        question = question.format(words.with_noun(count, "item"))
        back = visit.queue_link(state=order.origin)
        if len(order.ids) == 1 and not order.origin:
            back = visit.queue_link(f"items/{order.ids[0]}")
    return "confirm.html", {
        "queue": {
            "slug": visit.places.slug_of[insight],
            "title": visit.places.title_of[insight],
        },
        "order": order,
        "count": count,
        "named": order.ids[:NAMED],
        "question": question,
        "button": button,
        "details": details,
        "back": back,
        "token": visit.session.token,
    }


async def carry_out(visit: Visit) -> View:
    """Do what a form of this session confirmed, and go to the page that shows it."""
    visit.check_may_act()
    insight = visit.queue
    order = order_of(await visit.form())
    if order.action in _QUEUE_ACTIONS:
        await (insight.queue.pause() if order.action == "pause" else insight.queue.resume())
        return _shown(visit.queue_link(did=order.action))
    if order.action in _JOB_ACTIONS:
        return _shown(await _act_on_job(visit, insight, order))
    count = await _act_on_items(insight, order)
    if len(order.ids) == 1 and order.action != "purge" and not order.origin:
        return _shown(visit.queue_link(f"items/{order.ids[0]}", did=order.action, n=count))
    return _shown(visit.queue_link(state=order.origin, did=order.action, n=count))


def _shown(link: str) -> RedirectResponse:
    return RedirectResponse(link, 303)


async def _act_on_job(visit: Visit, insight: Insight, order: Order) -> str:
    job = insight.queue.job(order.job)
    status = await job.status()
    if order.action not in actions_of(status):
        raise HTTPException(409, "The job is no longer in a state in which that can be done.")
    if order.action == "retry-job":
        job = await job.retry_failed(retryable_only=not order.all_failed)
    elif order.action == "cancel-job":
        await job.cancel()
    elif order.action == "pause-job":
        await job.pause()
    else:
        await job.resume()
    return visit.queue_link(f"jobs/{job.id}", did=order.action)


async def _act_on_items(insight: Insight, order: Order) -> int:
    """Do it to each item, and return to how many it was done."""
    done: Counter[str] = Counter()
    chunk: list[int] = []
    async for run in _runs_of_group(insight, order.group) if order.group else _given(order.ids):
        for number in run:
            chunk.append(number)
            if len(chunk) == CHUNK:
                done["items"] += await _act_on_some(insight, order.action, chunk)
                chunk = []
    if chunk:
        done["items"] += await _act_on_some(insight, order.action, chunk)
    return done["items"]


async def _act_on_some(insight: Insight, action: str, ids: list[int]) -> int:
    queue = insight.queue
    if action == "requeue":
        return await queue.requeue(ids)
    if action == "purge":
        return await queue.purge(ids)
    count = 0
    for number in ids:
        try:
            count += await queue.cancel(number)
        except UnknownTicket:  # it is gone, and counts as not cancelled
            continue
    return count


async def _given(ids: Sequence[int]) -> Any:
    yield ids


async def _runs_of_group(insight: Insight, group: str) -> Any:
    """Yield runs of the ids of all items of a group that are no job's."""
    for state in GROUPS[group]:
        async for run in insight.ids(state):
            yield run
