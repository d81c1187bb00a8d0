"""Bytes and back, typed, checked, and never pickle."""

from __future__ import annotations

import copy
import pickle

import msgspec
import pytest
from durable_support import Order
from hypothesis import given
from hypothesis import strategies as st

from microbatch.durable import errors
from microbatch.durable.codec import (
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
    assert message.startswith("stored bytes no longer decode as Order: ")


@pytest.mark.parametrize("value", [1j, 2**65, "\ud800", object()])
def test_what_has_no_messagepack_form_is_refused(value):
    """Before anything is stored."""
    with pytest.raises(TypeError, match=f"cannot encode {type(value).__name__} for the disk"):
        Codec(object, "item_type").encode(value)


def test_a_nesting_bomb_is_refused_on_both_sides():
    """It ends in RecursionError, which is no ValueError."""
    bomb = []
    for _ in range(100_000):
        bomb = [bomb]
    with pytest.raises(TypeError, match="cannot encode list"):
        Codec(list, "item_type").encode(bomb)
    data = b"\x91" * 100_000 + b"\x90"
    with pytest.raises(ValueError, match="no longer decode"):
        Codec(list, "item_type").decode(data)
    assert decode_roughly(data) == data
    while bomb:
        bomb = bomb.pop()


def test_a_type_that_msgspec_cannot_decode_is_refused_at_once():
    """A union of structs needs tags: found when the queue is made, not with the first item."""

    class Other(msgspec.Struct):
        x: int

    with pytest.raises(TypeError, match="item_type must be a type that msgspec can decode"):
        Codec(Order | Other, "item_type")


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError("no")


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


def test_an_error_that_cannot_be_shown_is_kept_all_the_same():
    """A broken __str__ must not lose the dead letter."""
    failed = decode_error(encode_error(Unprintable()), 1, 1)
    assert (failed.kind, failed.message) == (
        "Unprintable",
        "(its text cannot be shown: RuntimeError)",
    )
    assert decode_error(encode_reason("ProcessDied", "gone"), 1, 1).message == "gone"
    assert decode_error(b"\xc1", 1, 1).kind == "UnknownError"
    assert decode_error(None, 1, 1).kind == "UnknownError"


@pytest.mark.parametrize(
    "error",
    [
        errors.QueueFull("q", "max_depth", 3),
        errors.QueueUnavailable("p", "r"),
        errors.QueueCorrupt("p", "r"),
        errors.SchemaTooNew("p", 2, 1),
        errors.IdempotencyConflict("k", 1),
        errors.ItemFailed(1, "ValueError", "m", 2, "t"),
        errors.ItemCancelled(1),
        errors.UnknownTicket(1, "q"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_every_error_can_be_copied_and_pickled(error):
    """They travel between processes, and each caller gets its own."""
    for other in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(other) is type(error)
        assert vars(other) == vars(error)
        assert str(other) == str(error)
