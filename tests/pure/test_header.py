"""How long a Retry-After header asks to wait."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microbatch import retry_after
from microbatch._pure.header import seconds_until

NOW = datetime(1994, 11, 6, 8, 49, 7, tzinfo=UTC)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("0", 0.0),
        ("120", 120.0),
        (" 7 ", 7.0),
        ("0.5", 0.5),
        ("3.", 3.0),
        ("-3", 0.0),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 30.0),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 30.0),
        ("Sun Nov  6 08:49:37 1994", 30.0),
        ("Sun Nov 13 08:49:07 1994", 7 * 86_400.0),
        ("Sun, 06 Nov 1994 08:49:07 GMT", 0.0),
        ("Sun, 06 Nov 1993 08:49:37 GMT", 0.0),
    ],
)
def test_both_forms_are_read_and_never_below_0(header: str, seconds: float) -> None:
    """Seconds, and the date of today with its two older ways of writing: RFC 9110, 10.2.3 and 5.6.7."""
    assert seconds_until(header, NOW) == seconds


@pytest.mark.parametrize(
    "header",
    [
        "", "soon", "nan", "inf", "1e3", "1,5", "5 s", "\u0665", "--5", "1994-11-06T08:49:37Z",
        "Sun, 06 Nov 1994 08:49:37", "Sun, 6 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:49:37 +0100",
        "Sun, 30 Feb 1994 08:49:37 GMT", "Sun, 06 Nov 1994 28:49:37 GMT", "Sun, 06 Xyz 1994 08:49:37 GMT",
    ],
)  # fmt: skip
def test_what_is_of_neither_form_says_nothing(header: str) -> None:
    """The back-off knows better than a guess."""
    assert seconds_until(header, NOW) is None


@given(st.text() | st.from_regex(r"[-0-9.]{1,20}") | st.just("9" * 5_000))
def test_whatever_a_server_sends_is_borne(header: str) -> None:
    """A finite number of seconds, or nothing: it is read in the middle of an error's handling."""
    seconds = seconds_until(header, NOW)
    assert seconds is None or 0 <= seconds < float("inf")


def test_the_public_name_knows_what_time_it_is() -> None:
    """It is what a handler calls with a response's header, which may be missing."""
    assert retry_after(None) is None
    assert retry_after("1.5") == 1.5
    date = datetime.now(UTC) + timedelta(hours=1)
    seconds = retry_after(date.strftime("%a, %d %b %Y %H:%M:%S GMT"))
    assert seconds is not None
    assert 0 < seconds <= 3600
    assert retry_after("Fri, 31 Dec 1999 23:59:59 GMT") == 0.0
    with pytest.raises(TypeError, match="header must be a str or None, got 5"):
        retry_after(5)  # type: ignore[arg-type]
