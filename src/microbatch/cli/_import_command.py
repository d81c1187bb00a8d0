"""``import``: the rows of a file through a bulk handler."""

from __future__ import annotations

import argparse
import math
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from microbatch.durable._file.place import resolve
from microbatch.durable._flow.requests import check_key

from ._arguments import keep_apart, whole_from
from ._command import DONE, FOUND, WRONG_USE, Command, CommandEnd
from ._import_failed import FailedRows
from ._import_run import RowTally, import_rows, validate_rows
from ._import_source import FORMATS, RowSource
from ._looping import run_in_loop
from ._naming import named_object
from ._wording import count_text, safe_text, seconds_text

if TYPE_CHECKING:
    from microbatch.durable import JobStatus

    from ._console import Console


def _run_import(args: argparse.Namespace, console: Console) -> int:
    _check_options(args)
    row_type = None if args.type is None else named_object("--type", args.type)
    source = RowSource(args.source, args.format, row_type)
    if args.durable is not None and not args.validate_only:
        return _through_file(args, console, source, row_type)
    tally = RowTally()
    work = validate_rows if args.validate_only else import_rows
    verb = "checked" if args.validate_only else "imported"
    try:
        run_in_loop(partial(work, args, console, source, tally))
    except (KeyboardInterrupt, SystemExit):
        console.note(f"interrupted: {tally.text()}; rows that the handler had may be done too")
        raise
    if console.json:
        console.object(tally.fields())
    else:
        for line in tally.lines(verb):
            console.line(line)
    if args.failed is not None and tally.failed:
        console.note(f"{count_text(tally.failed, 'failed row')} in {args.failed}: import it again")
    if tally.broken is not None:
        message = f"{args.source} broke off after {count_text(tally.rows, 'row')}: {tally.broken}"
        raise CommandEnd(message, FOUND)
    return FOUND if tally.failed else DONE


def _check_options(args: argparse.Namespace) -> None:
    if args.handler is None and not args.validate_only:
        raise CommandEnd("--handler is needed, or --validate-only", WRONG_USE)
    if args.durable is None and (args.key is not None or args.again):
        raise CommandEnd("--key and --again are for --durable", WRONG_USE)
    if args.retry_on and not args.retry_attempts:
        raise CommandEnd("--retry-on needs --retry-attempts of at least 1", WRONG_USE)
    if args.durable is not None and args.source == "-":
        if args.key is None:
            raise CommandEnd("stdin cannot be read twice: --durable needs --key for it", WRONG_USE)
        if args.failed is not None:
            message = (
                "stdin cannot be read twice: --failed with --durable needs a file as the source"
            )
            raise CommandEnd(message, WRONG_USE)
    if args.key is not None:
        _check_key(args.key)


def _check_key(key: str) -> None:
    try:
        check_key(key)
    except ValueError as error:
        raise CommandEnd(f"--{error}", WRONG_USE) from error
    if "#" in key:
        raise CommandEnd(f"--key must not have # in it, got {key!r}", WRONG_USE)


def _through_file(
    args: argparse.Namespace, console: Console, source: RowSource, row_type: Any
) -> int:
    from ._import_durable import DurableImport  # noqa: PLC0415 - it opens more than others need

    try:
        resolve(args.durable)
    except ValueError as error:
        raise CommandEnd(f"--durable: {error}", WRONG_USE) from error
    if args.failed is not None:
        keep_apart("--failed", args.failed, args.durable)
    with FailedRows(args.failed, source):
        pass  # what cannot be written should be known before the work is done, and not after it
    work = DurableImport(args, console, source, row_type)
    began = time.monotonic()
    try:
        status = run_in_loop(work.run)
    except (KeyboardInterrupt, SystemExit):
        seen = work.status
        if seen is None:
            console.note("interrupted while reading: nothing was stored")
        else:
            done = f"{seen.done:,} of {count_text(seen.total, 'row')} are done"
            console.note(f"interrupted: {done}; the same command goes on with job {seen.id}")
        raise
    _summarise(console, status, time.monotonic() - began)
    return DONE if not (status.failed or status.cancelled or status.expired) else FOUND


def _summarise(console: Console, status: JobStatus, seconds: float) -> None:
    parts = ("succeeded", "failed", "skipped", "cancelled", "expired")
    counts = {part: getattr(status, part) for part in parts}
    if console.json:
        fields = {"rows": status.total, **counts, "errors": dict(status.errors)}
        console.object({**fields, "seconds": seconds, "job": status.id})
        return
    shown = ", ".join(f"{many:,} {how}" for how, many in counts.items() if many)
    console.line(
        f"job {status.id}: {count_text(status.total, 'row')} imported in {seconds_text(seconds)}"
        + (f": {shown}" if shown else "")
    )
    for code, many in sorted(status.errors.items(), key=lambda one: (-one[1], one[0])):
        console.line(f"  {count_text(many, 'row')} of code {safe_text(code)}")


def _rows_a_second(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        message = f"must be above 0 and finite, got {text}"
        raise argparse.ArgumentTypeError(message)
    return value


def _import_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", metavar="SOURCE", help="the file, gzip or not; - for stdin")
    add("--handler", metavar="MODULE:FUNCTION", help="the bulk handler: gets a list of rows")
    add("--type", metavar="MODULE:TYPE", help="the type of a row; plain dicts by default")
    add("--format", choices=FORMATS, help="the file's format; by default from its name")
    add(
        "--chunk-size",
        type=whole_from(1, 1_000_000),
        default=1000,
        metavar="N",
        help="rows in a call (1000)",
    )
    add(
        "--concurrency",
        type=whole_from(1, 10_000),
        default=5,
        metavar="N",
        help="calls at the same time (5)",
    )
    add(
        "--retry-attempts",
        type=whole_from(0),
        default=3,
        metavar="N",
        help="further attempts for a row that failed (3)",
    )
    add(
        "--retry-on",
        metavar="MODULE:TYPE",
        action="append",
        default=[],
        help="retry only after these errors; may be repeated",
    )
    add("--rate", type=_rows_a_second, metavar="N", help="most rows a second, and in a call")
    add("--failed", metavar="PATH", help="write failed rows to this file, which import reads again")
    add(
        "--durable",
        metavar="FILE",
        help="store the rows in a queue's file first, to go on after a kill",
    )
    add("--key", metavar="K", help="a name for this import, to find it again in that file")
    add("--again", action="store_true", help="import again what has been imported")
    add("--validate-only", action="store_true", help="only read and check the rows")


COMMANDS = (
    Command(
        "import",
        "Give the rows of a CSV, JSON or NDJSON file to a bulk handler, in bounded memory.",
        "microbatch import orders.csv --handler shop:save --type shop:Order --failed failed.csv",
        _import_arguments,
        _run_import,
        "A row that fails is tried again after any error but ItemError(retryable=False), ValueError, TypeError "
        "and LookupError. Failed rows keep the source's order and columns; microbatch_index, microbatch_code "
        "and microbatch_error come after them. With --durable the rows are a job in the queue 'import': "
        "killed while reading it begins again, killed later it goes on where it was, and after its end it "
        "says so. The job is found by --key, or by the file's content with handler and type.",
    ),
)
