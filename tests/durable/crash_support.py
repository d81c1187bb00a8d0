"""A crash harness as a program of its own, and what it must not have counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import crash as plain

if TYPE_CHECKING:
    from types import ModuleType


def crash(folder: Path, rounds: int, seed: int, harness: ModuleType = plain) -> dict[str, int]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    program = Path(str(harness.__file__))
    result = subprocess.run(
        [sys.executable, str(program), str(folder), str(rounds), str(seed)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=environment,
    )
    counts = json.loads(result.stdout)
    none = dict.fromkeys(harness.MUST_BE_NONE, 0)
    assert {name: counts[name] for name in none} == none, counts
    return counts
