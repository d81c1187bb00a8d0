"""The examples of the durable mode: they kill, roll back and refuse, and what they print must be so every time."""

from __future__ import annotations

import os

import pytest
from examples_support import output_of

pytestmark = pytest.mark.slow

PRINTS = {
    "durable_orders.py": [
        "killed the worker in the middle of its work",
        "killed the worker in the middle of its work",
        "every order handled exactly once: True",
        "stock is never negative: True",
        "orders that found no stock: True",
    ],
    "outbox.py": [
        "waiting while the server is down: 90",
        "balance: 910",
        "every committed event arrived: True",
        "in far fewer requests than events: True",
    ],
}


@pytest.mark.skipif(os.name != "posix", reason="kills processes")
@pytest.mark.parametrize("name", PRINTS)
def test_an_example_prints_what_it_claims(name, tmp_path):
    """Exactly once for every order, and no event lost or made up."""
    assert output_of(name, folder=tmp_path).splitlines() == PRINTS[name]
