"""How long a ``Retry-After`` header of HTTP asks to wait. Pure: no loop, no clock, no I/O."""

from __future__ import annotations

import re
import sys
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

#: RFC 9110 knows whole numbers only; some servers send fractions, and some what is over already.
_SECONDS: Final = re.compile(r"-?[0-9]+(\.[0-9]*)?")

_TIME: Final = r"[0-9]{2}:[0-9]{2}:[0-9]{2}"
_MONTH: Final = r"(Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"

#: RFC 9110, section 5.6.7: the form of today, and the two older ones that recipients must still read.
_DATES: Final = (
    re.compile(rf"[A-Z][a-z]{{2}}, [0-9]{{2}} {_MONTH} [0-9]{{4}} {_TIME} GMT"),
    re.compile(rf"[A-Z][a-z]+day, [0-9]{{2}}-{_MONTH}-[0-9]{{2}} {_TIME} GMT"),
    re.compile(rf"[A-Z][a-z]{{2}} {_MONTH} [ 0-9][0-9] {_TIME} [0-9]{{4}}"),
)


def seconds_until(header: str, now: datetime) -> float | None:
    """Return the seconds that a header asks to wait, at least 0; None if it is of neither form."""
    text = header.strip()
    if _SECONDS.fullmatch(text):
        return min(max(0.0, float(text)), sys.float_info.max)
    if not any(form.fullmatch(text) for form in _DATES):
        return None
    try:
        date = parsedate_to_datetime(text)
    except ValueError:  # the 30th of February
        return None
    return max(0.0, (date.replace(tzinfo=UTC) - now).total_seconds())
