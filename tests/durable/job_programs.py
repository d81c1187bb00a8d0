"""Jobs in a file as drawn programs use them: what is done, and what must hold whatever was done before."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from job_laws import JobLaws
from job_looks import LIVING
from session_model import File

from microbatch.durable._file.codec import encode_reason
from microbatch.durable._file.job_records import Chunk, NewJob
from microbatch.durable._file.limits import Limits
from microbatch.durable._file.records import ENDED, Demand, Settlement, State, Verdict
from microbatch.durable._file.session import Ids
from microbatch.durable.errors import QueueFull

if TYPE_CHECKING:
    from collections.abc import Generator

    from microbatch.durable._file.session import Session

LIMITS = Limits(
    max_depth=60, key_ttl=50.0, result_ttl=100.0, job_ttl=200.0, keep_done=9, keep_dead=2
)
ATTEMPTS_MAX = 3


class OneProcess:
    """A process that has the file open: its ids, its consumers by queue, what it brings."""

    def __init__(self) -> None:
        self.ids: Ids | None = Ids()
        self.consumers: dict[int, int] = {}
        self.coming: list[tuple[int, int, int]] = []  # queue, job, items so far


class JobProgram(JobLaws):
    """A file with two queues, used by two processes."""

    def __init__(self, folder: str) -> None:
        self.file = File(Path(folder) / "q.db")
        self.numbers = itertools.count(1)
        self.claims = itertools.count(1, 10)
        self.processes = [OneProcess(), OneProcess()]
        self.file.ids = self.processes[0].ids
        self.queues = [self.file.write(lambda s, n=n: s.queue(f"q{n}")).id for n in range(2)]
        for process in self.processes:
            self._register(process)
        self.start_laws()

    # Transactions

    def run(self, process: int, operations: list[tuple[Any, ...]]) -> None:
        """Do some things in one transaction of a process; look at everything after it."""
        one = self.processes[process]
        self.file.ids = one.ids
        after: list[Any] = []

        def work(session: Session) -> Generator[Any, Any, None]:
            for name, *arguments in operations:
                then = yield from getattr(self, f"do_{name}")(session, one, *arguments)
                if then is not None:
                    after.append(then)

        self.file.write(work)
        self.check()
        for then in after:
            then()

    def alone(self, process: OneProcess, work: Any) -> Any:
        """Run one transaction of its own."""
        self.file.ids = process.ids
        answer = self.file.write(work)
        self.check()
        return answer

    def _register(self, process: OneProcess) -> None:
        for queue in self.queues:
            process.consumers[queue] = self.file.write(lambda s, q=queue: s.register(q, 1, None))

    def jobs(self, condition: str = "life BETWEEN 1 AND 4") -> list[tuple[int, int, str]]:
        """Return number, queue and id of some jobs."""
        return self.rows(
            f"SELECT id, queue, uid FROM microbatch_jobs WHERE {condition} ORDER BY id"
        )

    def pick(
        self, number: int, condition: str = "life BETWEEN 1 AND 4"
    ) -> tuple[int, int, str] | None:
        found = self.jobs(condition)
        return found[number % len(found)] if found else None

    # Jobs that come in: transactions of their own, between which anything may happen

    def do_begin(
        self, session: Session, process: OneProcess, queue: int, how: dict[str, Any]
    ) -> Any:
        queue = self.queues[queue]
        number = next(self.numbers)
        settings = {name: value for name, value in how.items() if value is not None}
        new = NewJob(uid=f"job {number}", **settings)
        owned = self.rows(
            "SELECT uid, life, ended_at FROM microbatch_jobs WHERE queue = ? AND key = ? AND keyed = 1",
            queue, new.key,
        )  # fmt: skip
        begun = yield from session.jobs.begin(queue, new, process.consumers[queue], LIMITS)
        living = [
            (uid, life)
            for uid, life, ended_at in owned
            if life in (0, *LIVING) or (life == 4 and ended_at + LIMITS.key_ttl > self.file.now)
        ]
        if living:
            ((uid, life),) = living
            assert begun.uid == uid
            assert begun.busy == (life == 0)
            assert begun.repeated == (life != 0)
        else:
            assert begun == (begun.number, new.uid, False, False, False)
            process.coming.append((queue, begun.number, 0))

    def do_stage(
        self, session: Session, process: OneProcess, which: int, count: int, refused: list[int]
    ) -> Any:
        if not process.coming:
            return
        place = which % len(process.coming)
        queue, job, before = process.coming[place]
        ((named,),) = self.rows("SELECT named FROM microbatch_jobs WHERE id = ?", job)
        payloads = [b"%d.%d" % (job, before + n) for n in range(count)]
        ids = [f"id {before + n}" for n in range(count)] if named else None
        bad = {
            n: encode_reason("ValueError", "no", "invalid_item", retryable=False)
            for n in refused
            if n < count
        }
        chunk = Chunk(before, payloads, bad, ids, None)
        refusal = yield from session.jobs.stage(queue, LIMITS, job, chunk, process.consumers[queue])
        assert refusal is None or isinstance(refusal, QueueFull)
        if refusal is None:
            process.coming[place] = (queue, job, before + count)

    def do_show(self, session: Session, process: OneProcess, which: int, held: bool) -> Any:
        if not process.coming:
            return
        queue, job, count = process.coming.pop(which % len(process.coming))
        if held and process.ids is not None:
            process.ids.held.add(job)
        yield from session.jobs.show(queue, job, count, process.consumers[queue])

    def do_release(self, session: Session, process: OneProcess) -> Any:
        yield from ()
        if process.ids is not None:
            process.ids.held.clear()

    def do_abandon(self, session: Session, process: OneProcess, which: int) -> Any:
        if process.coming:
            _, job, _ = process.coming.pop(which % len(process.coming))
            assert (yield from session.jobs.abandon(job))

    # Items

    def do_append(
        self, session: Session, process: OneProcess, queue: int, count: int, claims: bool
    ) -> Any:
        queue = self.queues[queue]
        demand = Demand(process.consumers[queue], next(self.claims), 1, 3) if claims else None
        yield from session.append(queue, LIMITS, [b"single"] * count, None, demand)

    def do_claim(
        self, session: Session, process: OneProcess, queue: int, slots: int, size: int
    ) -> Any:
        queue = self.queues[queue]
        demand = Demand(process.consumers[queue], next(self.claims), slots, size)
        held = set() if process.ids is None else set(process.ids.held)
        yield from session.count_jobs()
        before = self._open_lanes(queue)
        claims, _ = yield from session.claim(queue, demand)
        for claim in claims:
            self._check_claim(claim, before, held, size)

    def _open_lanes(self, queue: int) -> dict[int, tuple[Any, ...]]:
        rows = self.rows(
            """SELECT id, life, paused, deadline, batch_size, ordered, uid, named FROM microbatch_jobs
            WHERE queue = ?""",
            queue,
        )
        return {row[0]: row[1:] for row in rows}

    def do_settle(
        self, session: Session, process: OneProcess, queue: int, which: int, ways: list[int]
    ) -> Any:
        queue = self.queues[queue]
        consumer = process.consumers[queue]
        held = yield from session.held(queue, consumer)
        if not held:
            return
        claims = sorted({one.claim for one in held})
        claim = claims[which % len(claims)]
        mine = sorted(one.first + n for one in held if one.claim == claim for n in range(one.count))
        done = [
            number for number, way in zip(mine, itertools.cycle(ways), strict=False) if way == 0
        ]
        verdicts = [
            _verdict(number, way)
            for number, way in zip(mine, itertools.cycle(ways), strict=False)
            if 0 < way < 6
        ]
        settlement = Settlement(claim, done, [b"result"] * len(done), verdicts)
        settled = yield from session.settle(queue, LIMITS, consumer, [settlement])
        assert settled == set(done) | {verdict.id for verdict in verdicts}

    def do_give_back(self, session: Session, process: OneProcess, queue: int) -> Any:
        queue = self.queues[queue]
        while (yield from session.give_back(queue, process.consumers[queue])):
            pass

    def do_cancel_item(self, session: Session, process: OneProcess, number: int) -> Any:
        rows = self.rows("SELECT first_id, count, queue, state FROM microbatch_ranges")
        items = [
            (first + n, queue)
            for first, count, queue, state in rows
            for n in range(count)
            if state != 8
        ]
        if items:
            item, queue = items[number % len(items)]
            yield from session.cancel(queue, LIMITS, item)

    def do_by_hand(self, session: Session, process: OneProcess, queue: int, purges: bool) -> Any:
        """Requeue or remove all that there is: no job's item is touched, and none counted."""
        queue = self.queues[queue]
        yield from session.count_jobs()
        sql = "SELECT ifnull(sum(count), 0) FROM microbatch_ranges WHERE queue = ? AND job IS NULL AND state"
        states = "IN (3, 4, 5, 6, 7)" if purges else "= 7"
        ((wanted,),) = self.rows(f"{sql} {states}", queue)
        change = session.purge if purges else session.requeue
        assert (yield from change(queue, range(1, 400))) == wanted

    # Acting on jobs

    def do_cancel(self, session: Session, process: OneProcess, which: int) -> Any:
        found = self.pick(which)
        if found is not None:
            yield from session.jobs.cancel(found[1], found[2], None)

    def do_pause(self, session: Session, process: OneProcess, which: int, paused: bool) -> Any:
        found = self.pick(which)
        if found is not None:
            yield from session.jobs.pause(found[1], found[2], None, paused=paused)

    def do_delete(self, session: Session, process: OneProcess, which: int) -> Any:
        found = self.pick(which)
        if found is not None:
            yield from session.jobs.delete(found[1], found[2], None)

    def do_step(self, session: Session, process: OneProcess, which: int) -> Any:
        found = self.pick(which, "chore IS NOT NULL")
        if found is not None:
            yield from session.jobs.step(found[0])

    def do_look(self, session: Session, process: OneProcess, queue: int) -> Any:
        """Do what time asks for."""
        queue = self.queues[queue]
        yield from session.jobs.expire(queue)
        yield from session.jobs.keep(queue, LIMITS)
        yield from session.prune(queue, LIMITS)
        yield from session.tidy(queue)

    def do_tell(self, session: Session, process: OneProcess, queue: int, again: bool | None) -> Any:
        queue = self.queues[queue]
        consumer = process.consumers[queue]
        yield from session.count_jobs()
        found = yield from session.jobs.take_tell(queue, consumer)
        if found is None:
            return
        uid = found[0]
        ((life,),) = self.rows("SELECT life FROM microbatch_jobs WHERE uid = ?", uid)
        assert life == 4, "it is told of after its end"
        assert uid not in self.told
        if again is None:  # it is on the way to being told
            return
        yield from session.jobs.told(uid, consumer, 5.0 if again else None)
        if not again:
            self.told.add(uid)

    def do_clock(self, session: Session, process: OneProcess, step: float) -> Any:
        yield from ()

        def move() -> None:
            self.file.now += step

        return move

    # What takes several transactions

    def kill(self, process: int) -> None:
        """Let a process die; the other one takes back what it had, and removes what it brought."""
        dead, other = self.processes[process], self.processes[1 - process]
        for queue, consumer in dead.consumers.items():
            self.alone(other, lambda s, c=consumer: s.jobs.abandon_all(c))
            more = True
            while more:
                _, more = self.alone(
                    other, lambda s, q=queue, c=consumer: s.take_back(q, c, ATTEMPTS_MAX)
                )
            self.alone(other, lambda s, c=consumer: s.forget(c))
        self.processes[process] = OneProcess()
        self.file.ids = self.processes[process].ids
        self._register(self.processes[process])

    def retry(self, process: int, which: int, only: bool) -> None:
        """Make a job of what did not end well in another."""
        one = self.processes[process]
        found = self.pick(which, "life = 4 AND kept = 1")
        if found is None:
            return
        job, queue, uid = found
        recipe = self.alone(one, lambda s: s.jobs.recipe(queue, uid, None))
        number = next(self.numbers)
        new = NewJob(
            uid=f"job {number}", retry_of=uid, priority=recipe.priority, batch_size=recipe.batch_size,
            ordered=bool(recipe.ordered), named=bool(recipe.named), max_failures=recipe.max_failures,
        )  # fmt: skip
        consumer = one.consumers[queue]
        begun = self.alone(one, lambda s: s.jobs.begin(queue, new, consumer, LIMITS))
        wanted = self._not_well(job, only)
        self.copied[begun.number] = (job, wanted)
        taken: list[bytes] = []
        after: int | None = -1
        while after is not None:
            some = self.alone(
                one,
                lambda s, a=after: s.jobs.leftovers(job, bool(recipe.named), a, 4, only),
            )
            after = some.after
            if some.payloads:
                chunk = Chunk(len(taken), some.payloads, {}, some.ids, None)
                refusal = self.alone(
                    one, lambda s, c=chunk: s.jobs.stage(queue, LIMITS, begun.number, c, consumer)
                )
                if refusal is not None:
                    self.alone(one, lambda s: s.jobs.abandon(begun.number))
                    return
                taken += some.payloads
        assert taken == [b"%d.%d" % self._origin(job, place) for place in wanted]
        self.alone(one, lambda s: s.jobs.show(queue, begun.number, len(taken), consumer))

    def _not_well(self, job: int, only: bool) -> list[int]:
        rows = self.rows(
            """SELECT first_id, count, position, state, attempts FROM microbatch_ranges
            WHERE job = ? AND state IN (5, 6, 7) ORDER BY position""",
            job,
        )
        errors = dict(self.rows("SELECT * FROM microbatch_errors"))
        return [
            position + n
            for first, count, position, state, attempts in rows
            for n in range(count)
            if state != 7 or (attempts and (not only or b"can go again" in errors[first + n] or b"ProcessDied" in errors[first + n]))
        ]  # fmt: skip

    def page(self, process: int, which: int, kind: int, limit: int) -> None:
        """Read a job's outcomes page by page: all of them, once each, by their places."""
        found = self.pick(which, "life BETWEEN 1 AND 4 AND kept = 1")
        if found is None:
            return
        job = found[0]
        ((named,),) = self.rows("SELECT named FROM microbatch_jobs WHERE id = ?", job)
        states = [sorted(ENDED), *([state] for state in ENDED)][kind]
        wanted = [
            (position + n, state)
            for count, position, state in self.rows(
                "SELECT count, position, state FROM microbatch_ranges WHERE job = ? ORDER BY position", job
            )
            for n in range(count)
            if state in states
        ]  # fmt: skip
        seen: list[tuple[int, int]] = []
        after: int | None = -1
        while after is not None:
            page = self.alone(
                self.processes[process],
                lambda s, a=after: s.jobs.page(job, bool(named), states, a, limit),
            )
            assert len(page.items) <= limit
            seen += [(item.position, int(item.state)) for item in page.items]
            assert all(
                (item.result is not None) == (item.state == State.DONE) for item in page.items
            )
            after = page.after
        assert seen == wanted

    def new(  # noqa: PLR0917
        self,
        process: int,
        queue: int,
        how: dict[str, Any],
        sizes: list[int],
        refused: list[int],
        held: bool,
    ) -> None:
        """Bring a job, whole."""
        one = self.processes[process]
        before = len(one.coming)
        self.run(process, [("begin", queue, how)])
        if len(one.coming) > before:
            for size in sizes:
                self.run(process, [("stage", before, size, refused)])
            self.run(process, [("show", before, held)])

    def finish(self) -> None:
        """Let everything end, and everything be too old: nothing may be left, and nothing be kept."""
        for process in (0, 1):
            self.run(process, [("tell", process, None)])
        for process in (0, 1):
            self.kill(process)
        assert self.rows("SELECT 1 FROM microbatch_jobs WHERE teller IS NOT NULL") == []
        one = self.processes[0]
        for _, queue, uid in self.jobs():
            self.alone(one, lambda s, q=queue, u=uid: s.jobs.pause(q, u, None, paused=False))
        for _ in range(400):
            if not self.jobs("life BETWEEN 1 AND 3 OR chore IS NOT NULL"):
                break
            for queue in (0, 1):
                self.run(0, [("look", queue)])
                self.run(0, [("step", 0)])
                self.run(0, [("claim", queue, 2, 5)])
                self.run(0, [("settle", queue, 0, [0])])
            self.file.now += 0.5
        else:
            raise AssertionError("it never ends", self.jobs("life <> 4"))
        self.file.now += 1_000.0
        for _ in range(400):
            if not self.rows("SELECT 1 FROM microbatch_ranges UNION SELECT 1 FROM microbatch_jobs"):
                break
            for queue in (0, 1):
                self.run(0, [("claim", queue, 3, 8), ("settle", queue, 0, [0])])
                self.run(0, [("look", queue), ("step", 0), ("by_hand", queue, True)])
        for table in ("ranges", "blobs", "results", "errors", "jobs", "job_details", "item_ids"):
            assert self.rows(f"SELECT * FROM microbatch_{table}") == [], table
        assert self.rows("SELECT lane FROM microbatch_lanes WHERE lane <> 0") == []


def _verdict(number: int, way: int) -> Verdict:
    text = "can go again" if way in (2, 3) else "cannot"
    error = encode_reason("ItemError", text, "odd", retryable=way in (2, 3))
    if way == 1:
        return Verdict(number, State.SKIPPED, error, code="skipped")
    if way in (2, 5):
        return Verdict(number, State.DEAD, error, code="odd")
    if way == 3:
        return Verdict(number, State.SCHEDULED, error, float(number % 3), code="odd")
    return Verdict(number, State.READY, None, 0.0, counted=False)
