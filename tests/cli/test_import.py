"""``import`` into a handler in this process."""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import os
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from microbatch.testing import no_backoff

pytestmark = pytest.mark.usefixtures("shop")


def rows_file(name: str, numbers: list[Any]) -> str:
    Path(name).write_text("number,name\n" + "".join(f"{n},tea\n" for n in numbers))
    return name


def test_rows_reach_the_handler_in_chunks(microbatch: Any, shop: Any) -> None:
    """Typed, and the summary tells what became of them."""
    rows_file("orders.csv", [1, 2, 3, 14, 5])
    done = microbatch("import", "orders.csv", "--handler", "shop:save", "--type", "shop:Order",
                      "--chunk-size", 2, "--concurrency", 1)  # fmt: skip
    assert done.code == 0
    assert done.out.startswith("5 rows imported in ")
    assert done.out.endswith(": 4 succeeded, 1 skipped\n")
    assert [[one.number for one in chunk] for chunk in shop().calls] == [[1, 2], [3, 14], [5]]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("o.csv", "number,name\n1,tea\n13,x\n"),
        ("o.json", '[{"number": 1}, {"number": 13}]'),
        ("o.ndjson", '{"number": 1}\n{"number": 13}\n'),
        ("o.jsonl", '{"number": 1}\n{"number": 13}\n'),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_formats_and_gzip_by_its_first_bytes(
    microbatch: Any, name: str, text: str, zipped: bool
) -> None:
    """Whatever the name says of gzip; without a type rows are dicts."""
    Path(name).write_bytes(gzip.compress(text.encode()) if zipped else text.encode())
    done = microbatch("import", name, "--handler", "shop:save", "--json")
    assert done.code == 1
    fields = done.object
    assert fields.pop("seconds") >= 0
    assert fields == {
        "rows": 2,
        "succeeded": 1,
        "failed": 1,
        "skipped": 0,
        "errors": {"unlucky": 1},
    }


def test_stdin_is_read_with_a_format(microbatch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe of gzip, whose first byte comes alone."""
    reading, writing = os.pipe()
    monkeypatch.setattr(
        "microbatch.cli._import_source.Path",
        lambda name: Path(f"/dev/fd/{reading}" if name == "/dev/stdin" else name),
    )
    data = gzip.compress(b'{"number": 1}\n{"number": 2}\n')

    def write() -> None:
        for piece in (data[:1], data[1:]):
            os.write(writing, piece)
        os.close(writing)

    thread = threading.Thread(target=write)
    thread.start()
    done = microbatch("import", "-", "--format", "ndjson", "--handler", "shop:save", "--json")
    thread.join()
    os.close(reading)
    assert (done.code, done.object["succeeded"]) == (0, 2)


def test_failed_rows_can_be_imported_again(microbatch: Any, shop: Any) -> None:
    """In the source's order and columns; what import put beside them it drops."""
    Path("orders.csv").write_text("number,name\n1,tea\n13,é\n7\n13,x\nno,y\n")
    arguments = ["--handler", "shop:save", "--type", "shop:Order", "--failed"]
    first = microbatch("import", "orders.csv", *arguments, "failed.csv")
    assert first.code == 1
    assert first.err == "microbatch: 4 failed rows in failed.csv: import it again\n"
    text = Path("failed.csv").read_bytes().decode()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [list(row.values())[:4] for row in rows] == [
        ["13", "é", "1", "unlucky"], ["", "", "2", "bad_row"],
        ["13", "x", "3", "unlucky"], ["no", "y", "4", "bad_row"],
    ]  # fmt: skip
    assert rows[1]["microbatch_error"] == "line 4: 1 cells, but the first line names 2 columns: 7"
    Path("failed.csv").write_text(
        text.replace("13,x", "15,x").replace(",,2,bad_row", "7,,2,bad_row")
    )
    again = microbatch("import", "failed.csv", *arguments, "failed.csv")
    assert "4 rows imported" in again.out
    left = csv.DictReader(io.StringIO(Path("failed.csv").read_text()))
    assert [row["microbatch_code"] for row in left] == ["unlucky", "bad_row"]
    assert [one.number for one in shop().calls[-1]] == [13, 7, 15]


@pytest.mark.parametrize("row", [b'1,"a"b', b"1", b"1,a,b", b"1,\xff"])
def test_rows_that_cannot_be_read_stay_so(microbatch: Any, row: bytes) -> None:
    """The next time none of them is a row that nobody wrote: with cells that are empty, cut or replaced."""
    Path("orders.csv").write_bytes(b"number,name\n" + row + b"\n2,c\n")
    for source in ("orders.csv", "failed.csv"):
        done = microbatch(
            "import", source, "--handler", "shop:save", "--failed", "failed.csv", "--json"
        )
        assert (done.code, done.object["errors"]) == (1, {"bad_row": 1})


def test_failed_rows_of_json_in_a_table(microbatch: Any) -> None:
    """The name of the file tells its format; the first failed row has the columns."""
    Path("o.ndjson").write_text('{"number": 13, "tags": ["a"]}\n"microbatch_index"\n')
    microbatch(
        "import", "o.ndjson", "--handler", "shop:save", "--type", "shop:Order", "--failed", "f.csv"
    )
    rows = list(csv.DictReader(io.StringIO(Path("f.csv").read_text())))
    assert [(row["number"], row["tags"], row["microbatch_code"]) for row in rows] == [
        ("13", '["a"]', "unlucky"), ("", "", "bad_row"),
    ]  # fmt: skip
    assert rows[1]["microbatch_error"].endswith(': "microbatch_index"')


def test_a_disk_that_is_full_ends_the_writing_of_failed_rows(
    microbatch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one line, and with nothing that looks whole."""
    rows_file("orders.csv", [13])

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    for name in ("write", "finish"):
        with monkeypatch.context() as patch:
            patch.setattr(f"microbatch._io.writing.Output.{name}", full)
            done = microbatch("import", "orders.csv", "--handler", "shop:save", "--failed", "f.csv")
        assert (done.code, "f.csv cannot be written: No space left" in done.err) == (2, True)
        assert not Path("f.csv").exists()


@pytest.mark.parametrize("suffix", ["ndjson", "json"])
def test_failed_rows_of_json(microbatch: Any, suffix: str) -> None:
    """What is no object, or no JSON, is kept as its text, and read again as that."""
    lines = ['{"number": 13, "extra": ["x"]}', "5", '{"number": 1}']
    text = "\n".join(lines) + "\n{broken\n"
    if suffix == "json":
        text = f"[{', '.join(lines)}]"
    Path(f"o.{suffix}").write_text(text)
    for source in (f"o.{suffix}", f"f.{suffix}"):
        done = microbatch("import", source, "--handler", "shop:save", "--type", "shop:Order",
                          "--failed", f"f.{suffix}", "--json")  # fmt: skip
        found = Path(f"f.{suffix}").read_text()
        rows = (
            json.loads(found)
            if suffix == "json"
            else [json.loads(one) for one in found.splitlines()]
        )
        assert done.code == 1
        expected: list[Any] = [[13, None, "unlucky"], [None, "5", "bad_row"]]
        if suffix == "ndjson":
            expected.append([None, "{broken", "bad_row"])
        assert [
            [r.get("number"), r.get("microbatch_row"), r["microbatch_code"]] for r in rows
        ] == expected
    assert rows[0]["extra"] == ["x"]


def test_the_file_of_failed_rows_is_there_if_nothing_failed(microbatch: Any) -> None:
    """Yesterday's would say that today failed."""
    rows_file("orders.csv", [1])
    for name, text in (("f.csv", "number,name,microbatch_index,microbatch_code,microbatch_error"),
                       ("f.json", "[]"), ("f.ndjson", "")):  # fmt: skip
        Path(name).write_text("old")
        assert (
            microbatch("import", "orders.csv", "--handler", "shop:save", "--failed", name).code == 0
        )
        assert Path(name).read_text().strip() == text


def test_rows_are_tried_again(microbatch: Any, shop: Any) -> None:
    """So many further calls; not after what a second try would not mend."""
    rows_file("orders.csv", [1, 2])
    with no_backoff():
        assert microbatch("import", "orders.csv", "--handler", "shop:flaky").code == 0
        assert len(shop().calls) == 3
        shop().calls.clear()
        assert microbatch("import", "orders.csv", "--handler", "shop:wrong").code == 1
        assert len(shop().calls) == 1
        shop().calls.clear()
        narrow = ["--retry-on", "builtins:KeyError", "--retry-attempts", 2]
        assert microbatch("import", "orders.csv", "--handler", "shop:wrong", *narrow).code == 1
        assert len(shop().calls) == 3
        shop().calls.clear()
        shop().downs = 0
        assert (
            microbatch(
                "import", "orders.csv", "--handler", "shop:flaky", "--retry-attempts", 0
            ).code
            == 1
        )
        assert len(shop().calls) == 1


def test_validating_calls_no_handler(microbatch: Any, shop: Any) -> None:
    """Neither is one needed."""
    rows_file("orders.csv", [1, "x"])
    done = microbatch(
        "import", "orders.csv", "--type", "shop:Order", "--validate-only", "--failed", "f.csv"
    )
    assert done.code == 1
    assert "2 rows checked" in done.out
    assert "1 row of code bad_row" in done.out
    assert shop().calls == []
    Path("o.json").write_text('[{"number": 1}, {')
    assert "broke off" in microbatch("import", "o.json", "--validate-only").err


def test_a_rate_holds_rows_back(microbatch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layer gets rows a second, and lets a chunk go at once."""
    asked: list[Any] = []

    def limited(handler: Any, rate: float, **more: Any) -> Any:
        asked.append((rate, more["burst"], more["cost"](object())))
        return handler

    monkeypatch.setattr("microbatch.cli._import_run.rate_limited", limited)
    rows_file("orders.csv", [1])
    assert (
        microbatch(
            "import", "orders.csv", "--handler", "shop:save", "--rate", 50, "--chunk-size", 10
        ).code
        == 0
    )
    assert asked == [(50.0, 10, 1.0)]


def test_a_source_that_breaks_off_is_said(microbatch: Any, shop: Any) -> None:
    """What was whole was imported."""
    Path("o.json").write_text('[{"number": 1}, {"number": 2')
    broken = microbatch("import", "o.json", "--handler", "shop:save")
    assert broken.code == 1
    assert "o.json broke off after 1 row" in broken.err
    assert shop().calls == [[{"number": 1}]]
    data = gzip.compress(b"number\n" + b"1\n" * 1000)
    Path("o.csv").write_bytes(data[:-9])
    assert "broke off" in microbatch("import", "o.csv", "--handler", "shop:save").err


def test_an_interruption_says_what_was_done(microbatch: Any, tmp_path: Path) -> None:
    """And leaves no half of a file."""
    rows_file("orders.csv", [1, 2, 3, 4])
    stopped = microbatch("import", "orders.csv", "--handler", "shop:stop", "--chunk-size", 1,
                         "--concurrency", 1, "--failed", "f.csv")  # fmt: skip
    assert stopped.code == 130
    assert "interrupted: 1 row" in stopped.err
    assert not [one.name for one in tmp_path.iterdir() if one.name.startswith((".f", "f."))]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["orders.csv"], 2, "--handler is needed, or --validate-only"),
        (["nope.csv", "--handler", "shop:save"], 3, "nope.csv cannot be read: No such file"),
        (["shop.py", "--handler", "shop:save"], 2, "--format is needed, one of csv, json, ndjson"),
        (["-", "--handler", "shop:save"], 2, "--format is needed"),
        (["orders.csv", "--handler", "shop"], 2, "--handler must be module:name, got 'shop'"),
        (["orders.csv", "--handler", "nope:x"], 2, "--handler: 'nope' cannot be imported: ModuleNotFoundError"),
        (["orders.csv", "--handler", "shop:nope"], 2, "--handler: 'shop' has no 'nope'"),
        (["orders.csv", "--handler", "shop:number"], 2, "--handler: 'shop:number' is a int, and cannot"),
        (["orders.csv", "--handler", "shop:pairs"], 2, "handler must not be a plain generator function"),
        (["orders.csv", "--handler", "shop:save", "--type", "builtins:int"], 2, "--type: type must be what"),
        (["orders.csv", "--handler", "shop:save", "--retry-on", "shop:save"], 2, "is no exception class"),
        (["orders.csv", "--handler", "shop:save", "--retry-on", "shop:Down", "--retry-attempts", "0"], 2,
         "--retry-on needs --retry-attempts"),
        (["orders.csv", "--handler", "shop:save", "--key", "k"], 2, "--key and --again are for --durable"),
        (["orders.csv", "--handler", "shop:save", "--failed", "no/f.csv"], 2, "--failed: no/f.csv cannot be written"),
        (["orders.csv", "--handler", "shop:save", "--format", "xml"], 2, "invalid choice: 'xml'"),
        (["orders.csv", "--handler", "shop:save", "--chunk-size", "0"], 2, "must be from 1 to 1000000, got 0"),
        (["orders.csv", "--handler", "shop:save", "--rate", "0"], 2, "argument --rate"),
        (["-", "--format", "csv", "--handler", "shop:save", "--durable", "x.db"], 2, "--durable needs --key"),
        (["-", "--format", "csv", "--handler", "shop:save", "--durable", "x.db", "--key", "k", "--failed", "f"], 2,
         "--failed with --durable needs a file"),
        (["orders.csv", "--handler", "shop:save", "--durable", "x.db", "--key", "a#2"], 2, "must not have #"),
        (["orders.csv", "--handler", "shop:save", "--durable", "x.db", "--key", ""], 2, "--key must be 1 to"),
        (["orders.csv", "--handler", "shop:save", "--durable", "x.db", "--key", "\udcff"], 2, "--key must be 1 to"),
        (["orders.csv", "--handler", "shop:save", "--durable", "x.db", "--failed", "x.db"], 2, "belongs to the queue"),
        (["orders.csv", "--handler", "shop:save", "--durable", "x.db", "--failed", "no/f.csv"], 2,
         "--failed: no/f.csv cannot be written"),
        (["orders.csv", "--handler", "shop:save", "--durable", "."], 2, "--durable: path must name a file, got '.'"),
        (["orders.csv", "--handler", "shop:save", "--chunk-size", "10000000000000000000"], 2, "from 1 to 1000000"),
        (["orders.csv", "--handler", "ends:save"], 2, "--handler: 'ends' cannot be imported: SystemExit: 5"),
        (["orders.csv", "--handler", "shop:save", "--rate", "nan"], 2, "--rate: must be above 0 and finite, got nan"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said(
    microbatch: Any, arguments: list[str], code: int, message: str
) -> None:
    """On stderr, in words that name what is wrong, before anything is called."""
    rows_file("orders.csv", [1])
    Path("ends.py").write_text("raise SystemExit(5)")
    shown = microbatch("import", *arguments)
    assert (shown.code, shown.out) == (code, "")
    assert message in shown.err
    assert not Path("x.db").exists()


def test_the_working_folder_comes_first(microbatch: Any, tmp_path: Path) -> None:
    """A module here is meant before one that is installed."""
    rows_file("orders.csv", [1])
    assert microbatch("import", "orders.csv", "--handler", "shop:save").code == 0
    assert sys.path[0] == str(tmp_path)


def test_the_source_is_not_replaced_by_its_failed_rows(microbatch: Any) -> None:
    """The rows that went well would be lost; and what was not read of a file of failed rows, too."""
    rows_file("orders.csv", [1, 13])
    before = Path("orders.csv").read_text()
    Path("link.csv").symlink_to("orders.csv")
    for name in ("orders.csv", "link.csv"):
        refused = microbatch("import", "orders.csv", "--handler", "shop:save", "--failed", name)
        assert (refused.code, "is the source" in refused.err) == (2, True)
    assert Path("orders.csv").read_text() == before
    rest = '[{"number": 13, "microbatch_index": 0}, {"number": 14'
    Path("f.json").write_text(rest)
    broken = microbatch("import", "f.json", "--handler", "shop:save", "--failed", "f.json")
    assert (broken.code, "broke off after 1 row" in broken.err) == (1, True)
    assert Path("f.json").read_text() == rest
    for name, text in (("e.json", "[]\n"), ("e.ndjson", "")):
        Path(name).write_text(text)
        assert microbatch("import", name, "--handler", "shop:save", "--failed", name).code == 0
    long = microbatch("import", "orders.csv", "--handler", "shop:save", "--failed", "x" * 300)
    assert (long.code, "cannot be written: File name too long" in long.err) == (2, True)


def test_numbers_of_failed_rows_keep_their_digits(microbatch: Any) -> None:
    """A float has 17, an integer of MessagePack 19; what stands in the source may have more."""
    row = '{"number": 13, "id": 123456789012345678901234567890, "at": 0.1000000000000000055, "e": 1e400}'
    Path("o.ndjson").write_text(row + "\n")
    refuse = ["--handler", "shop:wrong", "--failed"]
    for source, target in (
        ("o.ndjson", "f.ndjson"),
        ("f.ndjson", "g.ndjson"),
        ("g.ndjson", "h.csv"),
    ):
        assert microbatch("import", source, *refuse, target).code == 1
    for name in ("f.ndjson", "g.ndjson"):
        text = Path(name).read_text()
        for part in row[1:-1].replace(": ", ":").split(", "):
            assert part in text
    (cells,) = csv.DictReader(io.StringIO(Path("h.csv").read_text()))
    assert cells["id"] == "123456789012345678901234567890"
    assert (cells["at"], cells["e"]) == ("0.1000000000000000055", "1e400")


def test_a_rate_is_kept_in_the_first_second_too(microbatch: Any, shop: Any) -> None:
    """A call with more rows than a second may have would be too many in that second."""
    from microbatch.cli._import_run import rows_a_call

    def size(rate: float | None, chunk: int) -> int:
        return rows_a_call(argparse.Namespace(rate=rate, chunk_size=chunk))

    assert [size(rate, 1000) for rate in (None, 1e300, 5000, 1500, 10, 0.5, 1e-300)] == [
        1000, 1000, 1000, 750, 10, 1, 1,
    ]  # fmt: skip
    rows_file("orders.csv", [1] * 30)
    assert microbatch("import", "orders.csv", "--handler", "shop:save", "--rate", 20).code == 0
    assert [len(rows) for rows in shop().calls] == [20, 10]


def test_stdin_is_what_is_left_of_it(microbatch: Any, shop: Any) -> None:
    """A file of which somebody has read the first lines; a socket, as some programs give their children."""
    Path("o.ndjson").write_text('no row\n{"number": 1}\n{"number": 2}\n')
    here, there = socket.socketpair()
    there.sendall(b'{"number": 3}\n')
    there.close()
    before = os.dup(0)
    try:
        with Path("o.ndjson").open("rb", buffering=0) as file, here:
            for stream, offset in ((file, 7), (here, 0)):
                if offset:
                    os.lseek(stream.fileno(), offset, os.SEEK_SET)
                os.dup2(stream.fileno(), 0)
                arguments = ["import", "-", "--format", "ndjson", "--handler", "shop:save"]
                done = microbatch(*arguments)
                assert (done.code, done.err) == (0, "")
    finally:
        os.dup2(before, 0)
        os.close(before)
    assert [[row["number"] for row in rows] for rows in shop().calls] == [[1, 2], [3]]


@pytest.mark.parametrize("durable", [[], ["--durable", "work.db"]])
def test_a_handler_that_ends_the_process_is_no_success(
    microbatch: Any, tmp_path: Path, durable: list[str]
) -> None:
    """Its exit code may be 0, and rows are left."""
    rows_file("orders.csv", [1])
    Path("quits.py").write_text("def save(rows):\n    raise SystemExit(0)\n")
    ended = microbatch("import", "orders.csv", "--handler", "quits:save", *durable)
    assert (ended.code, ended.out) == (1, "")
    assert "interrupted: 0 " in ended.err
    assert "the handler ended it: SystemExit: 0" in ended.err
