"""Routes, and which one a request means. A trailing slash makes no difference, and nothing is redirected."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote

from ._problem import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from starlette.responses import Response

    from ._exchange import Exchange
    from ._reply import HTTPReply

Endpoint = Callable[["Exchange"], Awaitable["HTTPReply | Response"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One method on one path.

    Attributes:
        method: The method; ``GET`` answers ``HEAD`` too.
        path: The path below the API's own, such as ``"/jobs/{id}/results"``. A part in braces takes any
            one part of a path; fixed parts go before it.
        endpoint: Gets the `Exchange` and returns a `HTTPReply`, or a response of Starlette's for streams. It
            may raise `Problem`. Anything else that it raises is a 500 with an id that stands in the log.
        name: The operation's name in the OpenAPI document, unique: ``"users.create"``.
        body: ``"json"``: 415 for anything else, and `Exchange.body` holds it, read and inflated. ``"stream"``:
            the endpoint reads it, with `pieces_of`. ``"none"``: what is sent is not read.
        public: Whether nobody is asked who sends it.
        document: The operation's object in the OpenAPI document, but for ``operationId``, the parameters of
            the path, and the answers that any route may give.
    """

    method: str
    path: str
    endpoint: Endpoint
    name: str
    body: Literal["none", "json", "stream"] = "none"
    public: bool = False
    document: Mapping[str, Any] = field(default_factory=dict)


class _Node:
    """A place in the tree of paths."""

    __slots__ = ("children", "methods", "parameter")

    def __init__(self) -> None:
        self.children: dict[str, _Node] = {}
        self.parameter: tuple[str, _Node] | None = None
        self.methods: dict[str, Route] = {}


class Router:
    """Finds the route of a path and a method.

    Args:
        routes: All of them.

    Raises:
        ValueError: If two have one method and one path.
    """

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes: tuple[Route, ...] = tuple(routes)
        self._root = _Node()
        for route in self.routes:
            node = self._root
            for part in route.path.strip("/").split("/"):
                if part.startswith("{"):
                    name = part[1:-1]
                    if node.parameter is None:
                        node.parameter = (name, _Node())
                    node = node.parameter[1]
                else:
                    node = node.children.setdefault(part, _Node())
            if route.method in node.methods:
                raise ValueError(f"two routes for {route.method} {route.path}")
            node.methods[route.method] = route

    def find(self, method: str, parts: Sequence[str]) -> tuple[Route, dict[str, str]]:
        """Return the route, and what stands in the places of its parameters.

        Args:
            method: The request's method.
            parts: Its path, from `parts_of`.

        Raises:
            Problem: 404 for a path that there is not, 405 for a method that it does not take.
        """
        node: _Node | None = self._root
        parameters: dict[str, str] = {}
        for part in parts:
            child = node.children.get(part)  # type: ignore[union-attr]
            if child is None and part and node.parameter is not None:  # type: ignore[union-attr]
                name, child = node.parameter  # type: ignore[union-attr]
                parameters[name] = part
            node = child
            if node is None:
                raise Problem(404, "there is nothing at this path")
        assert node is not None  # noqa: S101 - a path has a part at least
        route = node.methods.get("GET" if method == "HEAD" else method)
        if route is None:
            if not node.methods:
                raise Problem(404, "there is nothing at this path")
            allowed = {*node.methods, *(["HEAD"] if "GET" in node.methods else [])}
            raise Problem(
                405,
                "this path does not take this method",
                headers={"allow": ", ".join(sorted(allowed))},
            )
        return route, parameters


def path_of(scope: Mapping[str, Any]) -> str:
    """Return the path below the place where the application is mounted."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "").rstrip("/")
    if root and path.startswith(root) and path[len(root) :][:1] in {"", "/"}:
        return path[len(root) :]
    return path  # mounted by what leaves the root out of the path


def parts_of(scope: Mapping[str, Any]) -> list[str]:
    """Return the parts of that path, decoded.

    A slash at its end makes no part. One that was escaped is a character like any other.
    """
    path = path_of(scope).removeprefix("/")
    parts = path.split("/")
    raw: bytes = scope.get("raw_path") or b""
    if b"%2f" in raw or b"%2F" in raw:
        # Servers tell the path decoded, in which an id's own slash looks like any other.
        sent = [unquote(part) for part in raw.partition(b"?")[0].decode("latin-1").split("/")]
        below = (
            sent[at:] for at in range(len(sent))
        )  # what it is mounted at may stand before it, or not
        parts = next((some for some in below if "/".join(some) == path), parts)
    if len(parts) > 1 and not parts[-1]:
        parts.pop()
    return parts
