"""Type checkers infer what the contract says, and refuse what it refuses."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import microbatch

HERE = Path(__file__).parent / "typing"
CASES = sorted(HERE.glob("*cases.py"))
REFUSED = sorted(HERE.glob("*refused.py"))
SOURCE = Path(microbatch.__file__).parent.parent

pytestmark = pytest.mark.timeout(300)

Errors = set[tuple[str, int, str]]


def mypy(scratch: Path) -> Errors:
    """Run mypy --strict on all files; return each error's file, line and text."""
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--config-file="]
    command += [f"--cache-dir={scratch}", *map(str, CASES + REFUSED)]
    environment = {**os.environ, "MYPYPATH": str(SOURCE)}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=scratch, check=False
    )
    found = re.findall(r"(\w+\.py):(\d+): error: (.*)", done.stdout)
    assert done.stdout.count(": error:") == len(found), done.stdout
    return {(file, int(line), text) for file, line, text in found}


def basedpyright(scratch: Path) -> Errors:
    """The same with pyright's strict rules."""
    files = [str(path) for path in CASES + REFUSED]
    settings = {
        "include": files,
        "extraPaths": [str(SOURCE), sysconfig.get_path("purelib")],
        "typeCheckingMode": "strict",
    }
    (scratch / "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "basedpyright",
        "--outputjson",
        "--level=error",
        "-p",
        str(scratch),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=scratch, check=False)
    report = json.loads(done.stdout)
    assert report["summary"]["filesAnalyzed"] == len(files)
    return {
        (Path(one["file"]).name, one["range"]["start"]["line"] + 1, one["message"])
        for one in report["generalDiagnostics"]
    }


CHECKERS = {
    checker.__name__: checker
    for checker in (mypy, basedpyright)
    if importlib.util.find_spec(checker.__name__)
}


@pytest.fixture(scope="module", params=CHECKERS)
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Errors:
    """All errors of one type checker."""
    return CHECKERS[request.param](tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_the_result_of_submit_follows_the_handlers(found: Errors, path: Path) -> None:
    """For async, plain and generator functions, methods, None, and everything decorated or layered."""
    assert {error for error in found if error[0] == path.name} == set()


@pytest.mark.parametrize("path", REFUSED, ids=lambda path: path.stem)
def test_wrong_calls_are_refused(found: Errors, path: Path) -> None:
    """The wrong item, a misspelt setting, a single-item function: before the program runs."""
    lines = path.read_text(encoding="utf-8").splitlines()
    marked = {number for number, line in enumerate(lines, 1) if line.endswith("# refused")}
    refused = {error for error in found if error[0] == path.name}
    assert marked
    assert {line for _, line, _ in refused} == marked, refused
