"""Tests of the contract: the public names alone, so that they hold whatever the rooms become."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for the fuzzer's own modules
