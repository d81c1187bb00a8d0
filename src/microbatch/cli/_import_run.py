"""``import`` into a handler in this process: read, handle, count, keep what failed."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from microbatch import Batcher, Retry
from microbatch._core.bulk import bulk
from microbatch._pure.report import error_code
from microbatch.layers import rate_limited
from microbatch.streaming import map_batches

from ._command import WRONG_USE, CommandEnd
from ._import_failed import FailedRows, raw_of
from ._live import ProgressBar
from ._naming import named_errors, named_handler
from ._wording import count_text, rate_text, safe_text, seconds_text

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncGenerator

    from microbatch._pure.report import Outcome

    from ._console import Console
    from ._import_source import RowSource

#: What a second try would not mend.
_SENSELESS_AGAIN = (ValueError, TypeError, LookupError)


class RowTally:
    """What became of the rows.

    Attributes:
        rows: How many there were.
        succeeded, failed, skipped: How they ended.
        codes: How many failed, by code.
        broken: Why the source broke off; None if it did not.
    """

    def __init__(self) -> None:
        self.rows = self.succeeded = self.failed = self.skipped = 0
        self.codes: Counter[str] = Counter()
        self.broken: Exception | None = None
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """How long it has taken."""
        return time.monotonic() - self._began

    def count(self, outcome: Outcome[Any]) -> None:
        """Count a row that has ended."""
        self.rows += 1
        if outcome.ok:
            self.succeeded += 1
        elif outcome.skipped:
            self.skipped += 1
        else:
            self.failed += 1
            self.codes[outcome.code or ""] += 1

    def text(self) -> str:
        """Return how far it is, on one line."""
        rate = self.rows / self.seconds if self.seconds else 0.0
        failed = f", {self.failed:,} failed" if self.failed else ""
        return f"{count_text(self.rows, 'row')}{failed}, {rate_text(rate)}"

    def fields(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "rows": self.rows,
            "succeeded": self.succeeded,
            "failed": self.failed,
            "skipped": self.skipped,
            "errors": dict(self.codes),
            "seconds": self.seconds,
        }

    def lines(self, verb: str) -> list[str]:
        """Return the summary."""
        parts = {"succeeded": self.succeeded, "failed": self.failed, "skipped": self.skipped}
        counts = ", ".join(f"{many:,} {how}" for how, many in parts.items() if many)
        whole = f"{count_text(self.rows, 'row')} {verb} in {seconds_text(self.seconds)}"
        lines = [whole + (f": {counts}" if counts else "")]
        for code, many in sorted(self.codes.items(), key=lambda one: (-one[1], one[0])):
            lines.append(f"  {count_text(many, 'row')} of code {safe_text(code)}")
        return lines


def retry_of(args: argparse.Namespace) -> Retry | None:
    """Return what ``--retry-attempts`` and ``--retry-on`` mean: so many further calls."""
    if not args.retry_attempts:
        return None
    if args.retry_on:
        return Retry(on=named_errors(args.retry_on), attempts=args.retry_attempts + 1)
    return Retry(
        on=lambda error: not isinstance(error, _SENSELESS_AGAIN), attempts=args.retry_attempts + 1
    )


def rows_a_call(args: argparse.Namespace) -> int:
    """Return how many rows a call gets at most: with ``--rate`` so many that they fill up whole seconds.

    More than a second's rows in a call would be more than the rate allows in the second of that call.
    """
    size = int(args.chunk_size)
    if args.rate is None or args.rate >= size * 1e9:
        return size
    return min(size, max(1, int(args.rate / math.ceil(args.rate / size))))


def handler_of(args: argparse.Namespace) -> Any:
    """Return the handler, with what ``--rate`` asks for around it.

    Raises:
        CommandEnd: If it can be none.
    """
    handler = named_handler(args.handler)
    try:
        bulk(handler)
        if args.rate is not None:
            # A whole call may go at once: it has to wait for its last row's turn otherwise.
            return rate_limited(handler, args.rate, burst=rows_a_call(args), cost=lambda _: 1.0)
    except (TypeError, ValueError) as error:
        raise CommandEnd(f"--handler: {error}", WRONG_USE) from error
    return handler


async def import_rows(
    args: argparse.Namespace, console: Console, source: RowSource, tally: RowTally
) -> None:
    """Give all rows to the handler, and keep those that failed.

    Raises:
        CommandEnd: If the handler can be none, or the failed rows cannot be written.
    """
    call = bulk(handler_of(args))
    size = rows_a_call(args)

    async def of_rows(rows: list[Any]) -> list[Any]:
        return await call([row.value for row in rows])

    waiting: deque[Any] = deque()
    with (
        FailedRows(args.failed, source) as failed,
        ProgressBar(console, "import", source.size) as bar,
    ):

        async def noted() -> AsyncGenerator[Outcome[Any], None]:
            rows = source.rows(lambda position: bar.show(position, tally.text()))
            async with aclosing(rows):
                async for outcome in rows:
                    row = outcome.value
                    waiting.append(None if row is None else row.raw)
                    yield outcome

        batcher: Batcher[Any, Any] = Batcher(
            of_rows,
            max_batch_size=size,
            max_concurrency=args.concurrency,
            # The stream bounds what is in memory; half of a bound would be all that may wait for another try.
            max_pending=None,
            retry=retry_of(args),
            name=args.handler,
        )
        async with (
            batcher,
            map_batches(
                noted(), batcher, max_batch_size=size, max_concurrency=args.concurrency
            ) as outcomes,
        ):
            try:
                async for outcome in outcomes:
                    _take_in(outcome, waiting.popleft(), tally, failed)
            except (OSError, EOFError, ValueError) as error:
                tally.broken = error
        failed.finish(whole=tally.broken is None)


def _take_in(outcome: Outcome[Any], raw: Any, tally: RowTally, failed: FailedRows) -> None:
    tally.count(outcome)
    if outcome.error is not None and not outcome.skipped:
        raw = raw_of(outcome.error) if raw is None else raw
        failed.add(outcome.index, raw, error_code(outcome.error), outcome.error)


async def validate_rows(
    args: argparse.Namespace, console: Console, source: RowSource, tally: RowTally
) -> None:
    """Read all rows, and keep those that cannot be what they should.

    Raises:
        CommandEnd: If the failed rows cannot be written.
    """
    with (
        FailedRows(args.failed, source) as failed,
        ProgressBar(console, "check", source.size) as bar,
    ):
        rows = source.rows(lambda position: bar.show(position, tally.text()))
        try:
            async with aclosing(rows):
                async for outcome in rows:
                    _take_in(outcome, None, tally, failed)
        except (OSError, EOFError, ValueError) as error:
            tally.broken = error
        failed.finish(whole=tally.broken is None)
