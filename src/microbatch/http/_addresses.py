"""Where a webhook may go: URLs and addresses, judged before anything is sent. Pure: no look-up, no I/O.

A client names the URL, and this server calls it: without these rules a client reads what only this
server can reach. Whatever is not plainly a public address is refused, for Python's own ``is_global``
takes some of them for public (``192.0.0.8``, multicast, IPv4 inside NAT64 or 6to4).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, TypeAlias

import idna

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

#: Longer ones are no honest URL; the bound of what is stored with a job.
URL_LENGTH_MAX: Final = 2_000

_PORTS: Final = {"https": 443, "http": 80}

_URL: Final = re.compile(r"([a-z]+)://([^/?]*)([/?][!-~]*)?", re.IGNORECASE)
_LABEL: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PORT: Final = re.compile(r"[0-9]{1,5}")

# IANA's registries of special-purpose addresses (RFC 6890 and what came after), with multicast and what
# is reserved: nothing in them is a public server.
_SPECIAL_4: Final = tuple(
    map(
        ipaddress.IPv4Network,
        (
            "0.0.0.0/8",  # this network
            "10.0.0.0/8",
            "100.64.0.0/10",  # shared by the customers of a provider
            "127.0.0.0/8",
            "169.254.0.0/16",  # link-local: clouds' metadata
            "172.16.0.0/12",
            "192.0.0.0/24",  # protocol assignments
            "192.0.2.0/24",  # documentation
            "192.31.196.0/24",  # AS112
            "192.52.193.0/24",  # AMT
            "192.88.99.0/24",  # 6to4 relays
            "192.168.0.0/16",
            "192.175.48.0/24",  # AS112
            "198.18.0.0/15",  # benchmarks
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, broadcast
        ),
    )
)
#: The only block of IPv6 that is given out for public servers; all else is refused with it.
_GLOBAL_6: Final = ipaddress.IPv6Network("2000::/3")
_SPECIAL_6: Final = tuple(
    map(
        ipaddress.IPv6Network,
        (
            "2001::/23",  # protocol assignments: Teredo, ORCHID, benchmarks ...
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4: any IPv4 address may be inside
            "2620:4f:8000::/48",  # AS112
            "3fff::/20",  # documentation
        ),
    )
)
#: NAT64's own prefix: what a resolver in a network without IPv4 makes of a public IPv4 address.
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")


@dataclass(frozen=True, slots=True)
class Target:
    """Where a URL leads.

    Attributes:
        scheme: ``"https"`` or ``"http"``.
        host: A name in ASCII, lower case, without a dot at its end; or an address, without brackets.
        port: The port.
        path: Path and query, as they are sent.
        address: The address, if the host is one.
    """

    scheme: str
    host: str
    port: int
    path: str
    address: Address | None

    @property
    def authority(self) -> str:
        """Return what the ``Host`` header says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


class Allowed:
    """What may be called, as the operator says.

    Args:
        entries: ``"host"``, ``"host:port"``, addresses, or networks (``"10.0.0.0/8"``). If hosts are named
            no others may be called; they may be called over http and at their port too. Addresses in
            the networks count as public. None: every public host, over https, at port 443.

    Raises:
        TypeError: If it is no iterable of str.
        ValueError: If an entry is of none of these forms.
    """

    def __init__(self, entries: Iterable[str] | None) -> None:
        self._hosts: dict[str, set[int | None]] = {}
        self._networks: list[_Network] = []
        given: object = entries
        if given is not None and (isinstance(given, str) or not isinstance(given, Iterable)):
            raise TypeError(f"allow must be a list of hosts or None, got {entries!r}")
        for entry in entries or ():
            if not isinstance(entry, str):
                raise TypeError(f"allow must have hosts as str, got {entry!r}")
            self._take(entry)

    def _take(self, entry: str) -> None:
        if "/" in entry:
            try:
                self._networks.append(ipaddress.ip_network(entry))
            except ValueError as error:
                raise ValueError(f"allow: {error}") from None
            return
        bare = f"[{entry}]" if entry.count(":") > 1 and not entry.startswith("[") else entry
        try:
            host, address, port = _split(bare)
        except ValueError as error:
            raise ValueError(f"allow: {entry!r}: {error}") from None
        if address is not None:
            self._networks.append(ipaddress.ip_network(address))
        self._hosts.setdefault(host, set()).add(port)

    def target(self, url: str) -> Target:
        """Return where a URL leads, if it may be called as far as the URL alone tells.

        Raises:
            ValueError: If it may not; the message says why, to whoever sent the URL.
        """
        if len(url) > URL_LENGTH_MAX:
            raise ValueError(f"must have at most {URL_LENGTH_MAX} characters, has {len(url)}")
        found = _URL.fullmatch(url)
        if found is None or "\\" in url or "#" in url:
            raise ValueError(
                "must be a URL such as https://example.com/path, percent-encoded, without a fragment"
            )
        scheme, authority, path = found[1].lower(), found[2], found[3] or "/"
        if scheme not in _PORTS:
            raise ValueError("must begin with https://")
        if "@" in authority:
            raise ValueError("must not have a user or a password")
        host, address, port = _split(authority)
        port = _PORTS[scheme] if port is None else port
        if self._hosts:
            ports = self._hosts.get(host, set())
            if port not in ports and not (None in ports and port == _PORTS[scheme]):
                raise ValueError("must be at a host and port that are allowed")
        elif scheme != "https":
            raise ValueError("must begin with https://")
        elif port != _PORTS["https"]:
            raise ValueError("must be at port 443")
        if address is not None and not self.takes(address):
            raise ValueError("must be at a public address")
        path = path if path.startswith("/") else f"/{path}"
        return Target(scheme, host, port, path, address)

    def takes(self, address: Address) -> bool:
        """Tell whether an address may be connected to."""
        plain = _plain_form(address)
        if any(plain in network for network in self._networks):
            return True
        if isinstance(plain, ipaddress.IPv4Address):
            return not any(plain in network for network in _SPECIAL_4)
        return plain in _GLOBAL_6 and not any(plain in network for network in _SPECIAL_6)


def _plain_form(address: Address) -> Address:
    """Return the IPv4 address that one of IPv6 stands for, where such a one is in use: mapped, NAT64."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address


def _split(authority: str) -> tuple[str, Address | None, int | None]:
    """Return the host, the address if it is one, and the port if one is given.

    Raises:
        ValueError: If it has another form.
    """
    if authority.startswith("["):
        text, bracket, rest = authority[1:].partition("]")
        try:
            address: Address | None = ipaddress.IPv6Address(text)
        except ValueError:
            address = None
        if address is None or not bracket or "%" in text or rest[:1] not in ("", ":"):
            raise ValueError("must have an IPv6 address between the brackets")
        return str(address), address, _port_of(rest)
    name, colon, port = authority.partition(":")
    host = _name_of(name)
    address = None
    if _NUMBER.fullmatch(host.rpartition(".")[2]):
        # Resolvers take 127.1, 0x7f000001, 017700000001 and 2130706433 for 127.0.0.1: only the usual form
        # is taken here.
        try:
            address = ipaddress.IPv4Address(host)
        except ValueError:
            raise ValueError("must have an IPv4 address as four decimal numbers") from None
    return host, address, _port_of(colon + port)


def _name_of(name: str) -> str:
    """Return a host's name in ASCII."""
    try:
        host = name.lower() if name.isascii() else idna.encode(name, uts46=True).decode()
    except (idna.IDNAError, UnicodeError):
        raise ValueError("must have a host's name") from None
    host = host.removesuffix(".")
    if len(host) > 253 or not all(map(_LABEL.fullmatch, host.split("."))):
        raise ValueError("must have a host's name")
    return host


def _port_of(text: str) -> int | None:
    if not text:
        return None
    if not _PORT.fullmatch(text[1:]) or not 0 < int(text[1:]) < 2**16:
        raise ValueError("must have a port from 1 to 65535")
    return int(text[1:])
