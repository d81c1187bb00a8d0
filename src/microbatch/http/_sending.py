"""Calling a URL that a client named: every address checked, and connected to as it was checked."""

from __future__ import annotations

import ipaddress
import socket
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import anyio
import httpx

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

    from ._addresses import Address, Allowed, Target

#: Seconds that one attempt may take in all, the look-up included: what the specification recommends.
SECONDS_MAX: Final = 15.0

#: Bytes of an answer that are read. Nobody looks at them; they are read so that a receiver can end in peace.
ANSWER_BYTES_MAX: Final = 64 * 1024

#: Addresses of one host that are tried.
_ADDRESSES_MAX: Final = 4

#: Seconds that connecting to one address may take, so that there is time for another one.
_CONNECT_SECONDS: Final = 5.0


class Answered(NamedTuple):
    """What a receiver answered.

    Attributes:
        status: The status code.
        retry_after: The header of that name.
    """

    status: int
    retry_after: str | None


class Unreachable(Exception):
    """Nothing was answered; says why, without the URL, whose query may hold a secret."""


class RefusedAddress(Exception):
    """The host has an address that may not be connected to."""


async def post(
    target: Target,
    headers: Mapping[str, str],
    body: bytes,
    *,
    allowed: Allowed,
    context: ssl.SSLContext,
) -> Answered:
    """Send a body, over a new connection, and return what was answered. No redirect is followed.

    Args:
        target: Where to.
        headers: Beside ``Host`` and what the body needs.
        body: The body.
        allowed: Which addresses may be connected to.
        context: Verifies the name that the URL has, whatever the address.

    Raises:
        RefusedAddress: If one of the host's addresses may not be connected to: nothing is then sent to any.
        Unreachable: If nothing was answered in time.
    """
    try:
        with anyio.fail_after(SECONDS_MAX):
            addresses = await _addresses_of(target)
            if not all(map(allowed.takes, addresses)):
                raise RefusedAddress("the host has an address that is not public")
            return await _post_to(addresses, target, headers, body, context)
    except TimeoutError:
        raise Unreachable(f"no answer within {SECONDS_MAX:g} s") from None


async def _addresses_of(target: Target) -> list[Address]:
    if target.address is not None:
        return [target.address]
    try:
        found = await anyio.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except OSError as error:  # gaierror is one
        raise Unreachable(f"the host cannot be looked up: {error.strerror}") from None
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    return list(dict.fromkeys(addresses))


async def _post_to(
    addresses: list[Address],
    target: Target,
    headers: Mapping[str, str],
    body: bytes,
    context: ssl.SSLContext,
) -> Answered:
    problem = "the host has no address"
    # A client of its own: nothing is shared between receivers, neither connections nor cookies.
    async with httpx.AsyncClient(
        verify=context,
        trust_env=False,
        follow_redirects=False,
        timeout=httpx.Timeout(SECONDS_MAX, connect=_CONNECT_SECONDS),
    ) as client:
        for address in addresses[:_ADDRESSES_MAX]:
            try:
                return await _post_once(client, address, target, headers, body)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                problem = f"no connection: {_said(error)}"
            except httpx.TransportError as error:
                raise Unreachable(f"no answer: {_said(error)}") from error
    raise Unreachable(problem)


async def _post_once(
    client: httpx.AsyncClient,
    address: Address,
    target: Target,
    headers: Mapping[str, str],
    body: bytes,
) -> Answered:
    extensions: dict[str, Any] = {}
    if target.scheme == "https" and target.address is None:
        extensions["sni_hostname"] = target.host
    url = httpx.URL(
        scheme=target.scheme,
        host=str(address),
        port=target.port,
        raw_path=target.path.encode(),
    )
    sent = {"Host": target.authority, "User-Agent": "microbatch", "Connection": "close", **headers}
    async with client.stream(
        "POST", url, content=body, headers=sent, extensions=extensions
    ) as response:
        size = 0
        async for piece in response.aiter_raw():
            size += len(piece)
            if size >= ANSWER_BYTES_MAX:
                break
        return Answered(response.status_code, response.headers.get("retry-after"))


def _said(error: Exception) -> str:
    """Return what an error says, on one line."""
    return " ".join(f"{type(error).__name__} {error}".split())[:200]
