"""The README and docs/ against the code: names, defaults, errors, tests that are named, links."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from pages_support import (
    DOCS,
    HEADING,
    REFERENCE,
    ROOT,
    blocks_of,
    documented,
    entries_of,
    every_page,
    parameters,
    prose,
    rows,
    sections,
)
from support import BACKENDS

import microbatch
from microbatch import errors
from microbatch._core.keywords import Settings

if TYPE_CHECKING:
    from pathlib import Path

DEFAULTS = [
    (REFERENCE / "settings.md", "Settings", microbatch.Batcher),
    (REFERENCE / "batcher.md", "Batcher", microbatch.Batcher),
    (REFERENCE / "batcher.md", "aclose", microbatch.Batcher.aclose),
    (REFERENCE / "retry.md", "Retry", microbatch.Retry),
    (REFERENCE / "retry.md", "Backoff", microbatch.Backoff),
    (REFERENCE / "adaptive-size.md", "AdaptiveSize", microbatch.AdaptiveSize),
    (REFERENCE / "outcomes.md", "Outcome", microbatch.Outcome),
    (REFERENCE / "telemetry.md", "Telemetry", microbatch.Telemetry),
]


@pytest.mark.parametrize(
    ("page", "title", "function"), DEFAULTS, ids=[f"{p.name}-{t}" for p, t, _ in DEFAULTS]
)
def test_documented_settings_and_defaults_are_the_codes(page, title, function):
    """A default that the page has wrong is a setting that nobody checks."""
    table = documented(page, title)
    code = parameters(function)
    assert list(table) == list(code)
    for name, cell in table.items():
        default = code[name].default
        if cell == "required":
            assert default is inspect.Parameter.empty, name
        elif cell == "`Backoff()`":
            assert microbatch.Retry(on=OSError).backoff == microbatch.Backoff()
        elif cell.startswith("`"):
            assert ast.literal_eval(cell.strip("`")) == default, name
            assert type(ast.literal_eval(cell.strip("`"))) is type(default), name
        else:  # a mark for "not given": None has a meaning of its own
            assert cell == "the constructor's", name
            assert default not in (None, inspect.Parameter.empty), name


def test_batched_takes_the_settings_of_batcher_with_the_same_defaults():
    """docs/reference/batched.md says so in place of a second table."""
    (settings,) = parameters(microbatch.batched).values()
    assert settings.kind is inspect.Parameter.VAR_KEYWORD
    assert list(Settings.__annotations__) == list(parameters(microbatch.Batcher))


def test_the_table_of_usual_numbers_names_real_defaults():
    """The page that compares our numbers with the usual ones must have ours right."""
    page = DOCS / "how-to/tuning.md"
    cells = [row[2] for row in rows(sections(page)["The numbers and where they come from"])[1:]]
    calls = [cell.split("`")[1] for cell in cells]
    assert len(calls) == 6
    for call in calls:
        tree = ast.parse(call if call.endswith(")") else f"Batcher({call})", mode="eval").body
        code = parameters(getattr(microbatch, tree.func.id))
        for keyword in tree.keywords:
            assert ast.literal_eval(keyword.value) == code[keyword.arg].default, call


def test_every_setting_has_a_reason():
    """A default without a reason is a guess that nobody dares to change."""
    for setting, _, reason in rows(sections(REFERENCE / "settings.md")["Settings"])[1:]:
        assert len(reason) > 20, setting


SIGNATURES = [
    name for name, _ in inspect.getmembers(microbatch.Batcher, callable) if not name.startswith("_")
]


@pytest.mark.parametrize("name", SIGNATURES)
def test_documented_signatures_are_the_codes(name):
    """Every public method has its entry, which begins with how to call it."""
    call = sections(REFERENCE / "batcher.md")[name].strip().split("`")[1]
    shown = re.fullmatch(rf"(?:await )?batcher\.{name}\((.*)\)", call)
    assert shown is not None, call
    method = getattr(microbatch.Batcher, name)
    assert call.startswith("await ") == inspect.iscoroutinefunction(method)
    arguments = ast.parse(f"def f({shown[1]}): ...").body[0].args
    code = parameters(method)
    assert [argument.arg for argument in [*arguments.args, *arguments.kwonlyargs]] == list(code)
    only = [name for name, p in code.items() if p.kind is inspect.Parameter.KEYWORD_ONLY]
    assert [argument.arg for argument in arguments.kwonlyargs] == only
    defaults = [d for d in [*arguments.defaults, *arguments.kw_defaults] if d is not None]
    given = [p.default for p in code.values() if p.default is not inspect.Parameter.empty]
    shown_defaults = [ast.literal_eval(default) for default in defaults]
    assert all(s in (..., g) for s, g in zip(shown_defaults, given, strict=True)), call


@pytest.mark.parametrize("name", sorted(set(microbatch.__all__) - set(errors.__all__)))
def test_every_public_name_has_an_entry(name):
    """What can be imported is described."""
    assert name in {title for page in REFERENCE.glob("*.md") for title in sections(page)}


@pytest.mark.parametrize("name", errors.__all__)
def test_every_exception_has_an_entry_with_when_and_what_to_do(name):
    """Who meets an error looks it up by its name, and wants to know why it came and what now."""
    entry = sections(REFERENCE / "errors.md")[name]
    assert re.search(r"^\*\*When:\*\* \S", entry, re.MULTILINE)
    assert re.search(r"^\*\*What to do:\*\* \S", entry, re.MULTILINE)


@pytest.mark.parametrize("name", errors.__all__)
def test_every_field_of_an_exception_is_named(name):
    """The fields are what a program acts on."""
    documented_fields = set(re.findall(r"`(\w+)`", sections(REFERENCE / "errors.md")[name]))
    assert entries_of(getattr(errors, name), "Attributes:") <= documented_fields


def test_no_exception_is_described_that_does_not_exist():
    """An entry that outlived its exception sends readers astray."""
    titles = {title for title in sections(REFERENCE / "errors.md") if title != "Errors"}
    assert titles == set(errors.__all__)


def test_the_tree_of_errors_is_the_codes():
    """What `except Full` catches is read off the tree."""
    tree = blocks_of(REFERENCE / "errors.md")[0].source
    above: list[tuple[int, type]] = []
    for line in tree.splitlines():
        name, _, also = line.lstrip(" │├└─").partition("also a")
        cls = getattr(errors, name.strip())
        indent = line.index(name.strip())
        above = [(depth, parent) for depth, parent in above if depth < indent]
        assert not above or above[-1][1] in cls.__bases__, line
        if also:
            builtin = also.removeprefix("n").strip()
            assert builtin in {base.__name__ for base in cls.__mro__}, line
        above.append((indent, cls))
    assert len(re.findall(r"[A-Z]\w+", re.sub(r"also an? \w+", "", tree))) == len(errors.__all__)


MEMBERS = [
    ("batcher.md", "BatcherStats", microbatch.BatcherStats),
    ("outcomes.md", "Outcome", microbatch.Outcome),
    ("telemetry.md", "BatchRecord", microbatch.BatchRecord),
]


@pytest.mark.parametrize(("page", "title", "cls"), MEMBERS, ids=[title for _, title, _ in MEMBERS])
def test_documented_attributes_are_the_codes(page, title, cls):
    """A figure that `stats()` has and the page has not is one that nobody reads."""
    fields = {field.name for field in dataclasses.fields(cls)}
    assert set(documented(REFERENCE / page, title)) == fields


def test_documented_attributes_of_a_batch_are_the_codes():
    """Handlers and layers are written against them."""
    shown = set(documented(REFERENCE / "batcher.md", "BatchInfo"))
    code = {name for name in dir(microbatch.BatchInfo) if name[0] != "_"}
    assert shown == code - {"resolve"}
    assert "`resolve(index, result)`" in sections(REFERENCE / "batcher.md")["BatchInfo"]


def test_documented_attributes_of_reports_are_the_codes():
    """The summary's words are the same on the page and in the code."""
    shown = set(documented(REFERENCE / "outcomes.md", "BatchReport"))
    assert shown == {name for name in microbatch.BatchReport.__slots__ if name[0] != "_"}


@functools.cache
def names_of_tests() -> set[str]:
    """Return `file.py::function` for every test function, by parsing the tests and not importing them."""
    return {
        f"{path.relative_to(ROOT).as_posix()}::{node.name}"
        for path in (ROOT / "tests").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.name.startswith("test_")
    }


def named_tests(text: str) -> set[str]:
    """Return `file.py::function` of each test that a text names, with `file.py` where it names a whole file."""
    return set(re.findall(r"tests/[\w/]+\.py(?:::\w+)?", text))


@every_page
def test_every_test_that_a_page_names_exists(page):
    """A guarantee is worth as much as the test that proves it."""
    text = page.read_text(encoding="utf-8")
    files = {name.partition("::")[0] for name in names_of_tests()}
    assert named_tests(text) - names_of_tests() - files == set()
    functions = {name.partition("::")[2] for name in names_of_tests()}
    assert set(re.findall(r"`(test_\w+)`", text)) - functions == set()


def test_a_name_in_a_folder_below_tests_is_seen():
    """Else a page could name any test of the durable mode."""
    assert named_tests("`tests/durable/test_keys.py::test_x`, `tests/test_y.py`, each") == {
        "tests/durable/test_keys.py::test_x",
        "tests/test_y.py",
    }


@pytest.mark.parametrize(("title", "least"), [("In memory", 24), ("On disk", 12)])
def test_every_guarantee_names_a_test(title, least):
    """What no test shows is not promised."""
    guarantees = rows(sections(REFERENCE / "guarantees.md")[title])[1:]
    assert len(guarantees) >= least
    files = {name.partition("::")[0] for name in names_of_tests()}
    for guarantee, *_, shown_by in guarantees:
        shown = named_tests(shown_by)
        assert shown, guarantee
        assert shown <= names_of_tests() | files, guarantee


def test_every_guarantee_is_shown_on_every_event_loop():
    """The page says so; a test that runs on two of three loops shows it on two."""
    guarantees = rows(sections(REFERENCE / "guarantees.md")["In memory"])[1:]
    named = {name for guarantee in guarantees for name in named_tests(guarantee[-1])}
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "", "-n", "0", *named]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    loops: dict[str, set[str]] = {name: set() for name in named}
    for line in done.stdout.splitlines():
        name, _, variant = line.partition("[")
        if name in loops:
            loops[name] |= {loop for loop in BACKENDS if loop in re.split(r"\W", variant)}
    without = {name for name, found in loops.items() if not found}
    assert without == {
        "tests/contract/test_misuse.py::test_a_bad_setting_is_refused_by_name_with_its_rule_and_what_came"
    }
    assert {name for name, found in loops.items() if 0 < len(found) < len(BACKENDS)} == set()


def anchors(page: Path) -> set[str]:
    """Return the anchors that a page's headings get where Markdown is shown."""
    titles = HEADING.findall(prose(page))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@every_page
def test_relative_links_resolve(page):
    """A link that leads nowhere tells the reader that nobody reads this."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page).replace("\n", " ")):
        if not re.match(r"https?://", target):
            path, _, anchor = target.partition("#")
            linked = (page.parent / path).resolve() if path else page
            assert linked.exists(), target
            assert linked.is_relative_to(ROOT), target
            if anchor:
                assert anchor in anchors(linked), target


def test_the_index_leads_to_every_page():
    """A page that nothing links to is not there."""
    index = prose(DOCS / "README.md")
    for page in DOCS.rglob("*.md"):
        if page.name != "README.md":
            assert f"({page.relative_to(DOCS).as_posix()})" in index, page


@every_page
def test_lines_are_at_most_120_characters_wide(page):
    """Plain text is read as plain text too; tables and code are as wide as they must be."""
    for line in prose(page).splitlines():
        assert line.startswith("|") or len(line) <= 120, line
