"""checks: every setting is refused by name, with the rule and with what came."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microbatch._pure import checks


def refuses(kind: type[Exception], message: str, check: Any, *args: Any, **limits: Any) -> None:
    with pytest.raises(kind, match=f"^{re.escape(message)}$"):
        check(*args, **limits)


@given(st.integers(), st.integers())
def test_a_whole_number_is_taken_from_its_minimum_on(value: int, minimum: int) -> None:
    """One off at the border is the classic mistake of a check."""
    if value >= minimum:
        assert checks.whole_number("size", value, minimum) is value
    else:
        message = f"size must be at least {minimum}, got {value}"
        refuses(ValueError, message, checks.whole_number, "size", value, minimum)


@pytest.mark.parametrize("value", [True, False, 1.0, "1", None, Fraction(1)])
def test_what_is_no_int_is_no_whole_number(value: Any) -> None:
    """True is an int to Python, and never what somebody meant by a size."""
    refuses(TypeError, f"size must be an int, got {value!r}", checks.whole_number, "size", value, 0)


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-10, 10))
def test_a_number_stays_within_its_borders(value: float) -> None:
    """`above` shuts its border out, `minimum` lets it in."""
    assert checks.number("wait", value) is value
    assert checks.number("wait", value, minimum=value) is value
    refuses(
        ValueError,
        f"wait must be greater than {value}, got {value}",
        checks.number,
        "wait",
        value,
        above=value,
    )
    if value > 0:
        assert checks.number("wait", value, above=0) is value
        assert checks.number("wait", value, above=0, minimum=0) is value
    if value < 0:
        message = f"wait must be at least 0, got {value}"
        refuses(ValueError, message, checks.number, "wait", value, minimum=0)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_a_number_is_finite(value: float) -> None:
    """A wait of nan or inf would never end, and compares in ways that no check expects."""
    refuses(ValueError, f"wait must be finite, got {value}", checks.number, "wait", value)


@pytest.mark.parametrize("value", [True, False, "1", None, 1j, [1]])
def test_what_is_no_int_or_float_is_no_number(value: Any) -> None:
    """Bools and strings are slips, not seconds."""
    refuses(TypeError, f"wait must be a number, got {value!r}", checks.number, "wait", value)


@pytest.mark.parametrize("value", [True, False])
def test_a_flag_is_a_bool(value: bool) -> None:
    """Both values go through as they are."""
    assert checks.flag("eager", value) is value


@pytest.mark.parametrize("value", [0, 1, None, "yes"])
def test_what_is_no_bool_is_no_flag(value: Any) -> None:
    """The string "false" would count as true."""
    refuses(TypeError, f"eager must be True or False, got {value!r}", checks.flag, "eager", value)


def test_a_function_is_anything_that_can_be_called_or_none() -> None:
    """Classes and built-in functions are fine callbacks."""
    for value in (None, len, str, lambda item: item):
        assert checks.function("weigh", value) is value
    refuses(TypeError, "weigh must be a function or None, got 5", checks.function, "weigh", 5)
    refuses(TypeError, "weigh must be a function or None, got 0", checks.function, "weigh", 0)
