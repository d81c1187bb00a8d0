"""retry: which failed items go again, and when."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microbatch import Backoff, HandlerTimeout, ItemError, RateLimited, Retry, Skipped

seconds = st.floats(0, 1e6)
shares = st.floats(0, 1)
attempts = st.integers(1, 5000)


@given(
    st.builds(Backoff, initial=seconds, factor=st.floats(1, 100), maximum=seconds, jitter=shares),
    attempts,
    shares,
)
def test_a_delay_is_never_negative_nor_over_the_maximum(
    backoff: Backoff, attempt: int, chance: float
) -> None:
    """However many attempts there were: 2.0 ** 5000 is more than a float can hold."""
    assert 0 <= backoff.delay(attempt, chance) <= backoff.maximum
    assert backoff.delay(attempt, 0.0) <= backoff.delay(attempt + 1, 0.0)


@given(st.integers(1, 20), shares, shares)
def test_a_delay_grows_exponentially_and_jitter_takes_its_share(
    attempt: int, jitter: float, chance: float
) -> None:
    """initial * factor ** (attempt - 1), less up to the jitter's share of it."""
    backoff = Backoff(initial=0.5, factor=3.0, maximum=1e9, jitter=jitter)
    full = min(0.5 * 3.0 ** (attempt - 1), 1e9)
    assert backoff.delay(attempt) == full
    assert backoff.delay(attempt, chance) == pytest.approx(full * (1 - jitter * chance))


def test_the_default_backoff_is_one_second_doubling_to_a_minute_with_full_jitter() -> None:
    """The defaults are part of the contract."""
    backoff = Backoff()
    assert [backoff.delay(attempt) for attempt in (1, 2, 3, 6, 7, 8)] == [1, 2, 4, 32, 60, 60]
    assert backoff.delay(3, 1.0) == 0
    assert backoff.delay(3, 0.25) == 3
    assert Backoff(jitter=0).delay(3, 1.0) == 4


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"initial": -0.1}, ValueError, "initial must be at least 0, got -0.1"),
        ({"initial": "1"}, TypeError, "initial must be a number, got '1'"),
        ({"factor": 0.9}, ValueError, "factor must be at least 1, got 0.9"),
        ({"factor": None}, TypeError, "factor must be a number, got None"),
        ({"maximum": -1}, ValueError, "maximum must be at least 0, got -1"),
        ({"maximum": math.inf}, ValueError, "maximum must be finite, got inf"),
        ({"jitter": -0.1}, ValueError, "jitter must be at least 0, got -0.1"),
        ({"jitter": 1.1}, ValueError, "jitter must be at most 1, got 1.1"),
        ({"jitter": True}, TypeError, "jitter must be a number, got True"),
    ],
)
def test_a_backoff_refuses_by_name(
    settings: dict[str, Any], kind: type[Exception], message: str
) -> None:
    """Name, rule, value."""
    with pytest.raises(kind, match=f"^{re.escape(message)}$"):
        Backoff(**settings)


def test_the_borders_of_a_backoff_are_allowed() -> None:
    """No wait at all is a setting too."""
    backoff = Backoff(initial=0, factor=1, maximum=0, jitter=0)
    assert backoff.delay(1) == backoff.delay(9) == 0
    assert Backoff(jitter=1).jitter == 1


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"on": ()}, ValueError, "on must name at least one exception class, got ()"),
        (
            {"on": 5},
            TypeError,
            "on must be an exception class, a tuple of them or a predicate, got 5",
        ),
        ({"on": int}, TypeError, "on must name subclasses of Exception, got <class 'int'>"),
        (
            {"on": (OSError, KeyboardInterrupt)},
            TypeError,
            "on must name subclasses of Exception, got <class 'KeyboardInterrupt'>",
        ),
        ({"on": (OSError, "x")}, TypeError, "on must name subclasses of Exception, got 'x'"),
        ({"on": OSError, "attempts": 0}, ValueError, "attempts must be at least 1, got 0"),
        ({"on": OSError, "attempts": 2.0}, TypeError, "attempts must be an int, got 2.0"),
        ({"on": OSError, "backoff": 5}, TypeError, "backoff must be a Backoff, got 5"),
    ],
)
def test_a_retry_refuses_by_name(
    settings: dict[str, Any], kind: type[Exception], message: str
) -> None:
    """Name, rule, value."""
    with pytest.raises(kind, match=f"^{re.escape(message)}$"):
        Retry(**settings)


def test_on_is_required() -> None:
    """No default fits: drivers' transient errors share no base class."""
    with pytest.raises(TypeError, match="on"):
        Retry()  # type: ignore[call-arg]
    assert (Retry(on=OSError).attempts, Retry(on=OSError).backoff) == (3, Backoff())
    assert Retry(on=OSError, attempts=1).delay(OSError(), 1) is None


@pytest.mark.parametrize(
    ("on", "error", "wanted"),
    [
        (OSError, ConnectionError(), True),
        (OSError, KeyError(), False),
        ((KeyError, OSError), ConnectionError(), True),
        ((KeyError, OSError), ValueError(), False),
        (lambda error: "again" in str(error), ValueError("try again"), True),
        (lambda error: "again" in str(error), ValueError("never"), False),
        (lambda _: "yes", ValueError(), True),
        (lambda _: None, ValueError(), False),
        # an item error decides for itself, whatever `on` says
        (OSError, ItemError(retryable=True), True),
        (ItemError, ItemError(retryable=False), False),
        (ItemError, ItemError(), True),
        (OSError, ItemError(), False),
        (Exception, Skipped(), False),
        (lambda _: True, ItemError(retryable=False), False),
        # a timed-out handler may have done its work: only by name
        (HandlerTimeout, HandlerTimeout("n", 1), True),
        ((OSError, HandlerTimeout), HandlerTimeout("n", 1), True),
        (TimeoutError, HandlerTimeout("n", 1), False),
        (Exception, HandlerTimeout("n", 1), False),
        ((Exception, TimeoutError), HandlerTimeout("n", 1), False),
        (lambda error: isinstance(error, TimeoutError), HandlerTimeout("n", 1), True),
        (HandlerTimeout, TimeoutError(), False),
    ],
)
def test_which_errors_are_retryable(on: Any, error: Exception, wanted: bool) -> None:
    """The rule, case by case."""
    assert Retry(on=on).wants(error) is wanted


def test_what_a_predicate_raises_comes_through() -> None:
    """The batcher logs it; hiding it here would make a broken predicate look like a no."""

    def broken(error: Exception) -> bool:
        raise ZeroDivisionError(error)

    with pytest.raises(ZeroDivisionError):
        Retry(on=broken).wants(ValueError())


@given(st.integers(1, 20), st.integers(1, 20))
def test_attempts_count_the_first_one(allowed: int, made: int) -> None:
    """attempts=3 is one call and two more."""
    retry = Retry(on=OSError, attempts=allowed, backoff=Backoff(jitter=0))
    delay = retry.delay(OSError(), made)
    assert (delay is None) == (made >= allowed)
    if delay is not None:
        assert delay == retry.backoff.delay(made)
    assert retry.delay(KeyError(), made) is None


@pytest.mark.parametrize(
    ("after", "delay"),
    [
        (5, 5.0),
        (0.25, 0.25),
        (0, 0.0),
        (-3, 0.0),
        (1000, 60.0),
        (10**400, 60.0),
        (-(10**400), 0.0),
        (math.inf, 1.5),
        (math.nan, 1.5),
        (True, 1.5),
        ("5", 1.5),
        (None, 1.5),
    ],
)
def test_a_finite_retry_after_takes_the_delays_place(after: Any, delay: float) -> None:
    """The backend knows best, up to the maximum; nonsense is not followed."""
    error = OSError()
    error.retry_after = after  # type: ignore[attr-defined]
    retried = Retry(on=OSError).delay(error, 2, lambda: 0.25)
    assert retried == delay
    assert type(retried) is float
    assert Retry(on=OSError).delay(ItemError(retryable=True, retry_after=7), 1) == 7


@given(st.integers(1, 2))
def test_without_a_chance_of_its_own_a_delay_is_random(made: int) -> None:
    """Full jitter by default, from the random module."""
    delay = Retry(on=OSError).delay(OSError(), made)
    assert delay is not None
    assert 0 < delay <= 2 ** (made - 1)


@pytest.mark.parametrize("refusals", [1, 2, 5, 10_000])
def test_a_hold_lasts_as_long_as_the_backend_says_or_the_back_off(refusals: int) -> None:
    """The refusals in a row stand in the attempts' place; attempts and ``on`` have no say."""
    retry = Retry(on=OSError, attempts=1, backoff=Backoff(initial=1.5, jitter=0.5))
    assert (
        retry.hold(RateLimited(), refusals, lambda: 1.0)
        == min(1.5 * 2 ** min(refusals - 1, 99), 60) * 0.5
    )
    assert retry.hold(RateLimited(retry_after=7), refusals, lambda: 1.0) == 7
    assert retry.hold(RateLimited(retry_after=700), refusals, lambda: 1.0) == 60
    assert retry.hold(RateLimited(retry_after=math.nan), refusals, lambda: 0.0) > 0
    assert 0 <= retry.hold(RateLimited(), refusals) <= 60


def test_holds_are_bounded_by_a_whole_number() -> None:
    """Ten by default, and one is none."""
    assert Retry(on=OSError).holds == 10
    assert Retry(on=OSError, holds=1).holds == 1
    with pytest.raises(ValueError, match="holds must be at least 1, got 0"):
        Retry(on=OSError, holds=0)
    with pytest.raises(TypeError, match=r"holds must be an int, got 1\.5"):
        Retry(on=OSError, holds=1.5)  # type: ignore[arg-type]
