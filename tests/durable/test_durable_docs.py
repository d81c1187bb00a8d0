"""The durable mode's public names: pinned, and held against docs/reference/durable.md."""

from __future__ import annotations

import ast
import inspect
import re
from typing import Any

import pytest
from pages_support import DOCS, REFERENCE, documented, entries_of, parameters, prose, rows, sections

from microbatch import durable
from microbatch.durable import DurableBatcher, DurableQueue
from microbatch.durable._file import job_schema, schema

PAGE = REFERENCE / "durable.md"
HOW_TO = DOCS / "how-to/durable.md"
REQUIRED = inspect.Parameter.empty
METHODS = sorted(name for name in dir(DurableBatcher) if name[0] != "_" and name != "name")
ERRORS = [
    name for name in durable.__all__ if issubclass(getattr(durable, name), Exception)
]  # all names are classes

QUEUE_SETTINGS = {
    "path": REQUIRED,
    "item_type": REQUIRED,
    "result_type": None,
    "queue": "default",
    "enc_hook": None,
    "dec_hook": None,
    "max_depth": 1_000_000,
    "max_file_bytes": None,
    "key_ttl": 86_400.0,
    "result_ttl": 86_400.0,
    "keep_dead": None,
    "keep_done": None,
    "job_ttl": 604_800.0,
    "poll_interval": 0.05,
    "synchronous": "full",
    "name": None,
    "telemetry": None,
}
BATCHER_SETTINGS = {
    "max_batch_size": 100,
    "max_wait": 0.0,
    "max_concurrency": 1,
    "partition": None,
    "retry": None,
    "handler_timeout": None,
    "drain_timeout": 30.0,
    "on_settle": None,
    "on_job_end": None,
}


def defaults(function: Any) -> dict[str, Any]:
    return {name: parameter.default for name, parameter in parameters(function).items()}


def test_the_constructors_are_pinned() -> None:
    """A changed default changes every application; what is no handler or path has a name."""
    assert defaults(DurableQueue) == QUEUE_SETTINGS
    assert defaults(DurableBatcher) == QUEUE_SETTINGS | BATCHER_SETTINGS
    for cls, positional in ((DurableQueue, ["path"]), (DurableBatcher, ["path", "handler"])):
        signature = inspect.signature(cls).parameters.values()
        assert [p.name for p in signature if p.kind is not inspect.Parameter.KEYWORD_ONLY] == (
            positional
        )


@pytest.mark.parametrize(
    ("title", "settings"),
    [("DurableQueue", QUEUE_SETTINGS), ("DurableBatcher", BATCHER_SETTINGS)],
)
def test_documented_settings_and_defaults_are_the_codes(
    title: str, settings: dict[str, Any]
) -> None:
    """A default that the page has wrong is a setting that nobody checks."""
    shown = documented(PAGE, title)
    assert list(shown) == list(settings)
    for name, cell in shown.items():
        default = settings[name]
        assert (cell == "required") == (default is REQUIRED), name
        if cell != "required":
            value = ast.literal_eval(cell.strip("`"))
            assert (value, type(value)) == (default, type(default)), name


def test_types_know_the_same_settings() -> None:
    """The overloads that type checkers read name each setting once more."""
    from microbatch.durable.batcher import BatcherSettings
    from microbatch.durable.queue import QueueSettings

    apart = {"path", "item_type", "result_type"}
    assert set(QueueSettings.__annotations__) == set(QUEUE_SETTINGS) - apart
    assert set(BatcherSettings.__annotations__) == (set(QUEUE_SETTINGS | BATCHER_SETTINGS) - apart)


def test_every_method_is_documented_with_its_signature() -> None:
    """Names, order, what is keyword-only, and defaults."""
    shown = {}
    for call, _ in rows(sections(PAGE)["Methods"])[1:]:
        name, _, arguments = call.strip("`").rstrip(")").partition("(")
        shown[name] = ast.parse(f"def f({arguments}): ...").body[0].args  # type: ignore[attr-defined]
    assert sorted(shown) == METHODS
    for name, arguments in shown.items():
        code = parameters(getattr(DurableBatcher, name))
        assert [a.arg for a in [*arguments.args, *arguments.kwonlyargs]] == list(code), name
        only = [n for n, p in code.items() if p.kind is inspect.Parameter.KEYWORD_ONLY]
        assert [a.arg for a in arguments.kwonlyargs] == only, name
        given = [p.default for p in code.values() if p.default is not REQUIRED]
        told = [ast.literal_eval(d) for d in [*arguments.defaults, *arguments.kw_defaults]]
        assert all(t in (..., g) for t, g in zip(told, given, strict=True)), name


def test_both_classes_have_the_same_methods_and_all_are_coroutines() -> None:
    """A queue and a batcher are interchangeable for who only enqueues; `enqueue_in` fits both drivers.

    `job` does nothing that could be awaited.
    """
    assert sorted(n for n in dir(DurableQueue) if n[0] != "_") == sorted([*METHODS, "name"])
    plain = [m for m in METHODS if not inspect.iscoroutinefunction(getattr(DurableBatcher, m))]
    assert plain == ["enqueue_in", "job"]
    assert all(getattr(DurableBatcher, method).__doc__ for method in METHODS)


@pytest.mark.parametrize(
    "name", ["Ticket", "DeadLetter", "QueueStats", "JobStatus", "JobPage", "JobsPage"]
)
def test_documented_fields_are_the_codes(name: str) -> None:
    """A figure that the page has not is one that nobody reads."""
    record = getattr(durable, name)
    public = {member for member in dir(record) if member[0] != "_"}
    assert set(documented(PAGE, name)) == public


def test_every_call_of_a_job_is_documented_with_its_signature() -> None:
    """Names, order and defaults."""
    shown = {}
    for call, _ in rows(sections(PAGE)["Job"])[1:]:
        name, _, arguments = call.strip("`").rstrip(")").partition("(")
        shown[name] = ast.parse(f"def f({arguments}): ...").body[0].args  # type: ignore[attr-defined]
    public = {name for name in dir(durable.Job) if name[0] != "_"} - {"id"}
    assert set(shown) == public
    for name, arguments in shown.items():
        code = parameters(getattr(durable.Job, name))
        assert [a.arg for a in arguments.args] == list(code), name
        given = [p.default for p in code.values() if p.default is not REQUIRED]
        assert [ast.literal_eval(d) for d in arguments.defaults] == given, name


def test_every_error_is_documented_with_its_base_and_fields() -> None:
    """What an except clause on the base catches, and what a program may read."""
    table = {row[0].strip("`"): row[1:] for row in rows(sections(PAGE)["Errors"])[1:]}
    assert sorted(table) == sorted(ERRORS)
    for name, (base, when, fields) in table.items():
        error = getattr(durable, name)
        assert base.strip("`") in {parent.__name__ for parent in error.__bases__}, name
        assert len(when) > 10
        told = set(re.findall(r"`(\w+)`", fields))
        in_code = set().union(*(entries_of(parent, "Attributes:") for parent in error.__mro__))
        assert told == in_code, name


def test_the_page_on_storing_names_every_table() -> None:
    """Who looks into the file finds what stands there."""
    told = {row[0].strip("`") for row in rows(sections(HOW_TO)["How it stores things"])[1:]}
    statements = " ".join(str(statement) for statement in [*schema.SCHEMA, *job_schema.TABLES])
    assert told == set(re.findall(r"CREATE TABLE (\w+)", statements))


def test_every_public_name_is_on_the_page() -> None:
    """What can be imported is described."""
    text = prose(PAGE)
    assert [name for name in durable.__all__ if f"`{name}`" not in text] == []
