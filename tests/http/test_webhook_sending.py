"""What a webhook connects to: looked up once, each address checked, called as it was checked."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import trustme
from receiver_support import Receiver

from microbatch.http import _sending
from microbatch.http._addresses import Allowed
from microbatch.http._sending import ANSWER_BYTES_MAX, RefusedAddress, Unreachable, post

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.real_time,
    pytest.mark.parametrize("backend_name", ["asyncio", "uvloop"], indirect=True),
]

NAME = "hooks.test"


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Set what each look-up of a name in turn gives; the last one again and again. Returns what was asked for."""

    def given(*answers: list[str]) -> list[str]:
        asked: list[str] = []

        async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
            found = answers[min(len(asked), len(answers) - 1)]
            asked.append(host)
            return [(None, None, 6, "", (address, port)) for address in found]

        monkeypatch.setattr(anyio, "getaddrinfo", getaddrinfo)
        return asked

    return given


def allowed(*receivers: Receiver, networks: tuple[str, ...] = ("127.0.0.1/32",)) -> Allowed:
    return Allowed([f"{NAME}:{receiver.port}" for receiver in receivers] + list(networks))


async def sent(
    receiver: Receiver, rules: Allowed, *, scheme: str = "http", trust: Any = None
) -> Any:
    context = ssl.create_default_context() if trust is None else trust
    target = rules.target(f"{scheme}://{NAME}:{receiver.port}/hook")
    return await post(target, {"webhook-id": "1"}, b"{}", allowed=rules, context=context)


async def test_the_address_that_was_checked_is_the_one_that_is_called(names) -> None:
    """A resolver that changes its answer: the second one, which a second look-up would get, is never used."""
    asked = names(["127.0.0.1"], ["127.0.0.2"])
    async with Receiver() as receiver, Receiver(host="127.0.0.2", port=receiver.port) as inside:
        assert (await sent(receiver, allowed(receiver))).status == 204
        assert asked == [NAME]
        (received,) = receiver.received
        assert received.headers["host"] == f"{NAME}:{receiver.port}"
        with pytest.raises(
            RefusedAddress
        ):  # at the next attempt it is looked up, and checked, again
            await sent(receiver, allowed(receiver))
        assert asked == [NAME, NAME]
        assert inside.connections == 0


@pytest.mark.parametrize("other", ["169.254.169.254", "::1", "fe80::1%eth0", "::ffff:10.0.0.1"])
async def test_one_address_that_is_not_public_refuses_them_all(names, other: str) -> None:
    """Which of them is called is chance: an attacker adds a good one and tries again."""
    async with Receiver() as receiver:
        for addresses in (["127.0.0.1", other], [other, "127.0.0.1"]):
            names(addresses)
            with pytest.raises(RefusedAddress):
                await sent(receiver, allowed(receiver))
        assert receiver.connections == 0


async def test_a_name_of_this_machine_is_refused() -> None:
    """The real resolver: without a word of the operator nothing here is called."""
    async with Receiver() as receiver:
        rules = Allowed([f"localhost:{receiver.port}"])
        target = rules.target(f"http://localhost:{receiver.port}/")
        with pytest.raises(RefusedAddress):
            await post(target, {}, b"", allowed=rules, context=ssl.create_default_context())
        assert receiver.connections == 0


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_redirect_is_followed(names, status: int) -> None:
    """Else an honest-looking host sends us where it likes."""
    names(["127.0.0.1"])
    async with Receiver() as other:
        there = f"HTTP/1.1 {status} Go\r\nLocation: http://127.0.0.1:{other.port}/\r\nContent-Length: 0\r\n\r\n"
        async with Receiver([there.encode()]) as receiver:
            assert (await sent(receiver, allowed(receiver, other))).status == status
        assert other.connections == 0


async def test_the_next_address_is_tried_where_nobody_listens(names) -> None:
    """Hosts have several, of two kinds; one of them may be down."""
    names(["127.0.0.3", "127.0.0.1"])
    async with Receiver() as receiver:
        rules = allowed(receiver, networks=("127.0.0.0/8",))
        assert (await sent(receiver, rules)).status == 204
        names(["127.0.0.3", "127.0.0.4"])
        with pytest.raises(Unreachable, match="no connection: ConnectError"):
            await sent(receiver, rules)
        names([])
        with pytest.raises(Unreachable, match="the host has no address"):
            await sent(receiver, rules)


async def test_no_more_than_four_addresses_are_tried(names) -> None:
    """A name may have hundreds; each could cost five seconds."""
    names([f"127.0.1.{n}" for n in range(4)] + ["127.0.0.1"])
    async with Receiver() as receiver:
        with pytest.raises(Unreachable):
            await sent(receiver, allowed(receiver, networks=("127.0.0.0/8",)))
        assert receiver.connections == 0


async def test_a_name_that_nobody_knows_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be known again at the next attempt."""

    async def getaddrinfo(*_: Any, **__: Any) -> list[Any]:
        raise socket.gaierror(socket.EAI_AGAIN, "try again")

    monkeypatch.setattr(anyio, "getaddrinfo", getaddrinfo)
    async with Receiver() as receiver:
        with pytest.raises(Unreachable, match="cannot be looked up: try again"):
            await sent(receiver, allowed(receiver))


async def test_the_environment_has_no_say(names, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy would connect to what it likes; nobody listens at this one."""
    names(["127.0.0.1"])
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.lower(), "http://127.0.0.1:9")
    async with Receiver() as receiver:
        assert (await sent(receiver, allowed(receiver))).status == 204


async def test_an_answer_without_an_end_is_read_up_to_its_bound(names) -> None:
    """A receiver cannot fill our memory, nor hold a place by sending for ever."""
    names(["127.0.0.1"])
    endless = b"HTTP/1.1 200 So\r\nContent-Length: 100000000000\r\n\r\n" + b"x" * (
        2 * ANSWER_BYTES_MAX
    )
    async with Receiver([endless]) as receiver:
        assert (await sent(receiver, allowed(receiver))).status == 200


async def test_an_answer_that_breaks_off_or_is_none_is_unreachable(names) -> None:
    """What it said before it broke off is worth nothing."""
    names(["127.0.0.1"])
    for answer in (
        b"",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 So\r\nContent-Length: 10\r\n\r\nabc",
    ):
        async with Receiver([answer]) as receiver:
            with pytest.raises(Unreachable, match=r"^no answer: \w+"):
                await sent(receiver, allowed(receiver))


async def test_a_receiver_that_says_nothing_is_left(names, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message holds its place for 15 s at most; here for less."""
    names(["127.0.0.1"])
    assert _sending.SECONDS_MAX == 15
    monkeypatch.setattr(_sending, "SECONDS_MAX", 0.2)
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        silent = Receiver(port=port)
        with pytest.raises(Unreachable, match=r"no answer within 0\.2 s"):
            await sent(silent, allowed(silent))


# TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def serving(authority: trustme.CA, name: str, heard: list[str | None]) -> ssl.SSLContext:
    """Return what a receiver with a certificate for this name needs; it notes the names that it is asked for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    context.sni_callback = lambda _socket, asked, _context: heard.append(asked)
    return context


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def test_the_name_of_the_url_is_verified_though_an_address_is_called(
    names, authority
) -> None:
    """Connecting to the literal must not mean that any certificate will do."""
    names(["127.0.0.1"])
    heard: list[str | None] = []
    async with Receiver(tls=serving(authority, NAME, heard)) as receiver:
        answer = await sent(receiver, allowed(receiver), scheme="https", trust=trusting(authority))
        assert answer.status == 204
        assert heard == [NAME]
        assert receiver.received[0].headers["host"] == f"{NAME}:{receiver.port}"


@pytest.mark.parametrize("name", ["other.test", "127.0.0.1", "x.hooks.test"])
async def test_a_certificate_for_another_name_is_refused(names, authority, name: str) -> None:
    """Also one for the very address: whoever took the address over has that."""
    names(["127.0.0.1"])
    async with Receiver(tls=serving(authority, name, [])) as receiver:
        with pytest.raises(Unreachable, match=r"(?i)certificate"):
            await sent(receiver, allowed(receiver), scheme="https", trust=trusting(authority))
        assert receiver.received == []


async def test_a_certificate_of_an_unknown_authority_is_refused(names, authority) -> None:
    """The certificates that httpx brings, or those of the operator, decide."""
    names(["127.0.0.1"])
    async with Receiver(tls=serving(authority, NAME, [])) as receiver:
        with pytest.raises(Unreachable, match=r"(?i)certificate"):
            await sent(receiver, allowed(receiver), scheme="https")
        assert receiver.received == []


async def test_an_address_in_a_url_needs_a_certificate_for_the_address(authority) -> None:
    """It has no name to be asked for."""
    heard: list[str | None] = []
    async with Receiver(tls=serving(authority, "127.0.0.1", heard)) as receiver:
        rules = Allowed([f"127.0.0.1:{receiver.port}"])
        target = rules.target(f"https://127.0.0.1:{receiver.port}/")
        assert target.address == ipaddress.ip_address("127.0.0.1")
        answer = await post(target, {}, b"", allowed=rules, context=trusting(authority))
        assert answer.status == 204
        assert heard == [None]
