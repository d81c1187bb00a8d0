"""Why a batch left."""

from __future__ import annotations

from typing import Literal

Reason = Literal["size", "weight", "wait", "flush", "idle", "close"]
