"""Tests of rows in files and of streams of items."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for streaming_support.py
