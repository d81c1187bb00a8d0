"""What the pages about queues and items show: each view returns its template's name and what stands in it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, RedirectResponse

from microbatch.durable import UnknownTicket
from microbatch.durable.insight import ID_END, STATE_NAMES

from . import words
from .plot import plot
from .shown import cut_line, extract
from .visit import is_number

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.responses import Response

    from microbatch.durable.insight import Insight, StoredItem

    from .visit import Visit

    #: A template's name and what it is given; or an answer that is no page.
    View = tuple[str, dict[str, Any]] | Response

#: Items and jobs on a page.
PAGE_SIZE = 50

#: Items that one request looks through for a text, and how many it reads at once.
SEARCHED = 2_000
READ_AT_ONCE = 200

#: What the page's filter calls a state, and the states that it means.
GROUPS: Mapping[str, tuple[str, ...]] = {
    "all": tuple(STATE_NAMES),
    "ready": ("ready",),
    "scheduled": ("scheduled",),
    "claimed": ("claimed",),
    "done": ("done", "skipped"),
    "dead": ("dead",),
    "cancelled": ("cancelled", "expired"),
}

#: What can be done with items of these.
ACTIONS: Mapping[str, tuple[str, ...]] = {
    "ready": ("cancel",),
    "scheduled": ("cancel",),
    "done": ("purge",),
    "dead": ("requeue", "purge"),
    "cancelled": ("purge",),
}

GROUP_OF = {state: group for group, states in GROUPS.items() if group != "all" for state in states}

#: What was done, in words: an action ends with a look at its page.
_DONE = {
    "requeue": "{} made ready again.",
    "purge": "{} removed.",
    "cancel": "{} cancelled.",
    "pause": "The queue is paused.",
    "resume": "The queue is resumed.",
    "cancel-job": "The job is being cancelled.",
    "pause-job": "The job is paused.",
    "resume-job": "The job is resumed.",
    "retry-job": "This is the new job.",
}


def note_of(visit: Visit) -> str:
    """Return what was done last, in words; empty if nothing was."""
    words_of = _DONE.get(visit.text("did"), "")
    return words_of.format(words.with_noun(visit.number("n") or 0, "item")) if words_of else ""


async def figures_of(visit: Visit, insight: Insight) -> dict[str, Any]:
    """Return a queue's figures."""
    stats = await insight.queue.stats()
    rate = await insight.rate()
    consumers = await insight.consumers()
    counts = {
        "ready": stats.ready,
        "scheduled": stats.scheduled,
        "claimed": stats.claimed,
        "done": stats.done,
        "dead": stats.dead,
        "cancelled": stats.cancelled,
    }
    return {
        "slug": visit.places.slug_of[insight],
        "title": visit.places.title_of[insight],
        "stats": stats,
        "counts": counts,
        "rate": rate.per_second,
        "plot": plot(rate.well, rate.dead, rate.slot),
        "consumers": consumers,
        "alive": sum(one.alive for one in consumers),
        "gone": sum(not one.alive for one in consumers),
        "now": time.time(),
    }


async def overview(visit: Visit) -> View:
    """Show all queues."""
    queues = [await figures_of(visit, insight) for insight in visit.places.slug_of]
    return "overview.html", {"queues": queues}


class ItemRow(NamedTuple):
    """An item in a list."""

    id: int
    state: str
    key: str | None
    item: str
    attempts: int
    enqueued_at: float
    code: str
    message: str
    of_job: bool


def _row(visit: Visit, item: StoredItem) -> tuple[ItemRow, str]:
    """Return an item as a list shows it, and all of its text that may be searched."""
    key = visit.shown.name(item.key)
    error = visit.shown.error(item.error)
    text = visit.shown.line(item.item) if item.kept else ""
    code, message = ("", "") if error is None else (error.code, error.message)
    row = ItemRow(
        item.id,
        item.state,
        key,
        cut_line(text),
        item.attempts,
        item.enqueued_at,
        code,
        cut_line(message),
        item.of_job,
    )
    kind = "" if error is None else error.kind
    return row, "\n".join((key or "", text, code, kind, message)).casefold()


async def queue(visit: Visit) -> View:
    """Show a queue's items: those in some states, with some text; or go to the one that is looked for."""
    insight = visit.queue
    group = visit.text("state") or "all"
    if group not in GROUPS:
        raise HTTPException(400, f"state must be one of {', '.join(GROUPS)}.")
    wanted = visit.text("find")
    if wanted:
        number = await _found(visit, insight, wanted)
        if number is not None:
            return RedirectResponse(visit.queue_link(f"items/{number}"), 303)
    text = visit.text("text")
    before = visit.number("before") or ID_END
    rows, older, searched = await _listed(visit, insight, group, text.casefold(), before)
    return "queue.html", {
        "queue": await figures_of(visit, insight),
        "groups": GROUPS,
        "group": group,
        "actions": ACTIONS.get(group, ()) if visit.may_act else (),
        "rows": rows,
        "older": older,
        "searched": searched,
        "newest": before == ID_END,
        "text": text,
        "find": wanted,
        "note": note_of(visit),
    }


async def _found(visit: Visit, insight: Insight, wanted: str) -> int | None:
    """Return the item with an id or a key."""
    number = int(wanted) if is_number(wanted) else 0
    try:
        return (await insight.item(number)).id
    except UnknownTicket:
        pass
    by_key = await insight.item_of_key(wanted)
    if by_key is None:
        return None
    item = await insight.item(by_key)
    # A key that may not be shown is not found by it either: else one could guess it.
    return by_key if item.key is not None and visit.shown.name(item.key) == wanted else None


async def _listed(
    visit: Visit, insight: Insight, group: str, text: str, before: int
) -> tuple[list[ItemRow], int | None, int]:
    """Return a page of rows, the id before which the next one goes on, and how many were looked through."""
    rows: list[ItemRow] = []
    searched = 0
    while True:
        limit = READ_AT_ONCE if text else PAGE_SIZE + 1 - len(rows)
        items = await insight.items(GROUPS[group], before, limit)
        if not items:
            return rows, None, searched
        for item in items:
            if len(rows) == PAGE_SIZE:
                return rows, before, searched
            row, all_text = _row(visit, item)
            searched += 1
            before = item.id
            if text in all_text:
                rows.append(row)
        if text and searched >= SEARCHED:
            return rows, before, searched


async def item_of(visit: Visit) -> StoredItem:
    """Return the item that the address names.

    Raises:
        HTTPException: 404 if that is no number.
        UnknownTicket: If there is none.
    """
    text = visit.request.path_params["item"]
    if not is_number(text):
        raise HTTPException(404, "There is no such item.")
    return await visit.queue.item(int(text))


async def item(visit: Visit) -> View:
    """Show an item."""
    found = await item_of(visit)
    group = GROUP_OF[found.state]
    actions = ACTIONS.get(group, ()) if visit.may_act else ()
    if found.of_job:
        actions = tuple(one for one in actions if one == "cancel")
    error = visit.shown.error(found.error)
    return "item.html", {
        "queue": {
            "slug": visit.places.slug_of[visit.queue],
            "title": visit.places.title_of[visit.queue],
        },
        "item": found,
        "key": visit.shown.name(found.key),
        "group": group,
        "payload": extract(visit.shown.text(found.item)) if found.kept else None,
        "result": None if found.result is None else extract(visit.shown.text(found.result)),
        "error": error,
        "message": None if error is None else extract(error.message),
        "traceback": extract(error.traceback) if error is not None and error.traceback else None,
        "actions": actions,
        "note": note_of(visit),
    }


async def whole_text(visit: Visit) -> View:
    """Show all of a payload, a result, a message or a traceback, as text and nothing else."""
    found = await item_of(visit)
    error = visit.shown.error(found.error)
    name = visit.request.path_params["part"]
    text: str | None = None
    if name == "payload" and found.kept:
        text = visit.shown.text(found.item)
    elif name == "result" and found.result is not None:
        text = visit.shown.text(found.result)
    elif error is not None:
        text = {"message": error.message, "traceback": error.traceback}.get(name)
    if not text:
        raise HTTPException(404, "There is no such text.")
    content = text.encode("utf-8", "backslashreplace")
    return PlainTextResponse(
        content, headers={"content-security-policy": "default-src 'none'; sandbox"}
    )
