"""What a batch may be asked to do otherwise: its options, and the header Prefer. Pure."""

from __future__ import annotations

from typing import Literal

import msgspec


class BatchOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The ``options`` of a batch.

    Attributes:
        atomic: All or nothing, in one transaction.
        stop_on_error: Once an item has failed, what has not begun is not tried. Of a job: ``max_failures=0``.
        validate_only: Nothing is handled: it is only told whether it would be.
        ordered: In the order of the request. Of a job: one batch at a time.
        mode: What becomes of the good items beside one that does not fit: ``"skip"``, they are handled;
            ``"reject"``, nothing is.
        run_async: ``async`` in JSON: the batch is to be a job; None leaves it to its size.
    """

    atomic: bool = False
    stop_on_error: bool = False
    validate_only: bool = False
    ordered: bool = False
    mode: Literal["skip", "reject"] = "skip"
    run_async: bool | None = msgspec.field(default=None, name="async")


class Preferences(msgspec.Struct, frozen=True):
    """What the header ``Prefer`` asks for (RFC 7240); what is not known there is passed over.

    Attributes:
        respond_async: A job is wanted.
        wait: For how many seconds its end may be waited for; None if nothing was said.
        minimal: Only failed items are wanted in the answer.
    """

    respond_async: bool = False
    wait: float | None = None
    minimal: bool = False


_WAIT_DIGITS_MAX = 6


def preferences_of(values: list[str]) -> Preferences:
    """Read the values of all headers ``Prefer`` of a request; of two of one name the first counts."""
    found: dict[str, str] = {}
    for preference in ",".join(values).split(","):
        name, _, value = preference.partition(";")[0].partition("=")
        found.setdefault(name.strip().lower(), value.strip().strip('"'))
    wait = found.get("wait", "")
    known = wait.isascii() and wait.isdecimal() and len(wait) <= _WAIT_DIGITS_MAX
    return Preferences(
        respond_async=found.get("respond-async") == "",
        wait=float(wait) if known else None,
        minimal=found.get("return", "").lower() == "minimal",
    )
