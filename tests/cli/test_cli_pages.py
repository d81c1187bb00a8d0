"""The pages on the command are the command's: its arguments, its JSON, what it prints."""

from __future__ import annotations

import re
import shlex
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_support import make_shop
from command_reference import section_of
from pages_support import DOCS, REFERENCE, ROOT, Block, blocks_of, rows, sections

from microbatch.cli._table import COMMANDS

PAGE = REFERENCE / "command.md"
HOW_TO = DOCS / "how-to/operating-a-queue.md"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_the_reference_is_the_parsers(command: Any) -> None:
    """`python tests/cli/command_reference.py` prints what must stand there."""
    assert section_of(command) in PAGE.read_text(encoding="utf-8")


def test_the_fields_of_json_are_those_of_the_page(path: Path, microbatch: Any, shop: Any) -> None:
    """Scripts are written by them."""
    job = make_shop(path)
    Path("orders.csv").write_text("number\n1\n")
    more = {"show": [2], "job": [job], "results": [job], "backup": [path.with_name("copy.db")],
            "stats": ["--interval", "0"], "doctor": [], "cancel": [3, "--yes"], "requeue": ["--all", "--yes"],
            "purge": ["--state", "done", "--yes"]}  # fmt: skip
    documented = rows(sections(PAGE)["What `--json` gives"])[1:]
    assert len(documented) == 11
    for names, told in documented:
        said = set(re.findall(r"`(\w+)`", told.partition(": null")[0].split("`consumers`:")[0]))
        for name in re.findall(r"`(\w+)`", names):
            if name in ("import", "bench"):
                handler = ["--handler", "shop:save"]
                arguments = (
                    ["orders.csv", *handler]
                    if name == "import"
                    else [*handler, "--source", "orders.csv", "--seconds", 0, "--items", 2]
                )
                shown = set(microbatch(name, *arguments, "--json").objects[0])
                shown |= {"cancelled", "expired", "job"} if name == "import" else set()
            else:
                shown = set(microbatch(name, path, *more.get(name, []), "--json").objects[0])
            said_here = said - {"problem", "note"}
            if others := said_here & {"QueueStats", "JobStatus", "queues"}:
                assert said_here - others <= shown
            elif name in ("requeue", "purge", "cancel"):
                assert shown <= said_here
            else:
                assert shown == said_here, name


#: What differs from run to run: ids of jobs, moments, how long something took, sizes of files.
CHANGING = [
    (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "JOB"),
    (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "TIME"),
    (r"[\d.]+ (s|ms|us|ns|min|KiB|MiB)\b", "SOME"),
]


def alike(text: str, *, measured: bool) -> str:
    for pattern, stands_for in CHANGING:
        text = re.sub(pattern, stands_for, text)
    if measured:
        text = re.sub(r"\d[\d,.]*", "N", text.replace("#", ""))
    # A terminal shows two streams; which of two lines of theirs came first this test cannot see.
    return "\n".join(sorted(re.sub(r" +", " ", line).strip() for line in text.splitlines() if line))


def calls_of(block: Block) -> list[tuple[str, str]]:
    """Return the calls in a block of a shell, each with what it prints."""
    parts = re.split(r"^\$ (.+)\n", block.source, flags=re.MULTILINE)[1:]
    return list(zip(parts[::2], parts[1::2], strict=True))


def test_the_calls_of_the_page_print_what_it_shows(
    tmp_path: Path, microbatch: Any, shop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its order, in one folder; what was measured is compared by its words alone."""
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 51, 3))
    Path("shop.py").unlink()
    program, calls = "", 0
    for block in blocks_of(HOW_TO):
        if block.language == "python":
            program = f"{program}\n{block.source}" if "Path" in block.source else block.source
            subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)
        elif block.language == "csv":
            assert Path("failed.csv").read_text() == block.source
        elif block.language == "console":
            for line, shown in calls_of(block):
                name, *arguments = shlex.split(line)
                assert name == "microbatch"
                done = microbatch(*arguments)
                measured = arguments[0] == "bench"
                printed = done.err + done.out
                assert alike(printed, measured=measured) == alike(shown, measured=measured), line
                calls += 1
    assert calls == 16


@pytest.mark.slow
def test_the_readme_shows_what_the_command_prints(
    tmp_path: Path, microbatch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the file that the example leaves, to the letter."""
    monkeypatch.chdir(tmp_path)
    readme = ROOT / "README.md"
    (example,) = re.findall(r"`python (\S+) airports\.sqlite`", sections(readme)["From a shell"])
    subprocess.run(
        [sys.executable, ROOT / example, "airports.sqlite"],
        check=True,
        cwd=tmp_path,
        capture_output=True,
    )
    (block,) = (one for one in blocks_of(readme) if one.source.startswith("$ microbatch "))
    ((line, shown),) = calls_of(block)
    assert microbatch(*shlex.split(line)[1:]).out == shown


def test_every_symptom_says_what_to_do() -> None:
    """The table is looked up by what one sees."""
    table = rows(sections(HOW_TO)["It is stuck, it is slow, it has many errors"])
    assert table[0] == ["what you see", "what it is", "what to do"]
    assert all(len(row) == 3 and all(row) for row in table)
