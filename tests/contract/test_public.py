"""The public names, their signatures and fields: what applications are written against."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
import typing
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import microbatch
from microbatch import errors

ERRORS = {
    "MicrobatchError", "Full", "BatcherFull", "BatcherClosed", "BatchFailed", "BatchAborted", "ItemError", "ItemNotFound", "Skipped",
    "RateLimited",
    "ItemTooHeavy", "ResultCountError", "HandlerTimeout", "HandlerCrashed", "HandlerStuck", "WouldDeadlock",
}  # fmt: skip

NAMES = ERRORS | {
    "Batcher", "batched", "Pending", "BatcherStats", "current_batch", "batch_info", "BatchInfo", "BatchRecord", "Outcome", "BatchReport", "Retry",
    "Backoff", "AdaptiveSize", "Telemetry", "retry_after", "Loader",
}  # fmt: skip


def test_the_public_list_is_what_is_documented() -> None:
    """Public by accident is public for ever."""
    assert sorted(microbatch.__all__) == sorted(NAMES)
    assert len(set(microbatch.__all__)) == len(microbatch.__all__)


def test_nothing_else_is_visible() -> None:
    """But for the modules that the names come from."""
    visible = {
        name
        for name, value in vars(microbatch).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert visible == NAMES


def test_the_errors_module_lists_every_error() -> None:
    """And every error is exported."""
    assert set(errors.__all__) == ERRORS
    defined = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and value.__module__ == errors.__name__
    }
    assert defined == ERRORS


def test_every_public_name_says_where_it_is_found() -> None:
    """Pickles and tracebacks name it; a docstring explains it."""
    for name in NAMES:
        value = getattr(microbatch, name)
        assert value.__name__ == name
        assert value.__module__.startswith("microbatch")
        assert value.__doc__
        assert value.__doc__.strip()


def test_every_public_method_has_a_docstring() -> None:
    """Help in an editor is where users look first."""
    for name in NAMES - ERRORS:
        value = getattr(microbatch, name)
        if inspect.isclass(value):
            for member_name, member in vars(value).items():
                if not member_name.startswith("_") and callable(member):
                    assert member.__doc__, f"{name}.{member_name}"


def parameters(function: Any) -> list[tuple[str, str, Any]]:
    """Return name, kind and default of each parameter but self."""
    kinds = {
        inspect.Parameter.POSITIONAL_ONLY: "/",
        inspect.Parameter.POSITIONAL_OR_KEYWORD: "",
        inspect.Parameter.KEYWORD_ONLY: "*",
        inspect.Parameter.VAR_POSITIONAL: "*args",
        inspect.Parameter.VAR_KEYWORD: "**",
    }
    signature = inspect.signature(function)
    return [
        (p.name, kinds[p.kind], p.default)
        for p in signature.parameters.values()
        if p.name != "self"
    ]


REQUIRED = inspect.Parameter.empty


def test_the_constructor_is_pinned() -> None:
    """Every setting, its order, its default: a changed default changes every application."""
    assert parameters(microbatch.Batcher) == [
        ("handler", "", REQUIRED),
        ("max_batch_size", "*", 100),
        ("max_wait", "*", 0.0),
        ("max_concurrency", "*", 1),
        ("max_pending", "*", 10_000),
        ("on_full", "*", "wait"),
        ("weigh", "*", None),
        ("max_batch_weight", "*", None),
        ("max_pending_weight", "*", None),
        ("partition", "*", None),
        ("partition_concurrency", "*", None),
        ("coalesce", "*", None),
        ("retry", "*", None),
        ("handler_timeout", "*", None),
        ("drain_timeout", "*", 30.0),
        ("cancel_abandoned", "*", False),
        ("capture_context", "*", False),
        ("name", "*", None),
        ("telemetry", "*", None),
    ]


def test_the_decorator_takes_the_same_settings() -> None:
    """One list of settings for both, in the types too."""
    (typed,) = typing.get_args(typing.get_type_hints(microbatch.batched)["settings"])
    settings = [name for name, kind, _ in parameters(microbatch.Batcher) if kind == "*"]
    assert list(typing.get_type_hints(typing.get_origin(typed))) == settings
    assert parameters(microbatch.batched) == [("handler", "/", None), ("settings", "**", REQUIRED)]


METHODS = {
    "submit": [("item", "", REQUIRED), ("priority", "*", 0)],
    "submit_nowait": [("item", "", REQUIRED), ("priority", "*", 0)],
    "submit_many": [("items", "", REQUIRED), ("priority", "*", 0)],
    "submit_many_report": [("items", "", REQUIRED), ("priority", "*", 0)],
    "submit_from_thread": [("item", "", REQUIRED), ("timeout", "", None)],
    "flush": [],
    "stats": [],
}


@pytest.mark.parametrize("name", METHODS)
def test_the_methods_are_pinned(name: str) -> None:
    """Names, order and defaults."""
    assert parameters(getattr(microbatch.Batcher, name)) == METHODS[name]


def test_aclose_takes_an_optional_drain_timeout() -> None:
    """The constructor's is its default."""
    ((name, kind, default),) = parameters(microbatch.Batcher.aclose)
    assert (name, kind) == ("drain_timeout", "")
    assert default is not REQUIRED
    assert default is not None


def test_which_methods_are_coroutines() -> None:
    """`await batcher.flush()`, but `batcher.stats()`."""
    coroutines = {
        name
        for name in (*METHODS, "aclose")
        if inspect.iscoroutinefunction(getattr(microbatch.Batcher, name))
    }
    assert coroutines == {"submit", "submit_many", "submit_many_report", "flush", "aclose"}


def test_a_batcher_has_no_other_public_members() -> None:
    """What is not listed here is nobody's to rely on."""
    public = {name for name in dir(microbatch.Batcher) if not name.startswith("_")}
    assert public == {*METHODS, "aclose", "name"}


def test_the_fields_of_the_records_are_pinned() -> None:
    """Dashboards and reports read them by name."""

    def fields(record: Any) -> list[str]:
        return [field.name for field in dataclasses.fields(record)]

    assert fields(microbatch.BatcherStats) == [
        "pending", "buffered", "in_flight", "waiting", "in_backoff", "held", "batches", "items", "failed", "reasons",
        "oldest_wait", "oldest_in_flight", "stuck_threads",
    ]  # fmt: skip
    assert fields(microbatch.Outcome) == [
        "index",
        "ok",
        "value",
        "error",
        "skipped",
        "attempts",
        "id",
    ]
    assert fields(microbatch.BatchRecord) == [
        "name", "size", "reason", "seconds", "oldest_wait", "succeeded", "failed", "skipped", "retried", "held",
        "errors",
    ]  # fmt: skip
    assert fields(microbatch.Retry) == ["on", "attempts", "backoff", "holds"]
    assert fields(microbatch.Backoff) == ["initial", "factor", "maximum", "jitter"]
    assert all(
        record.__dataclass_params__.frozen
        for record in (
            microbatch.BatcherStats,
            microbatch.BatchRecord,
            microbatch.Outcome,
            microbatch.Retry,
            microbatch.Backoff,
        )
    )


def test_the_defaults_of_the_parts_are_pinned() -> None:
    """Three attempts; one second, doubled, at most a minute, fully jittered."""
    retry = microbatch.Retry(on=ValueError)
    assert (retry.attempts, retry.backoff) == (3, microbatch.Backoff())
    backoff = microbatch.Backoff()
    assert (backoff.initial, backoff.factor, backoff.maximum, backoff.jitter) == (
        1.0,
        2.0,
        60.0,
        1.0,
    )
    assert parameters(microbatch.AdaptiveSize) == [
        ("minimum", "", REQUIRED),
        ("maximum", "", REQUIRED),
        ("target", "*", 1.0),
    ]


def test_what_a_batch_tells_is_pinned() -> None:
    """Layers are written against it."""

    public = {name for name in dir(microbatch.BatchInfo) if not name.startswith("_")}
    assert public == {
        "size", "reason", "oldest_wait", "partition", "attempts", "contexts", "job", "item_ids", "keys", "resolve",
    }  # fmt: skip
    assert parameters(microbatch.BatchInfo.resolve) == [
        ("index", "", REQUIRED),
        ("result", "", REQUIRED),
    ]


def test_the_error_tree_is_pinned() -> None:
    """An except clause on a parent must go on catching its children."""
    parents = {
        "Full": microbatch.MicrobatchError,
        "BatcherFull": microbatch.Full,
        "BatcherClosed": microbatch.MicrobatchError,
        "BatchFailed": ExceptionGroup,
        "BatchAborted": microbatch.MicrobatchError,
        "ItemError": microbatch.MicrobatchError,
        "Skipped": microbatch.ItemError,
        "RateLimited": microbatch.ItemError,
        "ItemTooHeavy": ValueError,
        "ResultCountError": microbatch.MicrobatchError,
        "HandlerTimeout": TimeoutError,
        "HandlerCrashed": microbatch.MicrobatchError,
        "HandlerStuck": microbatch.MicrobatchError,
        "WouldDeadlock": RuntimeError,
    }
    for name, parent in parents.items():
        assert issubclass(getattr(microbatch, name), parent)
        assert issubclass(getattr(microbatch, name), microbatch.MicrobatchError)
        assert issubclass(getattr(microbatch, name), Exception)


def test_the_starvation_bound_is_documented_where_it_is_set() -> None:
    """One turn in ten goes by age: `submit` says so."""
    text = " ".join((microbatch.Batcher.submit.__doc__ or "").split())
    assert "One in ten goes by age" in text
    assert "10 * (n // max_batch_size + 1) batches" in text


def test_the_version_is_the_packages() -> None:
    """What is asked at run time and what pip shows."""
    try:
        assert metadata.version("microbatch") == microbatch.__version__
    except metadata.PackageNotFoundError:  # run from the checkout: then the project file knows
        project = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
        assert f'\nversion = "{microbatch.__version__}"\n' in project


def test_importing_microbatch_imports_nothing_heavy() -> None:
    """No codec, no database, no other event loop, no optional part."""
    code = (
        "import sys, microbatch\n"
        "heavy = {'opentelemetry', 'msgspec', 'aiosqlite', 'sqlite3', 'trio', 'uvloop', 'numpy', 'pydantic', 'httpx', 'fastapi'}\n"
        "print(sorted(heavy & set(sys.modules)), sorted(m for m in sys.modules if m.startswith('microbatch.durable')\n"
        "      or m.startswith('microbatch.layers')))\n"
    )
    environment = {"PYTHONPATH": ":".join(filter(None, sys.path)), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[] []"
