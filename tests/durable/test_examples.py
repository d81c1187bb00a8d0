"""The examples of the durable mode: they kill, roll back and refuse, and what they print must be so every time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
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
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name)],
        cwd=tmp_path,
        env=environment | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == PRINTS[name]
