"""Tests of what stands around the package: pages, examples, benchmarks, types, what is published."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for examples_support.py, and pages in common
