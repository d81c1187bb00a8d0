"""Figures as people read them. Pure."""

from __future__ import annotations

from datetime import UTC, datetime

_UNITS = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))


def span(seconds: float | None) -> str:
    """Return a time span: ``"0.2 s"``, ``"3 min 20 s"``, ``"2 d 4 h"``."""
    if seconds is None:
        return "-"
    if seconds < 10:
        return "0 s" if seconds < 0.05 else f"{seconds:.1f} s"
    left = round(seconds)
    found: list[str] = []
    for unit, size in _UNITS:
        count, left = divmod(left, size)
        if count or found:
            found.append(f"{count} {unit}" if count else "")
        if len(found) == 2:
            break
    return " ".join(filter(None, found))


def moment(when: float | datetime | None) -> str:
    """Return a moment in UTC, to the second; the number itself where no clock says so."""
    if when is None:
        return "-"
    try:
        at = when if isinstance(when, datetime) else datetime.fromtimestamp(when, UTC)
    except (ValueError, OverflowError, OSError):
        return f"{when}"
    return at.strftime("%Y-%m-%d %H:%M:%S")


def stamp(when: float | datetime | None) -> str:
    """Return a moment for machines: ISO 8601; empty where there is none."""
    text = moment(when)
    return f"{text.replace(' ', 'T')}Z" if " " in text else ""


def count(number: float) -> str:
    """Return a whole number with its thousands apart."""
    return f"{number:,.0f}"


def with_noun(number: int, one: str) -> str:
    """Return a number with its noun: ``"1 item"``, ``"2,000 items"``."""
    return f"{number:,} {one}" if number == 1 else f"{number:,} {one}s"


def per_second(rate: float) -> str:
    """Return a rate: ``"0/s"``, ``"12.5/s"``, ``"1,250/s"``."""
    return f"{rate:,.0f}/s" if rate >= 100 or not rate else f"{rate:.3g}/s"


def size(number: int) -> str:
    """Return a size: ``"512 bytes"``, ``"1.5 MB"``."""
    if number < 1_000:
        return f"{number} bytes"
    value, unit = number / 1_000, "kB"
    for bigger in ("MB", "GB", "TB"):
        if value < 1_000:
            break
        value, unit = value / 1_000, bigger
    return f"{value:,.1f} {unit}"


def percent(fraction: float) -> str:
    """Return a part as per cent: 100 % only at the end."""
    return f"{int(fraction * 100)} %"
