"""Exceptions on their way to many callers: each gets its own, whole, of the same type."""

from __future__ import annotations

import contextlib
import errno
import gc
import pickle
import traceback
from typing import Any, Self

import anyio
import httpx
import pydantic
import pytest
from support import Recorder, outcome, outcomes, turns

from microbatch import Batcher, ItemError, Retry, Skipped

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]


class KeywordOnly(Exception):
    """Cannot be made from its args."""

    def __init__(self, *, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


class Rewriting(Exception):
    """Made from other arguments than those in args: type(error)(*error.args) would say it twice."""

    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


class Slotted(Exception):
    """Keeps a field outside of __dict__."""

    __slots__ = ("detail",)

    def __init__(self, detail: str) -> None:
        super().__init__()
        self.detail = detail


class Demanding(Exception):
    """Wants two arguments in __new__ and keeps one."""

    def __new__(cls, first: int, second: int) -> Self:
        self = super().__new__(cls, first)
        self.second = second  # type: ignore[attr-defined]
        return self

    def __init__(self, first: int, second: int) -> None:
        super().__init__(first)


class Uncopyable(Exception):
    """Refuses to be copied or pickled in any way."""

    def __copy__(self) -> Any:
        raise TypeError("no copies")

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("no pickles")


class Counting(Exception):
    """Its constructor has an effect: a copy must not repeat it behind the user's back without need."""

    def __init__(self, bill: list[int]) -> None:
        super().__init__("counted")
        self.bill = bill
        bill.append(1)


class Model(pydantic.BaseModel):
    number: int


def status_error() -> Exception:
    request = httpx.Request("GET", "http://localhost/")
    return httpx.HTTPStatusError(
        "bad", request=request, response=httpx.Response(503, request=request)
    )


def validation_error() -> Exception:
    try:
        Model(number="x")  # type: ignore[arg-type]
    except pydantic.ValidationError as error:
        return error
    raise AssertionError


def decode_error() -> Exception:
    try:
        b"\xff".decode()
    except UnicodeDecodeError as error:
        return error
    raise AssertionError


def noted() -> Exception:
    error = ValueError("noted")
    error.add_note("from the handler")
    return error


MAKERS = {
    "plain": lambda: ValueError("one", 2),
    "without args": LookupError,
    "keyword only": lambda: KeywordOnly(status=503),
    "rewriting": lambda: Rewriting(7),
    "slotted": lambda: Slotted("deep"),
    "demanding": lambda: Demanding(1, 2),
    "uncopyable": lambda: Uncopyable("alone"),
    "counting": lambda: Counting([]),
    "httpx": status_error,
    "pydantic": validation_error,
    "unicode": decode_error,
    "oserror": lambda: OSError(errno.ENOENT, "gone", "/a/file", None, "/b/file"),
    "file not found": lambda: FileNotFoundError(errno.ENOENT, "gone", "/a/file"),
    "timeout": lambda: TimeoutError("late"),
    "key": lambda: KeyError("missing"),
    "import": lambda: ImportError("no module", name="module", path="/path"),
    "syntax": lambda: SyntaxError("bad", ("file.py", 1, 2, "text")),
    "attribute": lambda: AttributeError("none", name="field", obj=3),
    "system": lambda: ExceptionGroup(
        "outer", [ValueError(1), ExceptionGroup("inner", [KeyError(2)])]
    ),
    "item": lambda: ItemError(
        "bad row", code="bad", retryable=False, retry_after=2.0, field="name", details={"a": 1}
    ),
    "skipped": lambda: Skipped("seen before"),
    "noted": noted,
}


def fields_of(error: BaseException) -> Any:
    names = (
        "status",
        "code",
        "detail",
        "second",
        "errno",
        "strerror",
        "filename",
        "filename2",
        "name",
        "path",
        "obj",
    )
    names += (
        "request",
        "response",
        "start",
        "end",
        "reason",
        "object",
        "encoding",
        "lineno",
        "msg",
        "text",
    )
    names += ("message", "retryable", "retry_after", "field", "details", "__notes__")
    return {name: getattr(error, name) for name in names if hasattr(error, name)}


@pytest.mark.parametrize("name", MAKERS)
async def test_every_caller_gets_the_handlers_exception_whole(name: str) -> None:
    """Type, args, fields, text, cause, notes: what an except clause or a log line looks at."""
    original = MAKERS[name]()
    cause = RuntimeError("underneath")

    async def handler(items: list[int]) -> list[int]:
        raise original from cause

    async with Batcher(handler) as batcher:
        errors = await outcomes(*map(batcher.submit, range(3)))
    for error in errors:
        assert type(error) is type(original)
        assert error.args == original.args
        assert str(error) == str(original)
        assert repr(fields_of(error)) == repr(fields_of(original))
        assert error.__cause__ is cause
        assert error.__suppress_context__ == original.__suppress_context__
        assert "handler" in [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    if name not in ("uncopyable", "pydantic"):
        assert len({id(error) for error in errors}) == 3
    if name == "pydantic":
        assert errors[0].errors() == original.errors()


@pytest.mark.parametrize(
    "name", [name for name in MAKERS if name not in ("uncopyable", "pydantic")]
)
async def test_what_one_caller_does_to_its_exception_no_other_sees(name: str) -> None:
    """Notes, causes and traceback are changed by every frame that handles an exception."""
    original = MAKERS[name]()

    async def handler(items: list[int]) -> list[int]:
        raise original

    async with Batcher(handler) as batcher:
        first, second = await outcomes(batcher.submit(1), batcher.submit(2))
    depth = len(traceback.extract_tb(second.__traceback__))
    first.add_note("mine")
    for _ in range(20):
        try:
            raise first from KeyError("also mine")
        except type(first):
            pass
    assert "mine" not in getattr(second, "__notes__", ())
    assert second.__cause__ is None
    assert len(traceback.extract_tb(second.__traceback__)) == depth
    assert len(first.__traceback__ and traceback.extract_tb(first.__traceback__)) > depth


async def test_members_of_a_group_are_not_shared_either() -> None:
    """except* hands out the members: a note on one must stay with its caller."""

    async def handler(items: list[int]) -> list[int]:
        raise ExceptionGroup("several", [ValueError(1), KeyError(2)])

    async with Batcher(handler) as batcher:
        first, second = await outcomes(batcher.submit(1), batcher.submit(2))
    assert first.exceptions[0] is not second.exceptions[0]
    assert [type(member) for member in second.exceptions] == [ValueError, KeyError]
    assert first.message == second.message == "several"


async def test_a_hundred_callers_do_not_lengthen_the_traceback() -> None:
    """bentoml's grows to 203 frames: two for each caller that raised the shared object before."""

    async def handler(items: list[int]) -> list[int]:
        raise ValueError("once")

    async with Batcher(handler) as batcher:
        errors = await outcomes(*map(batcher.submit, range(100)))
    depths = {len(traceback.extract_tb(error.__traceback__)) for error in errors}
    assert len(depths) == 1
    assert max(depths) < 12
    assert len(set(map(id, errors))) == 100


async def test_one_exception_object_in_many_places_reaches_each_caller_as_its_own() -> None:
    """`[error] * len(items)` is what people write."""

    async def handler(items: list[int]) -> list[Any]:
        error = ValueError("the same")
        return [error for _ in items]

    async with Batcher(handler) as batcher:
        errors = await outcomes(*map(batcher.submit, range(3)))
    assert [str(error) for error in errors] == ["the same"] * 3
    errors[0].add_note("mine")
    assert not hasattr(errors[1], "__notes__")


async def test_an_exception_returned_for_one_item_is_raised_in_its_caller() -> None:
    """As it is: type, args and identity are the handler's."""
    error = KeywordOnly(status=404)

    async def handler(items: list[int]) -> list[Any]:
        return [error if item == 1 else item for item in items]

    async with Batcher(handler) as batcher:
        results = await outcomes(*map(batcher.submit, range(3)))
    assert results[0] == 0
    assert type(results[1]) is KeywordOnly
    assert results[1].status == 404
    assert results[2] == 2


async def test_a_constructor_with_effects_runs_once() -> None:
    """Copies are made of what is there, not by constructing again."""
    bill: list[int] = []

    async def handler(items: list[int]) -> list[int]:
        raise Counting(bill)

    async with Batcher(handler) as batcher:
        await outcomes(*map(batcher.submit, range(5)))
    assert len(bill) == 1


async def test_an_exception_whose_text_raises_still_reaches_its_callers() -> None:
    """Nothing here may need str(error) or repr(error)."""

    class Mute(Exception):
        def __str__(self) -> str:
            raise LookupError

        __repr__ = __str__

    async def handler(items: list[int]) -> list[int]:
        raise Mute

    async with Batcher(handler) as batcher:
        errors = await outcomes(*map(batcher.submit, range(3)))
        assert all(type(error) is Mute for error in errors)


async def test_an_exception_from_retries_is_the_last_one() -> None:
    """After the attempts are used up the caller sees what the last call said."""
    calls = 0

    async def handler(items: list[int]) -> list[int]:
        nonlocal calls
        calls += 1
        raise ConnectionError(calls)

    async with Batcher(handler, retry=Retry(on=ConnectionError, attempts=3)) as batcher:
        error = await outcome(batcher.submit(1))
    assert type(error) is ConnectionError
    assert error.args == (3,)


async def test_the_librarys_own_errors_survive_pickle() -> None:
    """They cross process borders in in_process workers and in test reports."""
    async with Batcher(Recorder(), max_batch_weight=5, weigh=int) as batcher:
        error = await outcome(batcher.submit(9))
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)


# --- nothing is kept alive --------------------------------------------------------------------------------------


class Thing:
    """Can be watched dying."""

    __slots__ = ("__weakref__",)


@pytest.fixture
def without_gc() -> Any:
    """Reference counts alone must free everything: a cycle per batch would be memory until the next collection."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("without_gc")
@pytest.mark.parametrize("settings", [
    pytest.param({}, id="natural"),
    pytest.param({"max_wait": 1.0}, id="waiting"),
    pytest.param({"handler_timeout": 5.0}, id="timeout"),
    pytest.param({"retry": Retry(on=ConnectionError)}, id="retry"),
    pytest.param({"coalesce": id}, id="coalesce"),
    pytest.param({"partition": id}, id="partition"),
    pytest.param({"weigh": lambda item: 1, "max_batch_weight": 5}, id="weigh"),
    pytest.param({"cancel_abandoned": True}, id="abandoned"),
    pytest.param({"capture_context": True}, id="context"),
    pytest.param({"max_pending": 1}, id="without room"),
])  # fmt: skip
async def test_nobody_keeps_items_or_results_alive(settings: dict[str, Any]) -> None:
    """A result may be a hundred megabytes; the batcher must not be the one that holds it until the next batch."""
    import weakref

    alive: list[Any] = []

    async def handler(items: list[Thing]) -> list[Thing]:
        await anyio.sleep(0.1)
        return [Thing() for _ in items]

    async def call(batcher: Any) -> None:
        item = Thing()
        alive.append(weakref.ref(item))
        alive.append(weakref.ref(await batcher.submit(item)))

    async with Batcher(handler, **settings) as batcher:
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(call, batcher)
        await anyio.sleep(2)
        await turns()
        assert len(alive) == 6
        assert [reference() for reference in alive] == [None] * 6


@pytest.mark.usefixtures("without_gc")
@pytest.mark.parametrize(
    "way", ["raised", "returned", "cancelled", "cancelled in flight", "timed out", "dropped"]
)
async def test_nobody_keeps_the_items_of_a_failed_batch_alive(way: str) -> None:
    """Exceptions hold frames, and frames hold items: the copies must not form a ring."""
    import weakref

    alive: list[Any] = []

    async def handler(items: list[Thing]) -> Any:
        await anyio.sleep(1.0)
        if way == "timed out":
            await anyio.sleep_forever()
        if way == "raised":
            raise ValueError("all")
        return [ValueError("each") for _ in items] if way == "returned" else items

    async def call(batcher: Any) -> None:
        item = Thing()
        alive.append(weakref.ref(item))
        if way == "dropped":
            batcher.submit_nowait(item)
            return
        delay = {"cancelled": 0.1, "cancelled in flight": 0.7}.get(way, 100)
        with anyio.move_on_after(delay):
            with contextlib.suppress(ValueError, TimeoutError):
                await batcher.submit(item)

    async with Batcher(handler, max_wait=0.5, handler_timeout=3.0) as batcher:
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(call, batcher)
        await anyio.sleep(10)
        await turns()
        assert len(alive) == 3
        assert [reference() for reference in alive] == [None] * 3


@pytest.mark.usefixtures("without_gc")
async def test_a_closed_batcher_is_freed_with_everything_it_held() -> None:
    """Batchers made per request or per instance must not pile up, with or without a close."""
    import weakref

    class Handler:
        async def __call__(self, items: list[int]) -> list[int]:
            return items

    references = []
    for close in (True, False):
        handler = Handler()
        batcher: Batcher[int, int] = Batcher(handler)
        assert await batcher.submit(1) == 1
        if close:
            await batcher.aclose()
        references += [weakref.ref(handler), weakref.ref(batcher)]
        del handler, batcher
    await turns()
    gc.collect()  # a ring within the batcher itself is fine, a registry that holds it is not
    assert [reference() for reference in references] == [None] * 4
