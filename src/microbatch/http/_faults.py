"""Faults: errors that are no client's business. The log has them, the client gets an id that stands there."""

from __future__ import annotations

import logging
import uuid
from typing import TYPE_CHECKING

from microbatch._telemetry.log import write

from ._problem import Problem

if TYPE_CHECKING:
    from collections.abc import Sequence


def logged(error: BaseException, what: Sequence[object]) -> str:
    """Log an error and return the id by which it is found there.

    Args:
        error: The error, with its traceback.
        what: What it befell, such as the operation's name; nothing that a client sent.
    """
    fault = uuid.uuid4().hex
    write(logging.ERROR, "%s failed: error %s", " ".join(map(str, what)), fault, exc_info=error)
    return fault


def fault_problem(error: BaseException, what: Sequence[object]) -> Problem:
    """Log an error that ended a request, and return the problem that tells its id."""
    fault = logged(error, what)
    return Problem(
        500,
        f"internal error {fault}",
        type="internal-error",
        instance=f"urn:uuid:{uuid.UUID(fault)}",
        code="internal_error",
    )
