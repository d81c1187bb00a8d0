"""Faults planted on purpose, in a copy of the package: the fuzzer must find each of them.

A mutation replaces a piece of text. One whose text is no longer there fails its test by name: plant its fault where
the code now stands, or drop it with the code.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import microbatch

PACKAGE = Path(microbatch.__file__).resolve().parent
FUZZ = Path(__file__).with_name("fuzz.py")


@dataclass(frozen=True)
class Mutation:
    """A fault: its name, where it is planted, what stands there and what comes in its place."""

    name: str  # what breaks
    module: str
    old: str
    new: str
    loop: str = "asyncio"


class Stale(Exception):
    """The text that a mutation replaces is not in the source, or more than once."""


MUTATIONS = [
    # --- the way in
    Mutation(
        "a closing batcher lets items in",
        "_core/closing",
        "life.become(CLOSING)",
        "life.become(OPEN)",
    ),
    Mutation(
        "an item goes into a buffer that was replaced a moment before",
        "_core/entrance",
        """\
        if refuses and not room.takes(entry):
            self._find_gone()
        self._leaving.generalise(loop)
        lane, carrier = room.ranked.place(entry)
""",
        """\
        self._leaving.generalise(loop)
        lane, carrier = room.ranked.place(entry)
        if refuses and not room.takes(entry):
            self._find_gone()
""",
    ),
    Mutation(
        "max_pending is one too many",
        "_core/room",
        "return most - len(fifo.items)",
        "return most + 1 - len(fifo.items)",
    ),
    Mutation(
        "items in back-off take no room",
        "_core/room",
        "return most - self.ranked.count - self._tally.flying - self._tally.backing_off",
        "return most - self.ranked.count - self._tally.flying",
    ),
    Mutation(
        "max_pending_weight forgets what is in flight",
        "_core/room",
        "return self.ranked.weight + tally.flying_weight + tally.backing_off_weight",
        "return self.ranked.weight + tally.backing_off_weight",
    ),
    Mutation(
        "an item too heavy is let in",
        "_core/line",
        "if allowed is not None and given > allowed:",
        "if allowed is not None and given > 2 * allowed:",
    ),
    Mutation(
        "who waits for room is forgotten when some comes",
        "_core/dispatcher",
        "        if room.line:\n            self._admission.admit()\n        room.simplify()",
        "        room.simplify()",
    ),
    Mutation(
        "a rejecting submit_many waits all the same",
        "_core/admission",
        "if feed.group.feed is not None and self._rules.rejects:",
        "if False:",
    ),
    # --- cancellation
    Mutation(
        "a handler sees withdrawn items",
        "_core/fifo",
        "uniform = not (waiters[0].done() if len(waiters) == 1 else _gone(waiters))",
        "uniform = True",
    ),
    Mutation(
        "a handler sees withdrawn items, where there are priorities or weights",
        "_core/lanes",
        "if entry.waiter.done():  # cancelled, and its notice is still on the way",
        "if False:",
    ),
    Mutation(
        "an item withdrawn in back-off keeps its room",
        "_core/room",
        "elif entry.state is BACKOFF:\n            self.call_back(entry)",
        "elif entry.state is BACKOFF:\n            pass",
    ),
    Mutation(
        "a sharer who goes takes the slot from the others",
        "_core/leaving",
        "            sharers.pop(waiter, None)\n            if sharers:",
        "            sharers.pop(waiter, None)\n            if False:",
    ),
    Mutation(
        "a handler is cancelled though somebody waits for it",
        "_core/giving_up",
        "            and run.gone >= run.left\n",
        "",
    ),
    Mutation(
        "a handler that nobody waits for is not cancelled when the last one has its result early",
        "_core/early",
        "            self._settler.keep_promise(run, index)\n            self._giving_up.cancel_if_abandoned(run)\n",
        "            self._settler.keep_promise(run, index)\n",
    ),
    # --- the buffer
    Mutation(
        "the last come are the first to go",
        "_core/ranking",
        "first = next(iter(self._arrivals.values()), None)",
        "first = next(reversed(self._arrivals.values()), None)",
    ),
    Mutation(
        "who is urgent goes first in one batch of ten only",
        "_core/ranking",
        "self._turns % FAIR_TURN == FAIR_TURN - 1",
        "self._turns % FAIR_TURN != FAIR_TURN - 1",
    ),
    Mutation(
        "a batch weighs more than it may",
        "_core/lanes",
        "if heaviest is not None and entries and weight + entry.weight > heaviest:",
        "if heaviest is not None and entries and weight > heaviest:",
    ),
    Mutation(
        "partition_concurrency is one too many",
        "_core/lanes",
        "return self._lane_limit is None or lane.flying < self._lane_limit",
        "return self._lane_limit is None or lane.flying <= self._lane_limit",
    ),
    Mutation(
        "a partition whose batch has ended is not looked at again",
        "_core/lanes",
        "lane.hold.come_back(run)\n        if lane.entries:\n            self._appraise(lane, now)\n",
        "lane.hold.come_back(run)\n        if lane.entries:\n            pass\n",
    ),
    Mutation(
        "equal keys do not share a slot",
        "_core/lanes",
        "sharer = lane.keys.find(key, entry.hash)",
        "sharer = None",
    ),
    Mutation(
        "a key joins what is in flight",
        "_core/lane",
        "            self.keys.remove(entry.hash, entry)\n",
        "            pass\n",
    ),
    Mutation(
        "flush makes nothing due in the flat lists",
        "_core/fifo",
        "            or self.flushes.due > self.head + full * self.size\n",
        "",
    ),
    Mutation(
        "flush does not wait for the batches that it made due",
        "_core/fifo",
        "            entry.count(marks)\n",
        "",
    ),
    Mutation(
        "flush makes nothing due where there are priorities or weights",
        "_core/lanes",
        "                lane.due = entry.seq\n                if mark",
        "                if mark",
    ),
    # --- outcomes
    Mutation(
        "an item gets its neighbour's result",
        "_core/settler",
        "            else:\n                self.settle(run, index, results[index])",
        "            else:\n                self.settle(run, index, results[index - 1])",
    ),
    Mutation(
        "one who has gone keeps the others from their results",
        "_core/settler",
        "except InvalidState:  # a caller has gone; the next ones are still to come\n            continue",
        "except InvalidState:\n            return",
    ),
    Mutation(
        "the only caller of a batch who has gone breaks it",
        "_core/settler",
        "if not run.waiters[0].done():",
        "if True:",
    ),
    Mutation(
        "an item resolved early stays in flight in the books",
        "_core/settler",
        "        run.left -= 1\n        self._tally.flying -= 1",
        "        run.left -= 1",
    ),
    Mutation(
        "skipped items count as failed",
        "_core/settler",
        "if not issubclass(type(error), Skipped):",
        "if True:",
    ),
    # --- retry
    Mutation(
        "one attempt too many",
        "_pure/retry",
        "if attempt >= self.attempts or not self.wants(error):",
        "if attempt > self.attempts or not self.wants(error):",
    ),
    Mutation(
        "an ItemError does not decide for itself",
        "_pure/retry",
        "            return error.retryable\n",
        "            return True\n",
    ),
    Mutation(
        "back-off is late",
        "_core/backoff",
        "heapq.heappush(self._heap, (due, next",
        "heapq.heappush(self._heap, (due + 0.1, next",
    ),
    # --- hold
    Mutation(
        "a refused call holds nothing",
        "_core/lanes",
        "        if lane.hold is not None and lane.hold.closed:\n            return False\n",
        "",
    ),
    Mutation(
        "all go at once when the time is over",
        "_core/hold",
        "return self.until is not None or self.probe is not None\n",
        "return self.until is not None\n",
    ),
    Mutation(
        "a late refusal makes no hold longer",
        "_core/holding",
        "return Refusal(bool(after) and hold.extend(now + pause_of(after or 0.0)))",
        "return Refusal(False)",
    ),
    Mutation(
        "a refusal counts as an attempt",
        "_core/lanes",
        "        entry.state = BUFFERED\n        entry.run = None\n",
        "        entry.state = BUFFERED\n        entry.run = None\n        entry.attempts += 1\n",
    ),
    Mutation(
        "refused items go behind the others",
        "_core/lane",
        "        self.entries.push_back(entry)\n",
        "        entry.seq += 1_000_000\n        self.entries.push_back(entry)\n",
    ),
    Mutation(
        "refused items fail too early",
        "_core/holding",
        "spent=not late and refusals >= retry.holds",
        "spent=not late and refusals >= retry.holds - 1",
    ),
    Mutation(
        "what is refused for ever never ends",
        "_core/holding",
        "spent=not late and refusals >= retry.holds",
        "spent=False",
    ),
    Mutation(
        "the timer is not set for a hold",
        "_core/lanes",
        "if self.holds and (over := self.holds.deadline()) is not None:",
        "if False:",
    ),
    Mutation(
        "an item withdrawn while held keeps its room",
        "_core/ranking",
        "        if self._returned.pop(element.seq, None) is None:\n",
        "        if element.seq in self._returned:\n            return\n"
        "        if self._returned.pop(element.seq, None) is None:\n",
    ),
    # --- handler calls and slots
    Mutation(
        "a slot too many",
        "_core/dispatcher",
        "while slots.starting < ready and slots.busy < self._max_concurrency:",
        "while slots.starting < ready and slots.busy <= self._max_concurrency:",
    ),
    Mutation(
        "a handler that ignores its timeout keeps its slot",
        "_core/giving_up",
        "        self._cancel(run)\n        self._slots.free(run.slot)",
        "        self._cancel(run)",
    ),
    Mutation(
        "a crash of the handler reaches its callers as it is",
        "_core/settler",
        "crashed.__cause__ = error\n",
        "crashed.__cause__ = None\n",
    ),
    Mutation(
        "a generator may leave items out",
        "_core/call",
        "        if missing:\n            raise",
        "        if False:\n            raise",
    ),
    # --- contexts
    Mutation(
        "a batch runs in a context that the next one sees",
        "_loops/context",
        "contextvars.Context() if base is None else base.copy()",
        "contextvars.Context() if base is None else base",
    ),
    Mutation(
        "contexts are those of whoever came first",
        "_core/info",
        "None if contexts is None else tuple(contexts[i] for i in chosen)",
        "None if contexts is None else tuple(contexts[0] for _ in chosen)",
    ),
    # --- flush and close
    Mutation(
        "flush does not wait for retries",
        "_core/backoff",
        "        entry.state = BACKOFF\n",
        "        for mark in entry.marks or ():\n            mark.release()\n"
        "        entry.marks = None\n        entry.state = BACKOFF\n",
    ),
    Mutation(
        "who waits for room outlives the close",
        "_core/closing",
        "            self._admission.close()\n            if room.fifo is not None:\n                room.fifo.closing",
        "            if room.fifo is not None:\n                room.fifo.closing",
    ),
    Mutation(
        "closing does not wait for items in back-off",
        "_core/dispatcher",
        "and not (room.buffered() or self._tally.backing_off)",
        "and not room.buffered()",
    ),
    Mutation(
        "leaving by an exception drains",
        "_core/batcher",
        "await self.aclose() if exc_type is None else await self.aclose(0)",
        "await self.aclose()",
    ),
    # --- timers
    Mutation(
        "the timer is not set for items in back-off",
        "_core/dispatcher",
        "        if self._backoffs:\n            due =",
        "        if False:\n            due =",
    ),
    Mutation(
        "an item waits longer than max_wait",
        "_core/timer",
        "self._handle = self._loop.call_at(when, self._due)",
        "self._handle = self._loop.call_at(when + 0.1, self._due)",
    ),
    Mutation(
        "the timer goes on though nothing waits",
        "_core/dispatcher",
        "        self.pump(now)\n",
        "        self.pump(now)\n        self.timer.at_latest(now + 1.0)\n",
    ),
]


def copied(folder: Path) -> Path:
    """Copy the package into a folder; return the folder."""
    shutil.copytree(PACKAGE, folder / "microbatch", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def planted(mutation: Mutation, folder: Path) -> Path:
    """Copy the package into a folder with the fault in it; return the folder."""
    path = copied(folder) / "microbatch" / f"{mutation.module}.py"
    text = path.read_text(encoding="utf-8")
    if text.count(mutation.old) != 1:
        raise Stale(
            f"{mutation.name}: {mutation.module}.py has {text.count(mutation.old)} times {mutation.old!r}"
        )
    path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    return folder


def hunted(folder: Path, loop: str, count: int, seconds: float) -> str | None:
    """Let the fuzzer look for a fault of the package in this folder; return what it finds, in a line."""
    command = [sys.executable, str(FUZZ), "--loop", loop, "--count", str(count), "--stop"]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=seconds, check=False
    )
    head, *found = done.stdout.splitlines() or [done.stderr]
    assert head == f"the laws of {folder.resolve()}", head  # the copy was what ran
    assert done.returncode == (1 if found[1:] else 0), done.stderr  # 1 because it found something
    return found[0] if done.returncode else None
