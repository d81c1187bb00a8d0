"""How a key stands to which a request comes: shared by whatever remembers keys."""

from __future__ import annotations

from typing import NamedTuple


class Standing(NamedTuple):
    """What is known of a key when a request comes with it.

    Attributes:
        token: The right to run what came, and to answer for it; None where the key is taken.
        same: Whether what came first with the key had the same fingerprint.
        answer: What that was answered with; None while it runs.
    """

    token: int | None
    same: bool = True
    answer: bytes | None = None
