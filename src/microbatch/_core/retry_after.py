"""`retry_after`: for the handler that was told to come back later."""

from __future__ import annotations

from datetime import UTC, datetime

from microbatch._pure.header import seconds_until


def retry_after(header: str | None) -> float | None:
    """Return how many seconds a ``Retry-After`` header of HTTP asks to wait, for ``RateLimited``.

    Args:
        header: The header's value: seconds (``"120"``; fractions are read too) or a date of HTTP in any
            of its three forms (``"Fri, 31 Dec 1999 23:59:59 GMT"``), which the wall clock is compared
            with. None if there was none.

    Returns:
        Seconds, never below 0; None if there was no header, or one of neither form.

    Raises:
        TypeError: If the header is neither a str nor None.
    """
    if header is None:
        return None
    if not isinstance(header, str):
        raise TypeError(f"header must be a str or None, got {header!r}")
    return seconds_until(header, datetime.now(UTC))
