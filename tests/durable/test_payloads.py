"""Payloads of whatever type: bytes and back, equal or not, and never more than one item's fault."""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime, tzinfo
from typing import Annotated, Any

import msgspec
import pytest
from durable_support import Order
from hypothesis import given
from hypothesis import strategies as st

from microbatch.durable._file.clock import Clock
from microbatch.durable._file.codec import (
    Codec,
    decode_error,
    decode_roughly,
    encode_error,
    encode_reason,
)


@given(st.integers(-(2**63), 2**64 - 1), st.text(st.characters(codec="utf-8")))
def test_what_is_encoded_reads_back_the_same(number, name):
    """For every value of the type."""
    codec = Codec(Order, "item_type")
    order = Order(number, name)
    payload, value = codec.encode(order)
    assert value == order
    assert codec.decode(payload) == order
    assert codec.same(payload, codec.encode(value)[0])


@given(st.binary(max_size=100))
def test_garbage_is_a_value_error(data):
    """Whatever msgspec says about it."""
    try:
        value = Codec(Order, "item_type").decode(data)
    except ValueError as error:
        message = str(error)
    else:
        assert isinstance(value, Order)
        return
    begins = "stored bytes no longer decode as Order: " if data else "its payload is missing: "
    assert message.startswith(begins)
    assert decode_error(data, 1, 1).id == 1


@pytest.mark.parametrize("value", [1j, 2**65, "\ud800", object()])
def test_what_has_no_messagepack_form_is_refused(value):
    """Before anything is stored."""
    with pytest.raises(TypeError, match=f"cannot encode {type(value).__name__} for the disk"):
        Codec(object, "item_type").encode(value)


def test_a_nesting_bomb_is_refused_on_both_sides():
    """It ends in RecursionError, which is no ValueError."""
    bomb: list[Any] = []
    for _ in range(100_000):
        bomb = [bomb]
    with pytest.raises(TypeError, match="cannot encode list"):
        Codec(list, "item_type").encode(bomb)
    data = b"\x91" * 100_000 + b"\x90"
    with pytest.raises(ValueError, match="no longer decode"):
        Codec(list, "item_type").decode(data)
    assert decode_roughly(data) == data
    assert not Codec(list, "item_type").same(data, data + b"\x90")
    while bomb:
        bomb = bomb.pop()


def test_a_type_that_msgspec_cannot_decode_is_refused_at_once():
    """A union of structs needs tags: found when the queue is made, not with the first item."""

    class Other(msgspec.Struct):
        x: int

    with pytest.raises(TypeError, match="item_type must be a type that msgspec can decode"):
        Codec(Order | Other, "item_type")


class OddError(Exception):
    def __str__(self):
        raise RuntimeError("no")


class Odd(msgspec.Struct):
    """Raises what it is told to, when it is made by msgspec."""

    name: str

    raises = {
        "key": KeyError("x"),
        "odd": OddError(),
        "stop": StopIteration(),
        "deep": RecursionError(),
    }

    def __post_init__(self):
        if self.name in self.raises:
            raise self.raises[self.name]


@pytest.mark.parametrize("name", Odd.raises)
def test_whatever_a_type_raises_is_one_items_fault(name):
    """A KeyError that came out of here stranded the items beside it."""
    codec = Codec(Odd, "item_type")
    item = Odd("fine")
    item.name = name
    with pytest.raises(ValueError, match="Odd does not read back as Odd: ") as refused:
        codec.encode(item)
    payload = msgspec.msgpack.encode(item)
    with pytest.raises(ValueError, match="stored bytes no longer decode as Odd: ") as caught:
        codec.decode(payload)
    assert refused.value.__cause__ is caught.value.__cause__ is Odd.raises[name]
    assert not codec.same(payload, msgspec.msgpack.encode(Odd("fine")))


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_must_end_the_program_passes(error):
    """Ctrl-C during an encode is nobody's bad item."""

    class Interrupted(msgspec.Struct):
        x: int = 0

        def __post_init__(self):
            raise error

        def __eq__(self, other):
            raise error

        __hash__ = None

    codec = Codec(Interrupted, "item_type")
    for call in (codec.decode, lambda data: codec.same(data, data + b" ")):
        with pytest.raises(error):
            call(b"\x80")


def test_a_result_with_an_unset_field_is_that_items_error():
    """msgspec raises AttributeError for it."""

    class Result(msgspec.Struct):
        total: int

    result = Result(1)
    del result.total
    with pytest.raises(TypeError, match=r"cannot encode Result for the disk: .*unset") as caught:
        Codec(Result, "result_type").encode(result)
    assert isinstance(caught.value.__cause__, AttributeError)


def test_what_a_type_raises_while_it_is_encoded_is_refused():
    """A time zone of the user's is asked for its offset."""

    class Nowhere(tzinfo):
        def utcoffset(self, when):
            raise KeyError("nowhere")

    with pytest.raises(TypeError, match="cannot encode datetime for the disk: 'nowhere'"):
        Codec(datetime, "result_type").encode(datetime(2026, 1, 1, tzinfo=Nowhere()))


class Versioned(msgspec.Struct):
    number: int
    unit: str = "g"


class Equal(msgspec.Struct, eq=False):
    """Has no ``__eq__`` of its own."""

    tags: set[str]


class Unequal(msgspec.Struct):
    number: int
    note: str = ""

    def __eq__(self, other):
        raise KeyError("no")

    __hash__ = None


NAN = float("nan")


@pytest.mark.parametrize(
    ("value_type", "first", "second", "same"),
    [
        (dict[str, int], {"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
        (dict[str, int], {"a": 1}, {"a": 2}, False),
        (dict[int, int], {1: 1, 2: 2}, {2: 2, 1: 1}, True),
        (float, 1, 1.0, True),
        (Any, 1, 2, False),
        (str, "1", "2", False),
        (Versioned, {"number": 1}, {"number": 1, "unit": "g"}, True),
        (Versioned, {"number": 1}, {"number": 1, "unit": "kg"}, False),
        (Versioned, {"number": 1, "gone": 3}, {"number": 1}, True),
        (Equal, {"tags": ["a", "b"]}, {"tags": ["b", "a"]}, True),
        (Equal, {"tags": ["a", "b"]}, {"tags": ["b", "c"]}, False),
        (Unequal, {"number": 1}, {"number": 1}, True),
        (Unequal, {"number": 1}, {"number": 2}, False),
        (float, NAN, NAN, True),
        (dict[str, float], {"a": NAN, "b": 1.0}, {"b": 1.0, "a": NAN}, True),
        (Annotated[int, msgspec.Meta(ge=0)], -1, -2, False),
        (list[int], [1, 2], [2, 1], False),
    ],
)
def test_payloads_are_the_same_if_they_mean_the_same(value_type, first, second, same):
    """Else a repeated key is a conflict for nothing: another hash seed, another order, a new default."""
    codec = Codec(value_type, "item_type")
    one, other = msgspec.msgpack.encode(first), msgspec.msgpack.encode(second)
    assert codec.same(one, other) is same
    assert codec.same(other, one) is same


def test_a_comparison_that_is_no_answer_is_no_equality():
    """Arrays compare to arrays, whose truth is an error."""

    class Array(msgspec.Struct):
        number: int

        def __eq__(self, other):
            return self

        def __bool__(self):
            raise ValueError("ambiguous")

        __hash__ = None

    one, other = (msgspec.msgpack.encode({"number": number}) for number in (1, 2))
    assert not Codec(Array, "item_type").same(one, other)


def test_a_set_is_the_same_under_another_hash_seed():
    """Every process has one of its own."""
    program = (
        "import sys, msgspec\n"
        "sys.stdout.buffer.write(msgspec.msgpack.encode({f'tag {n}' for n in range(50)}))\n"
    )
    payloads = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert payloads[0] != payloads[1]
    assert Codec(set[str], "item_type").same(*payloads)
    assert not Codec(set[str], "item_type").same(payloads[0], msgspec.msgpack.encode({"tag 1"}))


def test_errors_are_kept_within_bounds():
    """A million dead letters must fit."""
    try:
        raise ValueError("\ud800" + "x" * 10_000)
    except ValueError as error:
        failed = decode_error(encode_error(error), 7, 3)
    assert (failed.id, failed.attempts, failed.kind) == (7, 3, "ValueError")
    assert failed.message.startswith("\\ud800xxx")
    assert len(failed.message) < 2_010
    assert len(failed.traceback) <= 8_010
    assert str(failed).startswith("item 7 failed after 3 attempts: ValueError: ")


class Untraceable(Exception):
    @property
    def __cause__(self):
        raise RuntimeError("no")


def test_an_error_that_cannot_be_shown_is_kept_all_the_same():
    """A broken class must not lose the dead letter."""
    failed = decode_error(encode_error(OddError()), 1, 1)
    assert (failed.kind, failed.message) == (
        "OddError",
        "(its text cannot be shown: RuntimeError)",
    )
    try:
        raise Untraceable("text")
    except Untraceable as error:
        failed = decode_error(encode_error(error), 1, 1)
    assert (failed.message, failed.traceback) == (
        "text",
        "(its traceback cannot be shown: RuntimeError)",
    )
    assert decode_error(encode_reason("ProcessDied", "gone"), 1, 1).message == "gone"
    assert decode_error(b"\xc1", 1, 1).kind == "UnknownError"
    assert decode_error(None, 1, 1).kind == "UnknownError"


def test_the_clock_follows_the_wall_clock_both_ways():
    """One wrong reading must not become the time of the process for good."""
    readings = iter([100.0, 3_600_000.0, 101.0])
    clock = Clock(lambda: next(readings))
    assert [clock.now(), clock.now(), clock.now()] == [100.0, 3_600_000.0, 101.0]


def test_the_clock_is_the_systems(monkeypatch):
    """Looked up at each reading: whoever replaces it, for a test, replaces it here too."""
    clock = Clock()
    monkeypatch.setattr("time.time", lambda: 7.0)
    assert clock.now() == 7.0
