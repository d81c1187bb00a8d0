"""QueuePage: the application, from a request to its answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route, Router

from microbatch import BatcherClosed
from microbatch.durable import (
    JobNotEnded,
    QueueFull,
    QueueUnavailable,
    ResultsExpired,
    UnknownJob,
    UnknownTicket,
)

from . import acts, downloads, job_views, views
from .assets import FILES, render
from .following import Following, Streams
from .guard import HEADERS, BrowserSession, role_of
from .places import Places
from .shown import Shown
from .visit import Visit

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from starlette.types import ASGIApp, Receive, Scope, Send

    from microbatch.durable import DurableQueue

    from .guard import Authorize
    from .views import View

    Endpoint = Callable[[Visit], Awaitable[View]]

#: What the durable mode says is wrong, as a status.
_FAULTS = (
    (UnknownTicket, 404),
    (UnknownJob, 404),
    (ResultsExpired, 410),
    (JobNotEnded, 409),
    (QueueFull, 503),
    (QueueUnavailable, 503),
    (BatcherClosed, 503),
)
_ALL_FAULTS = tuple(kind for kind, _ in _FAULTS)


class QueuePage:
    """Pages to look into durable queues with a browser and to mend them: an ASGI application.

    Mount it in another application or serve it by itself, on asyncio and uvloop. It shows queues with their
    counts and rates, items with payloads and errors, and jobs with their progress. It can requeue, purge,
    cancel, pause, resume and retry; every action asks first. Pages are updated by server-sent events; without
    JavaScript, reload them. Everything that they need is in the package.

    Args:
        queues: ``DurableQueue`` or ``DurableBatcher`` objects, or one of them. The first request opens those
            that are not open; the page never closes them. ``item_type=Any`` is enough.
        authorize: A function, plain or async, of a Starlette ``Request``: returns ``"read"`` if its sender may
            look, ``"act"`` if he may also act, None for neither (403, as for ``PermissionError``). It may raise
            a Starlette ``HTTPException``, for example a 303 to a page for logging in. A page that is updated
            calls it again every minute.
        read_only: Whether nobody may act, whatever ``authorize`` says.
        redact: A plain function that gets a payload, a result or a job's metadata as built-in values, or an
            error's message, its traceback, a key, an owner or a client's id as a str, and returns what may
            be shown of it. It is called first: pages, search and downloads have only what it returned. If it
            raises, nothing of that value is shown. None shows everything.
        base_path: The prefix of the page's paths in links, ``""`` or as ``"/admin/queues"``; by default the
            path where it is mounted (``root_path``).

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If there is no queue, one comes twice, or ``base_path`` is no path.
    """

    def __init__(
        self,
        queues: Iterable[DurableQueue[Any, Any]] | DurableQueue[Any, Any],
        *,
        authorize: Authorize,
        read_only: bool = False,
        redact: Callable[[Any], Any] | None = None,
        base_path: str | None = None,
    ) -> None:
        for name, function in (("authorize", authorize), ("redact", redact)):
            if not (callable(function) or (name == "redact" and function is None)):
                message = f"{name} must be a function, got {type(function).__name__}"
                raise TypeError(message)
        if not isinstance(read_only, bool):
            message = f"read_only must be True or False, got {read_only!r}"
            raise TypeError(message)
        if base_path is not None and not _is_base(base_path):
            message = f"base_path must be '' or as '/admin/queues', got {base_path!r}"
            raise ValueError(message)
        self._places = Places(queues)
        self._authorize = authorize
        self._read_only = read_only
        self._shown = Shown(redact)
        self._base_path = base_path
        self._streams = Streams()
        self._router = Router(
            [
                *self._routes("/", views.overview),
                *self._routes("/q/{queue}", views.queue),
                *self._routes("/q/{queue}/items/{item}", views.item),
                *self._routes("/q/{queue}/items/{item}/{part}", views.whole_text),
                *self._routes("/q/{queue}/confirm", acts.ask),
                *self._routes("/q/{queue}/act", acts.carry_out, "POST"),
                *self._routes("/q/{queue}/jobs", job_views.jobs),
                *self._routes("/q/{queue}/jobs/{job}", job_views.job),
                *self._routes("/q/{queue}/jobs/{job}/results", downloads.results),
                Route("/static/{name}", _static),
            ],
            redirect_slashes=False,
            default=self._nowhere,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        await self._router(scope, receive, send)

    def end_streams(self) -> None:
        """End the pages that are followed, for a server that stops. Call it in the event loop."""
        self._streams.end()

    def _routes(self, path: str, endpoint: Endpoint, method: str = "GET") -> list[Route]:
        async def answer(request: Request) -> Any:
            return await self._answer(request, endpoint)

        paths = [path] if path == "/" else [path, f"{path}/"]
        return [Route(one, answer, methods=[method]) for one in paths]

    async def _nowhere(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            request = Request(scope, receive)
            response: ASGIApp = self._problem(request, 404, "There is no such page.")
        else:
            response = _refuse_websocket
        await response(scope, receive, send)

    async def _answer(self, request: Request, endpoint: Endpoint) -> Any:
        base = self._base(request)
        try:
            session = BrowserSession(request, base)
            role = await role_of(request, self._authorize)
            visit = Visit(
                request,
                role=role,
                session=session,
                places=self._places,
                shown=self._shown,
                base=base,
                read_only=self._read_only,
            )
            if "live" in request.query_params and request.method == "GET":
                return await self._follow(visit, endpoint)
            response = await self._made(visit, endpoint)
            if visit.may_act:
                session.keep(response)
        except HTTPException as error:
            headers = error.headers or {}
            if 300 <= error.status_code < 400:
                return Response(status_code=error.status_code, headers=headers)
            return self._problem(request, error.status_code, error.detail, headers)
        except _ALL_FAULTS as error:
            status = next(status for kind, status in _FAULTS if isinstance(error, kind))
            return self._problem(request, status, f"{error}.")
        return response

    async def _made(self, visit: Visit, endpoint: Endpoint) -> Response:
        view = await endpoint(visit)
        response = view if isinstance(view, Response) else HTMLResponse(self._text(visit, view))
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    def _text(self, visit: Visit, view: tuple[str, dict[str, Any]]) -> str:
        name, context = view
        common = {
            "base": visit.base,
            "visit": visit,
            "live": _live_address(visit.request),
            "read_only": visit.read_only,
            "may_act": visit.may_act,
        }
        return render(name, {**common, **context})

    async def _follow(self, visit: Visit, endpoint: Endpoint) -> Any:
        if self._streams.is_full:
            raise HTTPException(503, "Too many pages are followed at present: reload instead.")

        async def page() -> str | None:
            try:
                view = await endpoint(visit)
            except (HTTPException, *_ALL_FAULTS):
                return None
            return None if isinstance(view, Response) else self._text(visit, view)

        view = await endpoint(visit)
        if isinstance(view, Response):
            raise HTTPException(400, "This cannot be followed.")
        return Following(page, self._text(visit, view), self._streams, HEADERS)

    def _base(self, request: Request) -> str:
        root: str = request.scope.get("root_path", "")
        return (root if self._base_path is None else self._base_path).rstrip("/")

    def _problem(
        self, request: Request, status: int, message: str, headers: Any = None
    ) -> Response:
        text = render(
            "problem.html", {"base": self._base(request), "status": status, "message": message}
        )
        return HTMLResponse(text, status, {**HEADERS, **(headers or {})})


def _is_base(path: Any) -> bool:
    return isinstance(path, str) and (
        not path or (path[0] == "/" and path[1:2] != "/" and "?" not in path and "#" not in path)
    )


def _live_address(request: Request) -> str:
    """Return where a page is followed: its own address, with a mark."""
    query = request.query_params.multi_items()
    if any(name == "before" for name, _ in query):  # an older page does not change
        return ""
    return "?" + "&".join(["live=1", *([request.url.query] if request.url.query else [])])


async def _static(request: Request) -> Response:
    """Send one of our files: it is the same for everybody."""
    file = FILES.get(request.path_params["name"])
    if file is None:
        return Response("There is no such file.", 404, HEADERS, "text/plain")
    kept = "public, max-age=31536000, immutable"
    fresh = kept if request.query_params.get("v") == file.digest else "no-cache"
    headers = {**HEADERS, "cache-control": fresh, "etag": f'"{file.digest}"'}
    return Response(file.content, 200, headers, file.media_type)


async def _refuse_websocket(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1000})
