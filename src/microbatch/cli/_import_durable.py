"""``import --durable``: the rows become a job on disk, which goes on where a kill left it."""

from __future__ import annotations

from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Any

import anyio

from microbatch._pure.report import error_code
from microbatch.durable import DurableBatcher, DurableQueue, JobStatus
from microbatch.durable._file.job_life import VISIBLE
from microbatch.durable.insight import Insight

from ._command import FOUND, WRONG_USE, CommandEnd
from ._import_failed import FailedRows, raw_of
from ._import_run import handler_of, retry_of, rows_a_call
from ._live import ProgressBar
from ._wording import count_text, rate_text, seconds_text

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncGenerator, Iterator

    from microbatch.durable import Job

    from ._console import Console
    from ._import_source import RowSource

#: The queue that imports go through: nothing else is in it, and a worker here takes nothing else.
QUEUE = "import"

#: Seconds for which an import that has ended is known, with its outcomes: a week, as jobs are.
_KEPT = 604_800.0

#: Jobs that are read at once while one is looked for.
_JOBS_READ = 1_000

#: Behind a key: how often it was asked for ``--again``.
_MARK = "#"


class DurableImport:
    """One import through a file.

    Args:
        args: The command's.
        console: Where notes go.
        source: The rows.
        item_type: What they are; None for plain dicts.

    Attributes:
        status: The job as it was seen last; None until it is on the disk.
        went_on: Whether it was there before.
    """

    def __init__(
        self, args: argparse.Namespace, console: Console, source: RowSource, item_type: Any
    ) -> None:
        self._args = args
        self._console = console
        self._source = source
        self._settings: dict[str, Any] = {
            "item_type": Any if item_type is None else item_type,
            "queue": QUEUE,
            "key_ttl": _KEPT,
            "result_ttl": _KEPT,
            "job_ttl": _KEPT,
            "max_depth": 1_000_000_000,  # a whole file is one import
        }
        self.status: JobStatus | None = None
        self.went_on = False

    async def run(self) -> JobStatus:
        """Store the rows unless they are there, have them handled, and return how that ended.

        Raises:
            CommandEnd: If the handler can be none, another import stands in the way, or the source cannot
                be read to its end; nothing is stored then.
            QueueUnavailable: If the file cannot be used.
        """
        handler = handler_of(self._args)
        uid = await self._stored()
        if self.went_on and self.status is not None and self.status.life == "ended":
            self._console.note(f"job {uid} has imported this before: --again imports it once more")
            async with DurableQueue(self._args.durable, telemetry=False, **self._settings) as queue:
                await self._keep_failed(queue.job(uid))
            return self.status
        async with DurableBatcher(
            self._args.durable,
            handler,
            max_batch_size=rows_a_call(self._args),
            max_concurrency=self._args.concurrency,
            retry=retry_of(self._args),
            name=self._args.handler,
            **self._settings,
        ) as batcher:
            assert self.status is not None  # noqa: S101 - it is stored
            await self._tell_of_pauses(batcher, self.status)
            status = await self._watched(batcher.job(uid))
            await self._keep_failed(batcher.job(uid))
        return status

    async def _stored(self) -> str:
        """Return the id of the job, which is on the disk then."""
        args = self._args
        fingerprint = None
        if not self._source.is_stdin:
            names = (args.handler, args.type or "", self._source.format)
            with self._to_its_end():
                fingerprint = await anyio.to_thread.run_sync(lambda: self._source.digest(*names))
        key = args.key or fingerprint or ""
        async with DurableQueue(args.durable, telemetry=False, **self._settings) as queue:
            known = await self._known(queue, key)
            others = await self._open_jobs(queue)
            self._refuse_others(others)
            await self._refuse_strangers(queue)
            for status in others:
                if known is None or status.id != known.id:
                    left = f"{count_text(status.pending, 'row')} of it are handled too"
                    self._console.note(f"job {status.id}, an earlier import, has not ended: {left}")
            if known is not None and not args.again:
                content = (known.metadata or {}).get("content")
                if None not in (content, fingerprint) and content != fingerprint:
                    message = (
                        f"key {key!r} stands for another content, handler or type (job {known.id}): "
                        "give another --key, or --again"
                    )
                    raise CommandEnd(message, WRONG_USE)
                self.went_on, self.status = True, known
                if known.life != "ended":
                    done = f"{known.done:,} of {count_text(known.total, 'row')} are done"
                    self._console.note(f"goes on with job {known.id}: {done}")
                return known.id
            if known is not None and known.life != "ended":
                message = (
                    f"job {known.id} has not ended: go on with it without --again, or cancel it"
                )
                raise CommandEnd(message, WRONG_USE)
            with ProgressBar(self._console, "read", self._source.size) as bar:
                job = await self._enqueued(queue, _key_after(known, key), fingerprint, bar)
            self.status = await job.status()
            return job.id

    async def _enqueued(
        self, queue: DurableQueue[Any, Any], key: str, fingerprint: str | None, bar: ProgressBar
    ) -> Job[Any]:
        async def values() -> AsyncGenerator[Any, None]:
            rows = self._source.rows(bar.show)
            async with aclosing(rows):
                async for outcome in rows:
                    row = outcome.value
                    yield outcome.error if row is None else row.value

        with self._to_its_end():
            return await queue.enqueue_job(
                values(),
                key=key,
                fingerprint=fingerprint,
                invalid="fail",
                metadata={**self._made_by(), "content": fingerprint},
            )

    @contextmanager
    def _to_its_end(self) -> Iterator[None]:
        try:
            yield
        except (OSError, EOFError, ValueError) as error:
            message = (
                f"{self._args.source} cannot be read to its end, so nothing was stored: {error}"
            )
            raise CommandEnd(message, FOUND) from error

    def _made_by(self) -> dict[str, Any]:
        """Return what says whose rows these are: a worker for others must not take them."""
        return {"handler": self._args.handler, "type": self._args.type}

    @staticmethod
    async def _known(queue: DurableQueue[Any, Any], key: str) -> JobStatus | None:
        """Return the newest job with this key."""
        cursor: int | None = None
        while True:
            page = await queue.jobs(cursor=cursor, limit=_JOBS_READ)
            for status in page.jobs:
                if status.key is not None and status.key.partition(_MARK)[0] == key:
                    return status
            if page.cursor is None:
                return None
            cursor = page.cursor

    @staticmethod
    async def _open_jobs(queue: DurableQueue[Any, Any]) -> list[JobStatus]:
        lives: list[Any] = [life for life in VISIBLE if life != "ended"]
        return [status for life in lives for status in (await queue.jobs(life=life)).jobs]

    def _refuse_others(self, found: list[JobStatus]) -> None:
        """Refuse to handle what another handler, or type, is meant for."""
        for status in found:
            made_by = dict(status.metadata or {})
            made_by.pop("content", None)
            if made_by != self._made_by():
                other = made_by.get("handler")
                message = (
                    f"job {status.id} in {self._args.durable} is an import with handler {other!r} that has "
                    f"not ended: end it or cancel it before (microbatch job FILE ID --queue {QUEUE} "
                    "--cancel), or use another file"
                )
                raise CommandEnd(message, WRONG_USE)

    async def _refuse_strangers(self, queue: DurableQueue[Any, Any]) -> None:
        """Refuse to handle items that no import has put there."""
        insight = Insight(queue)
        for state in ("ready", "scheduled", "claimed"):
            async with aclosing(insight.ids(state)) as runs:  # type: ignore[type-var]
                async for _ in runs:
                    message = (
                        f"{self._args.durable} has items in its queue {QUEUE!r} that are no import's, and this "
                        "handler would get them: use another file"
                    )
                    raise CommandEnd(message, WRONG_USE)

    async def _tell_of_pauses(self, queue: DurableQueue[Any, Any], status: JobStatus) -> None:
        """Say why nothing will happen."""
        if (await queue.stats()).paused:
            end = f"microbatch resume {self._args.durable} --queue {QUEUE}"
            self._console.note(
                f"the queue is paused, and nothing begins until it is resumed: {end}"
            )
        if status.paused:
            end = f"microbatch job {self._args.durable} {status.id} --queue {QUEUE} --resume"
            self._console.note(f"the job is paused, and nothing begins until it is resumed: {end}")

    async def _watched(self, job: Job[Any]) -> JobStatus:
        status = await job.status()
        with ProgressBar(self._console, "import", status.total) as bar:
            async with aclosing(job.progress(0.2)) as looks:  # type: ignore[type-var]
                async for status in looks:
                    self.status = status
                    failed = f", {status.failed:,} failed" if status.failed else ""
                    bar.show(
                        status.done,
                        f"{count_text(status.done, 'row')}{failed}, {rate_text(status.rate)}, "
                        f"{seconds_text(status.eta)} left",
                    )
        return status

    async def _keep_failed(self, job: Job[Any]) -> None:
        """Read the source again, beside the outcomes: both are in its order."""
        if self._args.failed is None:
            return
        with FailedRows(self._args.failed, self._source) as failed:
            rows = self._source.rows()
            async with aclosing(rows), aclosing(job.outcomes("failed")) as outcomes:  # type: ignore[type-var]
                async for outcome in outcomes:
                    async for row in rows:
                        if row.index == outcome.index:
                            break
                    else:
                        break  # the file has become shorter
                    error = outcome.error if row.ok else row.error
                    assert error is not None  # noqa: S101 - it has failed
                    raw = raw_of(error) if row.value is None else row.value.raw
                    failed.add(outcome.index, raw, error_code(error), error)
            failed.finish()


def _key_after(known: JobStatus | None, key: str) -> str:
    """Return the key of a new job: the number behind it tells how many there were before."""
    if known is None or known.key is None:
        return key
    number = known.key.partition(_MARK)[2]
    return f"{key}{_MARK}{int(number or 1) + 1}"
