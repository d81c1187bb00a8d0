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
        "batcher",
        'self._state = "closing"',
        'self._state = "open"',
    ),
    Mutation(
        "an item goes into a buffer that was replaced a moment before",
        "entrance",
        """\
        if refuses and not self._takes(entry):
            self._find_gone()
        self._generalise(runtime)
        lanes = self._ranked
""",
        """\
        self._generalise(runtime)
        lanes = self._ranked
        if refuses and not self._takes(entry):
            self._find_gone()
""",
    ),
    Mutation(
        "max_pending is one too many",
        "state",
        "return self._max_pending - self._fifo.count - self._flying",
        "return self._max_pending + 1 - self._fifo.count - self._flying",
    ),
    Mutation(
        "items in back-off take no room",
        "state",
        "return self._max_pending - self._buffered() - self._flying - self._in_backoff",
        "return self._max_pending - self._buffered() - self._flying",
    ),
    Mutation(
        "max_pending_weight forgets what is in flight",
        "state",
        "return self._ranked.weight + self._flying_weight + self._backoff_weight",
        "return self._ranked.weight + self._backoff_weight",
    ),
    Mutation(
        "an item too heavy is let in",
        "entrance",
        "if allowed is not None and weight > allowed:",
        "if allowed is not None and weight > 2 * allowed:",
    ),
    Mutation(
        "who waits for room is forgotten when some comes",
        "entrance",
        "        if self._line:\n            self._admit()\n        self._simplify()",
        "        self._simplify()",
    ),
    Mutation(
        "a rejecting submit_many waits all the same",
        "entrance",
        'if group.feed is not None and self._on_full == "reject":',
        "if False:",
    ),
    # --- cancellation
    Mutation(
        "a handler sees withdrawn items",
        "_fifo",
        "uniform = not _gone(waiters)",
        "uniform = True",
    ),
    Mutation(
        "a handler sees withdrawn items, where there are priorities or weights",
        "buffer",
        "if entry.waiter.done():  # cancelled, and its notice is still on the way",
        "if False:",
    ),
    Mutation(
        "an item withdrawn in back-off keeps its room",
        "entrance",
        'elif state == "backoff":\n            self._end_backoff(entry)',
        'elif state == "backoff":\n            pass',
    ),
    Mutation(
        "a sharer who goes takes the slot from the others",
        "entrance",
        "            sharers.pop(waiter, None)\n            if sharers:",
        "            sharers.pop(waiter, None)\n            if False:",
    ),
    Mutation(
        "a handler is cancelled though somebody waits for it",
        "outcomes",
        "            and run.gone >= run.left\n",
        "",
    ),
    Mutation(
        "a handler that nobody waits for is not cancelled when the last one has its result early",
        "outcomes",
        "            self._cancel_if_abandoned(run)\n            self._changed()",
        "            self._changed()",
    ),
    # --- the buffer
    Mutation(
        "the last come are the first to go",
        "buffer",
        "return next(iter(self._arrivals.values()), None)",
        "return next(reversed(self._arrivals.values()), None)",
    ),
    Mutation(
        "who is urgent goes first in one batch of ten only",
        "buffer",
        "self._turns % FAIR_TURN == FAIR_TURN - 1",
        "self._turns % FAIR_TURN != FAIR_TURN - 1",
    ),
    Mutation(
        "a batch weighs more than it may",
        "buffer",
        "if heaviest is not None and entries and weight + entry.weight > heaviest:",
        "if heaviest is not None and entries and weight > heaviest:",
    ),
    Mutation(
        "partition_concurrency is one too many",
        "buffer",
        "return self._lane_limit is None or lane.flying < self._lane_limit",
        "return self._lane_limit is None or lane.flying <= self._lane_limit",
    ),
    Mutation(
        "a partition whose batch has ended is not looked at again",
        "buffer",
        "lane.flying -= 1\n        if lane.entries:\n            self._appraise(lane, now)\n",
        "lane.flying -= 1\n        if lane.entries:\n            pass\n",
    ),
    Mutation(
        "equal keys do not share a slot",
        "buffer",
        "sharer = lane.keys.find(key, entry.hash)",
        "sharer = None",
    ),
    Mutation(
        "a key joins what is in flight",
        "buffer",
        "            lane.keys.remove(entry.hash, entry)\n            self._changes += 1",
        "            self._changes += 1",
    ),
    Mutation(
        "flush makes nothing due",
        "buffer",
        "                lane.due = entry.seq\n                if mark",
        "                if mark",
    ),
    # --- outcomes
    Mutation(
        "an item gets its neighbour's result",
        "outcomes",
        "self._settle(run, index, results[index])",
        "self._settle(run, index, results[index - 1])",
    ),
    Mutation(
        "one who has gone keeps the others from their results",
        "outcomes",
        "except InvalidState:  # a caller has gone; the next ones are still to come\n                        continue",
        "except InvalidState:\n                        break",
    ),
    Mutation(
        "an item resolved early stays in flight in the books",
        "outcomes",
        "        run.left -= 1\n        self._flying -= 1",
        "        run.left -= 1",
    ),
    Mutation(
        "skipped items count as failed",
        "outcomes",
        "if not issubclass(type(error), Skipped):",
        "if True:",
    ),
    # --- retry
    Mutation(
        "one attempt too many",
        "retry",
        "if attempt >= self.attempts or not self.wants(error):",
        "if attempt > self.attempts or not self.wants(error):",
    ),
    Mutation(
        "an ItemError does not decide for itself",
        "retry",
        "            return error.retryable\n",
        "            return True\n",
    ),
    Mutation(
        "back-off is late",
        "outcomes",
        "heapq.heappush(self._backoffs, (when, next",
        "heapq.heappush(self._backoffs, (when + 0.1, next",
    ),
    # --- handler calls and slots
    Mutation(
        "a slot too many",
        "dispatch",
        "while self._starting < ready and self._busy < self._max_concurrency:",
        "while self._starting < ready and self._busy <= self._max_concurrency:",
    ),
    Mutation(
        "a handler that ignores its timeout keeps its slot",
        "outcomes",
        "        self._cancel(run)\n        self._free(run.slot)",
        "        self._cancel(run)",
    ),
    Mutation(
        "a crash of the handler reaches its callers as it is",
        "outcomes",
        "crashed.__cause__ = error\n",
        "crashed.__cause__ = None\n",
    ),
    Mutation(
        "a generator may leave items out",
        "dispatch",
        "            if missing:\n                raise",
        "            if False:\n                raise",
    ),
    # --- contexts
    Mutation(
        "a batch runs in a context that the next one sees",
        "_runtime",
        "contextvars.Context() if base is None else base.copy()",
        "contextvars.Context() if base is None else base",
    ),
    Mutation(
        "contexts are those of whoever came first",
        "batch",
        "None if contexts is None else tuple(contexts[i] for i in chosen)",
        "None if contexts is None else tuple(contexts[0] for _ in chosen)",
    ),
    # --- flush and close
    Mutation(
        "flush does not wait for retries",
        "outcomes",
        '        entry.attempts += 1\n        entry.state = "backoff"',
        "        entry.attempts += 1\n        for mark in entry.marks or ():\n            mark.release()\n"
        '        entry.marks = None\n        entry.state = "backoff"',
    ),
    Mutation(
        "who waits for room outlives the close",
        "batcher",
        "            self._close_line()\n            if self._fifo is not None:\n                self._fifo.closing",
        "            if self._fifo is not None:\n                self._fifo.closing",
    ),
    Mutation(
        "closing does not wait for items in back-off",
        "dispatch",
        "and not (self._buffered() or self._in_backoff)",
        "and not self._buffered()",
    ),
    Mutation(
        "leaving by an exception drains",
        "batcher",
        "await self.aclose() if exc_type is None else await self.aclose(0)",
        "await self.aclose()",
    ),
    # --- timers
    Mutation(
        "the timer is not set for items in back-off",
        "dispatch",
        "if self._backoffs and (when is None or self._backoffs[0][0] < when):",
        "if False:",
    ),
    Mutation(
        "an item waits longer than max_wait",
        "dispatch",
        "self._timer = self._runtime.call_at(when, self._ring)",
        "self._timer = self._runtime.call_at(when + 0.1, self._ring)",
    ),
    Mutation(
        "the timer goes on though nothing waits",
        "dispatch",
        "        self._pump(now)\n",
        "        self._pump(now)\n        if self._timer is None:\n            self._set_timer(now + 1.0)\n",
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
