"""copying: each caller's own copy of an exception, whole."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import json
import re
import traceback
from typing import Any, Self

import httpx
import pydantic
import pydantic_core
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import PydanticCustomError

from microbatch import BatchFailed, BatchReport, HandlerTimeout, ItemError
from microbatch._pure.copying import copy_exception
from microbatch._pure.report import outcome_of


@dataclasses.dataclass(frozen=True)
class FrozenError(Exception):
    table: str
    row: int


@dataclasses.dataclass
class DataError(Exception):
    table: str
    row: int = 0


class SlotsError(Exception):
    __slots__ = ("code", "unset")

    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


class MoreSlotsError(SlotsError):
    __slots__ = ("more",)

    def __init__(self, code: int, more: str) -> None:
        super().__init__(code)
        self.more = more


class KeywordError(Exception):
    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


class CountingError(Exception):
    made = 0

    def __init__(self, first: int, second: int) -> None:
        type(self).made += 1
        super().__init__(first + second)
        self.first = first


class ArgsLostError(Exception):
    def __init__(self, first: int, second: int) -> None:
        self.both = first, second


class ReadOnlyError(Exception):
    @property
    def answer(self) -> int:
        return 42

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"cannot set {name}")


class KeywordOsError(OSError):
    def __init__(self, path: str, *, status: int) -> None:
        super().__init__(5, "no luck", path)
        self.status = status


class OwnNewError(Exception):
    def __new__(cls, *args: Any, must: str) -> Self:
        self = super().__new__(cls, *args)
        self.must = must
        return self

    def __init__(self, *args: Any, must: str) -> None:
        super().__init__(*args)

    must: str


class MixedError(KeyError, AttributeError):
    pass


class OwnGroup(ExceptionGroup[Exception]):
    code = 0


def raised(error: Any) -> Any:
    """Raise and catch it, two frames deep, so that it has a traceback."""

    def inner() -> None:
        raise error

    try:
        inner()
    except BaseException as caught:
        return caught


def of(function: Any, *args: Any, **settings: Any) -> Any:
    try:
        function(*args, **settings)
    except BaseException as caught:
        return caught
    raise AssertionError


class Person(pydantic.BaseModel):
    name: str
    age: int


def status_error() -> httpx.HTTPStatusError:
    request = httpx.Request("GET", "http://example.org/")
    return of(httpx.Response(503, request=request).raise_for_status)  # type: ignore[no-any-return]


def noted(error: Any) -> Any:
    error.add_note("item 5")
    error.add_note("of file a.csv")
    return error


def own_group() -> Any:
    group = OwnGroup("many", [ValueError(1), ExceptionGroup("inner", [KeyError("k")])])
    group.code = 5
    return group


def batch_failed() -> Any:
    report: BatchReport[int] = BatchReport([outcome_of(0, KeyError("a")), outcome_of(1, 5)])
    return of(report.values)


EXCEPTIONS: dict[str, Any] = {
    "no arguments": ValueError,
    "one": lambda: ValueError("x"),
    "many": lambda: ValueError("x", 2, [3]),
    "key": lambda: KeyError("k"),
    "notes": lambda: noted(ValueError("x")),
    "attribute": lambda: of(getattr, 5, "nope"),
    "name": lambda: NameError("x", name="y"),
    "import": lambda: ImportError("no", name="pandas", path="/lib"),
    "module": lambda: of(__import__, "no_such_module"),
    "stop": lambda: StopIteration(5),
    "exit": lambda: SystemExit(3),
    "interrupt": KeyboardInterrupt,
    "cancelled": lambda: asyncio.CancelledError("why"),
    "os, one argument": lambda: OSError("x"),
    "os, two": lambda: OSError(5, "x"),
    "os, three": lambda: OSError(2, "x", "a.csv"),
    "os, five": lambda: OSError(2, "x", "a.csv", None, "b.csv"),
    "os, none": OSError,
    "file not found": lambda: of(open, "/no/such/file"),
    "os, subclass": lambda: ConnectionResetError(104, "reset"),
    "os, own": lambda: KeywordOsError("a.csv", status=503),
    "blocking": lambda: BlockingIOError(11, "again", 7),
    "timeout": lambda: TimeoutError("slow"),
    "decode": lambda: of(b"\xff".decode, "utf-8"),
    "encode": lambda: of("\udcff".encode, "utf-8"),
    "translate": lambda: UnicodeTranslateError("abc", 0, 1, "why"),
    "syntax": lambda: of(compile, "a b", "file.py", "exec"),
    "syntax, one": lambda: SyntaxError("x"),
    "json": lambda: of(json.loads, "{"),
    "keyword-only": lambda: KeywordError(code=5),
    "other arguments": lambda: CountingError(1, 2),
    "arguments lost": lambda: ArgsLostError(1, 2),
    "slots": lambda: SlotsError(5),
    "slots of a child": lambda: MoreSlotsError(5, "more"),
    "frozen dataclass": lambda: FrozenError("users", 5),
    "dataclass": lambda: DataError("users"),
    "read-only": lambda: ReadOnlyError(1),
    "own __new__": lambda: OwnNewError(1, 2, must="have"),
    "mixed": lambda: MixedError("k"),
    "group": lambda: ExceptionGroup("many", [ValueError(1), KeyError("k")]),
    "base group": lambda: BaseExceptionGroup("many", [KeyboardInterrupt(), KeyError("k")]),
    "own group": own_group,
    "batch failed": batch_failed,
    "item error": lambda: ItemError("x", code="rate", retryable=True, retry_after=1.5),
    "handler timeout": lambda: HandlerTimeout("orders", 2.0),
    "pydantic": lambda: of(Person, name="a", age="old"),
    "pydantic, own": lambda: pydantic_core.PydanticCustomError("kind", "no {x}", {"x": 1}),
    "httpx": status_error,
    "httpx, connect": lambda: httpx.ConnectError("refused"),
}


#: What Python itself keeps of each exception: compared between original and copy.
FIELDS = re.findall(
    r"\w+",
    """args name path obj errno strerror filename filename2 characters_written object encoding start
    end reason msg lineno offset text end_lineno end_offset print_file_and_line value code status
    request response table row first both must more answer doc pos colno message report""",
)


CHAIN: dict[str, Any] = {
    "__cause__": KeyError("cause"),
    "__context__": ValueError("context"),
    "__suppress_context__": True,
}


_MISSING = object()


def field(error: Any, name: str) -> Any:
    try:
        return getattr(error, name, _MISSING)
    except (RuntimeError, ValueError) as problem:  # httpx: no request was set
        return repr(problem)


@pytest.mark.parametrize("name", EXCEPTIONS)
def test_a_copy_has_the_type_args_fields_and_text_of_its_original(name: str) -> None:
    """Each caller catches what the handler raised, and reads from it what the handler wrote."""
    error = raised(EXCEPTIONS[name]())
    copied = copy_exception(error)
    assert copied is not error
    assert type(copied) is type(error)
    assert repr(copied.args) == repr(error.args)
    assert (str(copied), repr(copied)) == (str(error), repr(error))
    for key in FIELDS:
        theirs, ours = field(error, key), field(copied, key)
        assert callable(theirs) or ours is theirs or ours == theirs, key
    assert getattr(copied, "__notes__", None) == getattr(error, "__notes__", None)
    assert vars(copied).keys() == vars(error).keys()


@pytest.mark.parametrize("name", EXCEPTIONS)
def test_raising_a_copy_changes_nothing_of_its_original(name: str) -> None:
    """A hundred callers raise; none of them may see the others' frames, notes or causes."""
    error = raised(EXCEPTIONS[name]())
    for link, value in CHAIN.items():
        BaseException.__setattr__(error, link, value)
    frames = traceback.extract_tb(error.__traceback__)
    copied = copy_exception(error)
    assert copied.__cause__ is error.__cause__
    assert copied.__context__ is error.__context__
    assert copied.__suppress_context__ is True
    assert traceback.extract_tb(copied.__traceback__) == frames
    again = raised(copied)
    BaseException.__setattr__(again, "__cause__", None)
    assert traceback.extract_tb(error.__traceback__) == frames
    assert len(traceback.extract_tb(again.__traceback__)) == len(frames) + 2
    assert error.__cause__ is CHAIN["__cause__"]


@pytest.mark.parametrize("name", ["one", "json", "slots", "frozen dataclass", "own __new__"])
def test_a_copy_can_be_copied(name: str) -> None:
    """Errors pass through layers and batchers one after the other."""
    error = EXCEPTIONS[name]()
    second = copy_exception(copy_exception(error))
    assert second is not error
    assert (type(second), str(second)) == (type(error), str(error))


def test_a_constructor_does_not_run_again() -> None:
    """It may count, log, or need arguments that nobody kept."""
    error = CountingError(1, 2)
    made = CountingError.made
    assert copy_exception(error).first == 1
    assert CountingError.made == made


def test_the_members_of_a_group_are_copies_too() -> None:
    """`except*` raises them again, one by one."""
    inner = KeyError("k")
    group = ExceptionGroup("many", [ValueError(1), ExceptionGroup("inner", [inner])])
    copied = copy_exception(group)
    assert [type(one) for one in copied.exceptions] == [ValueError, ExceptionGroup]
    innermost = copied.exceptions[1].exceptions[0]  # type: ignore[union-attr]
    assert type(innermost) is KeyError
    assert innermost is not inner
    assert copied.exceptions[0] is not group.exceptions[0]


def test_a_copys_notes_are_a_list_of_its_own() -> None:
    """Who adds a note adds it to his own."""
    error = noted(ValueError("x"))
    copied = copy_exception(error)
    copied.add_note("more")
    assert error.__notes__ == ["item 5", "of file a.csv"]
    assert copied.__notes__ == ["item 5", "of file a.csv", "more"]


def test_an_empty_slot_stays_empty() -> None:
    """It was never set, and reading it says so."""
    copied = copy_exception(SlotsError(5))
    assert copied.code == 5
    assert not hasattr(copied, "unset")


class UncopyableError(Exception):
    """A class that makes each way of copying fail."""

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(name)

    def with_traceback(self, tb: Any) -> Any:
        raise RuntimeError("no")

    def __reduce__(self) -> Any:
        raise RuntimeError("no")


class ChangingError(Exception):
    """What comes out of its copies is something else."""

    def with_traceback(self, tb: Any) -> Any:
        return ValueError("another")

    def __reduce__(self) -> Any:
        return ValueError, ("another",)


class SelfsameError(Exception):
    def with_traceback(self, tb: Any) -> Any:
        raise RuntimeError("no")

    def __copy__(self) -> Any:
        return self


class TextsError(Exception):
    """Its copies by reduce say something else."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return self.text

    def with_traceback(self, tb: Any) -> Any:
        raise RuntimeError("no")

    def __reduce__(self) -> Any:
        return TextsError, ("another",)


@pytest.mark.parametrize("kind", [UncopyableError, ChangingError, SelfsameError, TextsError])
def test_what_no_way_of_copying_keeps_is_shared(kind: type[Exception]) -> None:
    """Better the original for all than a stranger for each."""
    error = kind("x")
    assert copy_exception(error) is error


class FromRustError(Exception):
    """Like what is made in C or Rust: `__new__` wants what `args` does not have, `__reduce__` knows."""

    def __new__(cls, number: int, *, secret: str) -> Self:
        self = super().__new__(cls, number)
        self.secret = secret
        return self

    def __init__(self, number: int, *, secret: str) -> None:
        super().__init__(number)

    secret: str
    ways = 0

    def with_traceback(self, tb: Any) -> Any:
        type(self).ways += 1
        if type(self).ways == 1:  # the first way of copying fails
            raise RuntimeError("no")
        return super().with_traceback(tb)

    def __reduce__(self) -> Any:
        return functools.partial(FromRustError, secret=self.secret), self.args


def test_an_exception_is_made_again_by_reduce_if_need_be() -> None:
    """`copy.copy` asks the class itself how; cause and frames come along."""
    error = raised(FromRustError(5, secret="x"))
    error.__cause__ = KeyError("cause")
    error.note = "more"
    copied = copy_exception(error)
    assert FromRustError.ways == 2
    assert copied is not error
    assert (type(copied), copied.args, copied.secret) == (FromRustError, (5,), "x")
    assert copied.note == "more"
    assert copied.__cause__ is error.__cause__
    assert traceback.extract_tb(copied.__traceback__) == traceback.extract_tb(error.__traceback__)


def test_pydantics_errors_reach_every_caller_with_all_that_they_say() -> None:
    """They are made in Rust, and every FastAPI application has them."""
    error = raised(of(Person, name="a", age="old"))
    given_on = copy_exception(error)
    assert type(given_on) is pydantic.ValidationError
    assert (str(given_on), given_on.errors()) == (str(error), error.errors())


def test_read_only_fields_that_args_no_longer_tell_are_not_lost() -> None:
    """Made in Rust again: somebody added to its args, so that they would make another error."""
    error = PydanticCustomError("kind", "text {x}", {"x": 1})
    copied = copy_exception(error)
    assert copied is not error
    assert (copied.type, copied.context, copied.args) == (error.type, error.context, error.args)
    error.args = ("other", "text")
    assert copy_exception(error).type == "kind"
    assert copy_exception(error).args == ("other", "text")


@given(
    st.sampled_from([ValueError, KeyError, OSError, LookupError, ImportError, ItemError]),
    st.lists(st.integers() | st.text(max_size=3), max_size=1),
    st.lists(st.text(max_size=3), max_size=2),
    st.dictionaries(st.sampled_from("abc"), st.integers()),
)
def test_whatever_stands_in_an_exception_stands_in_its_copy(
    kind: Any, args: list[Any], notes: list[str], fields: dict[str, int]
) -> None:
    """Arguments, notes and fields in any mixture."""
    error = kind(*args)
    for note in notes:
        error.add_note(note)
    for key, value in fields.items():
        setattr(error, key, value)
    copied = copy_exception(error)
    assert copied is not error
    assert copied.args == error.args
    assert vars(copied) == vars(error)
    assert vars(copied) is not vars(error)


def test_a_failed_batch_keeps_its_report_in_every_copy() -> None:
    """It is a group with one field more."""
    error = batch_failed()
    copied = copy_exception(error)
    assert type(copied) is BatchFailed
    assert copied.report is error.report
    assert copied.exceptions[0] is not error.exceptions[0]
