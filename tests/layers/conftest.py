"""Tests of the layers, each by itself and under a batcher; and of the processes of ``in_process``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(
    0, str(Path(__file__).parent)
)  # for layers_support.py, and layers_handlers.py, which workers import too
