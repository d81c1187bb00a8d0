"""Who sends a request: asked of the application, once for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ._problem import Problem

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request

    Authorize = Callable[[Request], Awaitable["Principal | None"]]

#: As many characters as the owner of a job may have.
_ID_CHARACTERS_MAX = 1_000


@dataclass(frozen=True, slots=True)
class Principal:
    """Who sends a request, as the application's ``authorize`` found out.

    Args:
        id: The principal's name. Jobs, keys and rates belong to one id. 1 to 1,000 printable characters.
        scopes: What it may do, in the application's own words. microbatch does not read them.

    Raises:
        TypeError: If the id is no str.
        ValueError: If it is empty, too long, or not printable.
    """

    id: str
    scopes: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        given: Any = self.id
        if not isinstance(given, str):
            message = f"id must be a str, got {given!r}"
            raise TypeError(message)
        if not (0 < len(given) <= _ID_CHARACTERS_MAX and given.isprintable()):
            message = f"id must be 1 to {_ID_CHARACTERS_MAX} printable characters, got {given!r}"
            raise ValueError(message)


async def principal_of(request: Request, authorize: Authorize, challenge: str) -> Principal:
    """Return who sends a request.

    Raises:
        Problem: 401 if the application does not know, 403 if it raises ``PermissionError``.
        TypeError: If it returns something else.
    """
    try:
        principal: Any = await authorize(request)
    except PermissionError:
        raise forbidden() from None
    if principal is None:
        raise Problem(401, "authentication is required", headers={"www-authenticate": challenge})
    if not isinstance(principal, Principal):
        message = f"authorize must return a Principal or None, got {type(principal).__name__}"
        raise TypeError(message)
    return principal


def forbidden() -> Problem:
    """Return the problem of a principal who may not do what it asks for."""
    return Problem(403, "you may not do this")
