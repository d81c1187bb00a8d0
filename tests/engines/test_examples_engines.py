"""The examples that need a message broker."""

from __future__ import annotations

import re

import pytest
from examples_support import output_of

pytestmark = pytest.mark.engines


def test_every_event_becomes_a_row_although_a_worker_is_killed(nats_url, postgres_url, tmp_path):
    """What came twice is seen in the rows, and there are fewer calls than messages only with a batcher."""
    printed = output_of("engine_inserts.py", nats_url, postgres_url, "1500", folder=tmp_path)
    found = re.findall(
        r"([\d,]+) rows, +([\d,]+) calls, +(\d+) duplicates absorbed, +[\d.]+ s, +[\d,]+ rows/s$",
        printed,
        re.MULTILINE,
    )
    (rows, calls, _), (few, each, twice) = [
        [int(word.replace(",", "")) for word in line] for line in found
    ]
    assert rows == 1_500
    assert calls < rows
    assert (few, each) == (150, 150 + twice)
