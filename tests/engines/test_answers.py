"""What an outcome means for its message."""

from __future__ import annotations

import pytest

from microbatch import Backoff, BatcherClosed, BatcherFull, ItemError, RateLimited, Retry, Skipped
from microbatch.engines._answers import answer_to, needs_count

RETRY = Retry(on=OSError, attempts=3, backoff=Backoff(initial=2.0, jitter=0.0))


@pytest.mark.parametrize(
    ("error", "retry", "deliveries", "word", "delay"),
    [
        (None, None, 1, "ack", None),
        (Skipped("twice"), RETRY, 1, "ack", None),
        (OSError(), RETRY, 1, "nack", 2.0),
        (OSError(), RETRY, 2, "nack", 4.0),
        (OSError(), RETRY, 3, "reject", None),
        (OSError(), RETRY, None, "reject", None),
        (ValueError(), RETRY, 1, "reject", None),
        (ItemError("later", retryable=True, retry_after=7), RETRY, 1, "nack", 7.0),
        (ItemError("no", retryable=False), Retry(on=Exception), 1, "reject", None),
        (OSError(), None, 1, "reject", None),
        (RateLimited(retry_after=3), None, 1, "nack", 3.0),
        (RateLimited(), None, 1, "nack", None),
        (RateLimited(retry_after=1e6), None, 1, "nack", 60.0),
        (BatcherClosed("b"), RETRY, 99, "nack", None),
        (BatcherClosed("b", started=True), None, 1, "nack", None),
        (BatcherFull("b", "max_pending", 1), RETRY, 99, "nack", 1.0),
    ],
)
def test_an_outcome_becomes_an_acknowledgement(error, retry, deliveries, word, delay):
    """A permanent error comes never again, one that is retryable so often, what was refused always."""
    answer = answer_to(error, retry, deliveries)
    assert (answer.word, answer.delay) == (word, delay)
    assert answer.error is (None if word == "ack" else error)


def test_where_nobody_counts_no_error_comes_again_but_what_was_refused_does():
    """Else it would come for ever."""
    assert answer_to(RateLimited(), None, 1, comes_again=False).word == "reject"
    assert answer_to(BatcherClosed("b"), None, 1, comes_again=False).word == "nack"


def test_a_broker_is_asked_how_often_a_message_came_only_where_it_matters():
    """Redis is asked by a request of its own."""
    assert needs_count(OSError())
    for error in (None, Skipped(), BatcherClosed("b"), BatcherFull("b", "max_pending", 1)):
        assert not needs_count(error)


def test_what_a_predicate_raises_comes_through():
    """It is a mistake in the program: nobody may take it for an answer."""

    def breaks(error):
        raise LookupError

    with pytest.raises(LookupError):
        answer_to(OSError(), Retry(on=breaks), 1)
