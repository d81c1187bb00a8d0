"""Bodies of requests: counted while they are read, inflated within bounds, given up when they stop coming."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import anyio

from ._problem import Problem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping

    from starlette.requests import Request

    Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

#: How much is inflated at once: a bomb is found out after so much more than is allowed.
_INFLATED_BYTES = 65_536

#: How much is given to be inflated at once: what follows a member is copied, and a piece may have thousands.
_DEFLATED_BYTES = 4_096

_GZIP = 31  # the window's size, and that a header and a check sum stand around the data


class ClientGoneError(Exception):
    """The client left in the middle of its request: there is nobody to answer."""


def media_type_of(request: Request) -> str:
    """Return what the body is said to be, in lower case and without parameters; empty if nothing is said."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def check_json(request: Request) -> None:
    """Refuse a body that is not said to be JSON.

    Raises:
        Problem: 415.
    """
    kind = media_type_of(request)
    if kind != "application/json" and not (
        kind.startswith("application/") and kind.endswith("+json")
    ):
        raise Problem(
            415,
            "the body must be application/json",
            headers={"accept": "application/json"},
            close=True,
        )


def is_compressed(request: Request) -> bool:
    """Tell whether a body is to be inflated.

    Raises:
        Problem: 415 for anything but gzip.
    """
    coding = request.headers.get("content-encoding", "").strip().lower()
    if coding in {"", "identity"}:
        return False
    if coding in {"gzip", "x-gzip"}:
        return True
    raise Problem(
        415,
        "the body may be compressed only with gzip",
        headers={"accept-encoding": "gzip"},
        close=True,
    )


async def pieces_of(request: Request, *, max_bytes: int, timeout: float) -> AsyncIterator[bytes]:
    """Yield a body piece by piece, inflated.

    Args:
        request: Whose body; nothing of it may have been read before.
        max_bytes: The most that it may have, both as sent and inflated. Counted here, whatever its
            ``Content-Length`` says; one that says more is refused before anything is read.
        timeout: Seconds that the client may take for each piece.

    Raises:
        Problem: 408 if a piece does not come in time, 413 once there is too much, 415 for a coding other
            than gzip, 400 for what is no gzip. After each of them the connection ends.
        ClientGoneError: If the client leaves.
    """
    inflate = _Gzip() if is_compressed(request) else None
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and (len(announced) > 18 or int(announced) > max_bytes):
        raise _too_large(max_bytes)
    receive: Receive = request.receive
    sent = inflated = 0
    more = True
    while more:
        message: MutableMapping[str, Any] | None = None
        with anyio.move_on_after(timeout):
            message = await receive()
        if message is None:
            raise Problem(408, f"no piece of the body came within {timeout:g} s", close=True)
        if message["type"] != "http.request":
            raise ClientGoneError
        piece: bytes = message.get("body", b"")
        more = message.get("more_body", False)
        sent += len(piece)
        if sent > max_bytes:
            raise _too_large(max_bytes)
        if inflate is None:
            if piece:
                yield piece
            continue
        for part in inflate.parts(piece):
            inflated += len(part)
            if inflated > max_bytes:
                raise _too_large(max_bytes)
            yield part
    if inflate is not None:
        inflate.finish()


async def body_of(request: Request, *, max_bytes: int, timeout: float) -> bytes:
    """Return a whole body, inflated. The arguments and errors are those of `pieces_of`."""
    pieces = [piece async for piece in pieces_of(request, max_bytes=max_bytes, timeout=timeout)]
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _too_large(max_bytes: int) -> Problem:
    return Problem(
        413,
        f"the body has more than {max_bytes} bytes",
        type="batch-too-large",
        max_bytes=max_bytes,
        close=True,
    )


class _Gzip:
    """Inflates what comes piece by piece; files of several members are whole too."""

    def __init__(self) -> None:
        self._member: Any = zlib.decompressobj(_GZIP)
        self._began = False

    def parts(self, piece: bytes) -> Iterator[bytes]:
        """Yield what a piece adds, in bounded parts."""
        for at in range(0, len(piece), _DEFLATED_BYTES):
            yield from self._parts(piece[at : at + _DEFLATED_BYTES])

    def _parts(self, piece: bytes) -> Iterator[bytes]:
        while piece:
            if self._member.eof:
                piece = (
                    piece.lstrip(b"\0") if not self._began else piece
                )  # padding is allowed there
                if not piece:
                    return
                self._member = zlib.decompressobj(_GZIP)
            self._began = True
            try:
                part = self._member.decompress(piece, _INFLATED_BYTES)
            except zlib.error:
                raise Problem(400, "the body is not gzip", close=True) from None
            if part:
                yield part
            if self._member.eof:
                piece = self._member.unused_data
                self._began = False
            else:
                piece = self._member.unconsumed_tail

    def finish(self) -> None:
        """Refuse what broke off.

        Raises:
            Problem: 400.
        """
        if not self._member.eof:
            raise Problem(400, "the gzip body is truncated: its end is missing", close=True)
