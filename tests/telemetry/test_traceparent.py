"""A span's identity in a durable row: W3C Trace Context, read without trust in what stands there."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.trace import SpanContext, TraceFlags, TraceState, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from microbatch._telemetry.traceparent import decode, encode

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GOOD = f"00-{TRACE}-{SPAN}-01".encode()


def context(state: str = "", flags: int = 1) -> SpanContext:
    return SpanContext(
        int(TRACE, 16),
        int(SPAN, 16),
        is_remote=False,
        trace_flags=TraceFlags(flags),
        trace_state=TraceState.from_header([state]),
    )


def test_an_identity_is_what_the_standard_says() -> None:
    """Other programs read it too."""
    assert encode(context()) == GOOD
    assert encode(context("vendor=1,other=2")) == GOOD + b"\nvendor=1,other=2"


def test_an_invalid_identity_is_stored_as_nothing() -> None:
    """No bytes and no time where nobody traces."""
    assert encode(SpanContext(0, 0, is_remote=False)) is None


def test_a_state_that_is_too_long_is_left_out() -> None:
    """512 characters is what everybody has to carry; a row is no place for more."""
    state = ",".join(f"vendor{i}={'x' * 40}" for i in range(20))
    assert encode(context(state)) == GOOD


@given(
    st.integers(1, 2**128 - 1),
    st.integers(1, 2**64 - 1),
    st.integers(0, 255),
    st.sampled_from(["", "a=1", "a=1,b=2"]),
)
def test_what_was_stored_comes_back(trace: int, span: int, flags: int, state: str) -> None:
    """In another process, so as a remote one."""
    stored = encode(
        SpanContext(
            trace,
            span,
            is_remote=False,
            trace_flags=TraceFlags(flags),
            trace_state=TraceState.from_header([state]) if state else None,
        )
    )
    assert stored is not None
    found = decode(stored)
    assert found is not None
    assert (found.trace_id, found.span_id, found.trace_flags) == (trace, span, flags)
    assert found.trace_state.to_header() == state
    assert found.is_remote


@pytest.mark.parametrize(
    "stored",
    [
        b"",
        b"nonsense",
        b"\xff\xfe\x00",
        GOOD[:-1],
        GOOD + b"0",
        GOOD.upper(),
        GOOD.replace(b"-", b"_"),
        f"00-{'0' * 32}-{SPAN}-01".encode(),
        f"00-{TRACE}-{'0' * 16}-01".encode(),
        f"ff-{TRACE}-{SPAN}-01".encode(),
        b"00-" + b"9" * 10_000,
        GOOD.decode(),
        17,
        None,
    ],
)
def test_what_is_no_identity_is_none_and_never_an_error(stored: Any) -> None:
    """A bad column must not cost a batch."""
    assert decode(stored) is None


def test_a_later_version_is_read_by_the_propagator() -> None:
    """It may have more fields."""
    found = decode(f"01-{TRACE}-{SPAN}-01-more".encode())
    assert found is not None
    assert (found.trace_id, found.span_id) == (int(TRACE, 16), int(SPAN, 16))


@given(st.binary(max_size=80))
def test_any_bytes_are_read_without_an_error(stored: bytes) -> None:
    """Whatever a row holds."""
    decode(stored)


@given(st.from_regex(r"\A[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}\Z"))
def test_slicing_agrees_with_the_propagator(text: str) -> None:
    """The short way must not read anything else than the long one."""
    extracted = TraceContextTextMapPropagator().extract({"traceparent": text})
    expected = get_current_span(extracted).get_span_context()
    found = decode(text.encode())
    if expected.is_valid:
        assert found is not None
        assert (found.trace_id, found.span_id) == (expected.trace_id, expected.span_id)
        assert found.trace_flags == expected.trace_flags
    else:
        assert found is None
