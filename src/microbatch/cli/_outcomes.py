"""``results``: the outcomes of a job, streamed."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microbatch._io.writing import Output

from ._arguments import add_file, add_queue, keep_apart
from ._command import DONE, WRONG_USE, Command, CommandEnd
from ._jsonable import json_text
from ._opening import chosen_queue, inspect
from ._wording import count_text

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator

    from microbatch._pure.report import Outcome

    from ._console import Console

_FORMATS = ("ndjson", "csv", "json")
_COLUMNS = ("index", "id", "kind", "value", "code", "message")

#: What a spreadsheet takes for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def outcome_fields(outcome: Outcome[Any]) -> dict[str, Any]:
    """Return an outcome for JSON."""
    shown = outcome.as_dict()
    return {"index": shown.pop("index"), "id": shown.pop("id"), "kind": outcome.kind, **shown}


def _ndjson(outcomes: Iterable[Outcome[Any]]) -> Iterator[str]:
    for one in outcomes:
        yield f"{json_text(outcome_fields(one))}\n"


def _json_array(outcomes: Iterable[Outcome[Any]]) -> Iterator[str]:
    before = "[\n"
    for one in outcomes:
        yield f"{before}{json_text(outcome_fields(one))}"
        before = ",\n"
    yield "[]\n" if before == "[\n" else "\n]\n"


def _csv_rows(outcomes: Iterable[Outcome[Any]], *, spreadsheet: bool) -> Iterator[str]:
    text = io.StringIO()
    write = csv.writer(text).writerow  # it ends lines in CRLF, as RFC 4180 has it
    write(_COLUMNS)
    for one in outcomes:
        fields = outcome_fields(one)
        error = fields["error"] or {}
        value = fields["value"]
        if value is not None and not isinstance(value, str):
            value = json_text(value)
        cells = [
            fields["index"], fields["id"], fields["kind"], value, error.get("code"), error.get("message"),
        ]  # fmt: skip
        write([_harmless(cell) for cell in cells] if spreadsheet else cells)
        yield text.getvalue()
        text.seek(0)
        text.truncate()
    yield text.getvalue()


def _harmless(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell


def _format_for(args: argparse.Namespace, console: Console) -> str:
    if args.format is not None:
        return str(args.format)
    suffix = Path(args.output).suffix[1:].lower() if args.output else ""
    if args.spreadsheet:
        return "csv"
    return suffix if suffix in _FORMATS and not console.json else "ndjson"


def _run_results(args: argparse.Namespace, console: Console) -> int:
    how = _format_for(args, console)
    if args.spreadsheet and how != "csv":
        raise CommandEnd(f"--spreadsheet is for csv, got --format {how}", WRONG_USE)
    if args.output is not None:
        keep_apart("--output", args.output, args.file)
    with inspect(args, console) as inspection:
        queue = chosen_queue(inspection, args.queue)
        outcomes = inspection.outcomes(queue, args.id, args.kind)
        if how == "csv":
            rows = _csv_rows(outcomes, spreadsheet=args.spreadsheet)
        else:
            rows = (_ndjson if how == "ndjson" else _json_array)(outcomes)
        if args.output is None:
            write = console.csv_piece if how == "csv" else console.json_piece
            for row in rows:
                write(row)
            return DONE
        count = _whole(Path(args.output), rows)
    console.note(f"{count_text(count, 'byte')} written to {args.output}")
    return DONE


def _whole(path: Path, rows: Iterable[str]) -> int:
    """Write a file that takes its name when it is whole; return its bytes."""
    count = 0
    try:
        file = Output(path, zipped=False)
        try:
            for row in rows:
                data = row.encode("utf-8", "backslashreplace")
                count += len(data)
                file.write(data)
            file.finish(b"")
        finally:
            file.close()
    except OSError as error:
        message = f"{path} cannot be written: {error.strerror or error}"
        raise CommandEnd(message, WRONG_USE) from error
    return count


def _results_arguments(parser: argparse.ArgumentParser) -> None:
    add_file(parser)
    parser.add_argument("id", metavar="ID", help="the job's id")
    add_queue(parser)
    kinds = ("succeeded", "failed", "skipped", "cancelled", "expired")
    parser.add_argument("--kind", choices=kinds, help="only these; all by default")
    parser.add_argument(
        "--format",
        choices=_FORMATS,
        help="the format; by default from the output's suffix, else ndjson",
    )
    parser.add_argument("--output", metavar="PATH", help="a file, written whole or not at all")
    parser.add_argument(
        "--spreadsheet",
        action="store_true",
        help="csv in which no cell is a formula: ' stands before = + - @, tab and CR",
    )


COMMANDS = (
    Command(
        "results",
        "Stream the outcomes of a job's items that have ended, by their index.",
        "microbatch results shop.db JOB --kind failed --output failed.csv",
        _results_arguments,
        _run_results,
        "CSV has the columns index, id, kind, value, code, message.",
    ),
)
