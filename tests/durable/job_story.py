"""What job_crash.py's processes wrote down, held against what the file has in the end."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

from crash import Story
from job_looks import ENDS

from microbatch.durable._file.codec import decode_error

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

    from job_crash import Made

#: Items of a job have its number times this, and their place.
SIZE_MAX = 1_000
#: Seconds after which what the dead have left will stay for ever. The promise, of 3 s, is a busy machine's to break.
STAYING = 60
NAMES = {state: name for name, state in ENDS.items()}


class JobStory(Story):
    """What the log tells: a method for each kind of line."""

    def __init__(self, killed: set[int], counts: Counter[str], made: Callable[[int], Made]) -> None:
        super().__init__(killed, counts)
        self.made = made
        self.last: dict[
            int, int
        ] = {}  # of each job, the last item that was begun for the first time
        self.brought_as: dict[int, set[str]] = defaultdict(set)
        self.broken_ones: set[int] = set()
        self.may_be_stopped: set[str] = set()
        self.may_be_gone: set[str] = set()
        self.told_of: set[str] = set()
        self.ends: dict[str, set[tuple[str, ...]]] = defaultdict(set)
        self.only: dict[str, bool] = {}

    def handled(self, number: str, pid: str) -> None:
        one = int(number)
        job = one // SIZE_MAX
        if one not in self.seen and self.made(job).settings.get("ordered"):
            self.counts["begun_out_of_order"] += one < self.last.get(job, 0)
            self.last[job] = one
        super().handled(number, pid)

    def bringing(self, number: str) -> None:
        self.counts["brought"] += 1

    def brought(self, number: str, uid: str) -> None:
        self.counts["acknowledged"] += 1
        self.brought_as[int(number)].add(uid)

    def broken(self, number: str) -> None:
        self.broken_ones.add(int(number))

    def cancelling(self, uid: str) -> None:
        self.may_be_stopped.add(uid)

    def deleting(self, uid: str) -> None:
        self.may_be_gone.add(uid)

    def retried(self, uid: str, again: str, only: str) -> None:
        self.counts["retried"] += 1
        self.only[again] = only == "True"

    def told(self, uid: str) -> None:
        self.counts["told"] += 1
        self.told_of.add(uid)

    def ended(self, uid: str, *how: str) -> None:
        self.ends[uid].add(how)

    def leftovers(self, seconds: str) -> None:
        self.counts["leftovers_stay"] += float(seconds) >= STAYING
        self.counts["leftovers_late"] += float(seconds) > 3


class Item(NamedTuple):
    """An item of a job, as the file has it in the end."""

    state: str
    error: Any


class Reckoning:
    """The file's jobs in the end, one by one."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        story: JobStory,
        counts: Counter[str],
        made: Callable[[int], Made],
        fate: Callable[[int], str],
    ) -> None:
        self.execute = connection.execute
        self.story = story
        self.counts = counts
        self.made, self.fate = made, fate
        self.done: Counter[int] = Counter()
        self.first: dict[
            str, int
        ] = {}  # a job's number as its key has it, by uid; that of the first one

    def do(self) -> None:
        """Look at all of them."""
        story, counts = self.story, self.counts
        rows = self.execute(
            f"""SELECT id, queue, uid, key, retry_of, life, outcome, ended_at, named, max_failures, lasts, total,
            {", ".join(ENDS)} FROM microbatch_jobs ORDER BY id"""
        ).fetchall()
        there = {row[2] for row in rows}
        for uids in story.brought_as.values():
            counts["keys_with_two_jobs"] += len(uids - story.may_be_gone) > 1
            counts["lost"] += len(uids - story.may_be_gone - there)
        for job, queue, uid, key, retry_of, life, outcome, ended_at, *rest in rows:
            named, max_failures, lasts, total, *ends = rest
            counts["left_over"] += life != 4
            counts[f"outcome_{outcome}"] += 1
            counts["untold"] += uid not in story.told_of
            seen = story.ends[uid] | {(outcome, repr(ended_at), *map(str, ends))}
            counts["ended_differently"] += len({(one[0], *one[2:]) for one in seen}) > 1
            items = self.items_of(job)
            if len(items) != total:
                story.error("items", uid, len(items), total)
            may_stop = uid in story.may_be_stopped or (
                max_failures is not None and ends[1] > max_failures
            )
            counts["cancelled_by_nobody"] += bool(ends[3]) and not may_stop
            counts["expired_without_deadline"] += bool(ends[4]) and lasts is None
            if retry_of is None:
                self.check_first(uid, int(key), items, may_stop or lasts is not None)
            else:
                self.check_again(job, uid, retry_of, items, bool(named))
            self.first[uid] = queue
        self.check_effects()

    def items_of(self, job: int) -> dict[int, Item]:
        """Return a job's items by their places."""
        found: dict[int, Item] = {}
        rows = self.execute(
            "SELECT first_id, count, position, state, attempts FROM microbatch_ranges WHERE job = ?",
            (job,),
        ).fetchall()
        for first, count, position, state, attempts in rows:
            for place in range(count):
                error = None
                if state == 7:
                    ((stored,),) = self.execute(
                        "SELECT error FROM microbatch_errors WHERE id = ?", (first + place,)
                    )
                    error = decode_error(stored, first + place, attempts)
                assert position + place not in found, job
                found[position + place] = Item(NAMES.get(state, str(state)), error)
        return found

    def check_first(self, uid: str, number: int, items: dict[int, Item], may_stop: bool) -> None:
        """Look at a job whose items are known by its number."""
        counts, story = self.counts, self.story
        recipe = self.made(number)
        counts["jobs"] += 1
        counts["jobs_in_parts"] += len(items) != recipe.size or number in story.broken_ones
        for place, item in items.items():
            one = number * SIZE_MAX + place
            self.check_item(uid, item, place in recipe.bad, one, may_stop)
            self.done[one] += item.state == "succeeded"

    def check_item(self, uid: str, item: Item, is_bad: bool, number: int, may_stop: bool) -> None:
        code = None if item.error is None else item.error.code
        if is_bad:
            allowed = {"failed"}
            self.counts["wrong_ends"] += code != "invalid_item"
        else:
            allowed = {self.fate(number), "cancelled", "expired"}
            if code == "process_died" or (may_stop and code == "internal_error"):
                allowed.add("failed")
        if item.state not in allowed:
            self.story.error(f"{uid} {number}: {item.state} {code}, not {allowed}")
            self.counts["wrong_ends"] += 1
        if item.state in ("succeeded", "skipped") and number not in self.story.seen:
            self.counts["ended_unseen"] += 1

    def check_again(
        self, job: int, uid: str, retry_of: str, items: dict[int, Item], named: bool
    ) -> None:
        """Look at a job that took over what did not end well in another one."""
        self.counts["jobs_again"] += 1
        found = self.execute(
            "SELECT id, named FROM microbatch_jobs WHERE uid = ?", (retry_of,)
        ).fetchall()
        ids = self.ids_of(job)
        for place, item in items.items():
            if named and item.state == "succeeded":
                self.done[int(ids[place])] += 1
        if not found:
            return
        ((before, _),) = found
        known = self.ids_of(before)
        left = {place: item for place, item in self.items_of(before).items() if goes(item, False)}
        sure = {place for place, item in left.items() if goes(item, True)}
        wanted = {True: sorted(sure), False: sorted(left)}
        only = self.story.only.get(uid)
        choices = [wanted[only]] if only is not None else list(wanted.values())
        if named:
            right = [ids[place] for place in sorted(ids)] in [
                [known[place] for place in places] for places in choices
            ]
        else:
            right = len(items) in map(len, choices)
        self.counts["wrong_copies"] += not right

    def ids_of(self, job: int) -> dict[int, str]:
        """Return the clients' ids of a job's items by their places."""
        rows = self.execute("SELECT position, ids FROM microbatch_item_ids WHERE job = ?", (job,))
        return {
            first + place: one for first, ids in rows for place, one in enumerate(json.loads(ids))
        }

    def check_effects(self) -> None:
        """Every item that succeeded where effects count has had its own, once."""
        effects = Counter(n for (n,) in self.execute("SELECT number FROM effects"))
        self.counts["effects_more_than_once"] += sum(times > 1 for times in effects.values())
        self.counts["effects"] += len(effects)
        self.counts["done_more_than_once"] += sum(times > 1 for times in self.done.values())


def goes(item: Item, only: bool) -> bool:
    """Tell whether an item goes again with its job."""
    if item.state in ("cancelled", "expired"):
        return True
    if item.state != "failed" or item.error.code == "invalid_item":
        return False
    return not only or item.error.retryable
