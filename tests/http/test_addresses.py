"""Which URLs and addresses a webhook may go to: every odd form of an address that must not be one."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microbatch.http._addresses import URL_LENGTH_MAX, Allowed

ANY = Allowed(None)

REFUSED_ADDRESSES = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "127.0.0.1", "127.255.255.254", "169.254.169.254", "172.16.0.1",
    "172.31.255.255", "192.0.0.8", "192.0.0.9", "192.0.2.1", "192.88.99.1", "192.168.0.1", "198.18.0.1", "198.19.255.255",
    "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::127.0.0.1", "::8.8.8.8", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:0:127.0.0.1", "::ffff:169.254.169.254",
    "64:ff9b::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::8.8.8.8", "100::1", "2001::1", "2001:0:7f00:1::",
    "2001:0:808:808:0:0:80ff:fffe", "2001:2::1", "2001:10::1", "2001:20::1", "2001:db8::1", "2002:7f00:1::", "2002:808:808::1",
    "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fec0::1", "ff02::1", "ff0e::1", "4000::1",
]  # fmt: skip
TAKEN_ADDRESSES = [
    "8.8.8.8", "1.1.1.1", "100.63.255.255", "100.128.0.1", "172.32.0.1", "192.0.1.1", "223.255.255.255", "::ffff:8.8.8.8",
    "64:ff9b::8.8.8.8", "2606:4700::1111", "2001:200::1", "2001:4860:4860::8888", "2a00:1450::1", "3ffe::1",
]  # fmt: skip


@pytest.mark.parametrize("text", REFUSED_ADDRESSES)
def test_an_address_that_is_not_plainly_public_is_refused(text: str) -> None:
    """One that is taken by mistake lets a client read what only this server can reach."""
    assert not ANY.takes(ipaddress.ip_address(text))


@pytest.mark.parametrize("text", TAKEN_ADDRESSES)
def test_a_public_address_is_taken(text: str) -> None:
    """Else webhooks would not work; a mapped one and NAT64's stand for the address inside."""
    assert ANY.takes(ipaddress.ip_address(text))


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_is_judged_alike_in_each_form_that_stands_for_it(address) -> None:
    """Wrapping is how filters are got around. What Python calls not global is never taken."""
    number = int(address)
    mapped = ipaddress.IPv6Address(0xFFFF << 32 | number)
    nat64 = ipaddress.IPv6Address((0x64FF9B << 96) | number)
    assert ANY.takes(mapped) == ANY.takes(nat64) == ANY.takes(address)
    if not address.is_global or address.is_multicast:
        assert not ANY.takes(address)


@given(st.ip_addresses(v=6))
def test_an_ipv6_address_that_python_calls_not_global_is_never_taken(address) -> None:
    """Python's registry is a second opinion: it errs to the other side only."""
    if not address.is_global and address.ipv4_mapped is None:
        assert not ANY.takes(address)


REFUSED_URLS = {
    "http://example.com/": "https://",
    "ftp://example.com/": "https://",
    "file:///etc/hosts": "https://",
    "https:example.com": "must be a URL",
    "https:///example.com": "a host's name",
    "//example.com/": "must be a URL",
    "": "must be a URL",
    "https://": "a host's name",
    "https://user@example.com/": "user or a password",
    "https://example.com:443@127.0.0.1/": "user or a password",  # not a secret
    "https://@example.com/": "user or a password",
    "https://example.com:8443/": "port 443",
    "https://example.com:22/": "port 443",
    "https://example.com:0/": "1 to 65535",
    "https://example.com:65979/": "1 to 65535",
    "https://example.com:/": "1 to 65535",
    "https://example.com:+443/": "1 to 65535",
    "https://example.com:\uff14\uff14\uff13/": "1 to 65535",
    "https://example.com\\@127.0.0.1/": "must be a URL",
    "https://example.com/a\\b": "must be a URL",
    "https://example.com/#part": "must be a URL",
    "https://example.com/a b": "must be a URL",
    "https://example.com/\r\nHost: x": "must be a URL",
    "https://example.com/é": "must be a URL",
    "https://example.com\n/": "a host's name",
    "https://exa mple.com/": "a host's name",
    "https://exa%6dple.com/": "a host's name",
    "https://-example.com/": "a host's name",
    "https://example..com/": "a host's name",
    "https://.example.com/": "a host's name",
    "https://example.com../": "a host's name",
    "https://" + "a" * 64 + ".com/": "a host's name",
    "https://" + ".".join(["a" * 60] * 5) + "/": "a host's name",
    "https://ex\u2060ample\u0000.com/": "a host's name",
    "https://\u2f33\ufffd.com/": "a host's name",
    "https://127.0.0.1/": "public address",
    "https://127.0.0.1./": "public address",
    "https://\uff11\uff12\uff17.0.0.1/": "public address",
    "https://127。0。0。1/": "public address",
    "https://127.1/": "four decimal",
    "https://127.0.1/": "four decimal",
    "https://2130706433/": "four decimal",
    "https://0x7f000001/": "four decimal",
    "https://0x7f.0.0.1/": "four decimal",
    "https://0x/": "four decimal",
    "https://017700000001/": "four decimal",
    "https://0177.0.0.1/": "four decimal",
    "https://127.0.0.0x1/": "four decimal",
    "https://256.256.256.256/": "four decimal",
    "https://8.8.8.8.8/": "four decimal",
    "https://[::1]/": "public address",
    "https://[::ffff:127.0.0.1]/": "public address",
    "https://[::ffff:7f00:1]/": "public address",
    "https://[0:0:0:0:0:0:0:1]/": "public address",
    "https://[fe80::1%25eth0]/": "between the brackets",
    "https://[2606:4700::1111%eth0]/": "between the brackets",
    "https://[v1.x]/": "between the brackets",
    "https://[2606:4700::1111/": "between the brackets",
    "https://[2606:4700::1111]x/": "between the brackets",
    "https://2606:4700::1111/": "four decimal",
    "https://example.com/" + "a" * URL_LENGTH_MAX: "at most 2000 characters",
}


@pytest.mark.parametrize("url", REFUSED_URLS, ids=lambda url: ascii(url)[:60])
def test_a_url_of_an_odd_form_is_refused(url: str) -> None:
    """Two programs that read a URL in two ways are how a check is got around."""
    with pytest.raises(ValueError, match=REFUSED_URLS[url]):
        ANY.target(url)


@pytest.mark.parametrize(
    ("url", "host", "path"),
    [
        ("https://example.com", "example.com", "/"),
        ("HTTPS://EXAMPLE.com:443/a?b=c%20d", "example.com", "/a?b=c%20d"),
        ("https://example.com.?x", "example.com", "/?x"),
        ("https://hooks_1.example.com/a/../b", "hooks_1.example.com", "/a/../b"),
        ("https://BÜCHER.example/", "xn--bcher-kva.example", "/"),
        ("https://xn--bcher-kva.example/", "xn--bcher-kva.example", "/"),
        ("https://8.8.8.8/", "8.8.8.8", "/"),
        ("https://[2606:4700:0:0::1111]/", "2606:4700::1111", "/"),
        ("https://localhost/", "localhost", "/"),  # a name: what it leads to is seen at sending
    ],
)
def test_a_url_of_the_usual_form_is_read(url: str, host: str, path: str) -> None:
    """One host, one path, whatever the case or a dot at the end."""
    target = ANY.target(url)
    assert (target.scheme, target.host, target.port, target.path) == ("https", host, 443, path)


@given(st.text() | st.from_regex(r"https?://[ -~]{0,30}", fullmatch=True))
def test_no_text_is_read_as_anything_but_a_url_or_a_clear_error(text: str) -> None:
    """Whatever comes, the host that is left is an address or a name in plain ASCII."""
    try:
        target = ANY.target(text)
    except ValueError as error:
        refused = str(error)
    else:
        refused = "must "
        assert target.address is not None or set(target.host) <= set(
            "abcdefghijklmnopqrstuvwxyz0123456789._-"
        )
    assert refused.startswith("must ")


def test_hosts_that_are_named_may_be_called_over_http_and_at_their_ports_and_no_others() -> None:
    """The operator's word on names; what they lead to is checked all the same."""
    allowed = Allowed(["Hooks.Example.com", "other.example:8443", "[2606:4700::1]:444"])
    assert allowed.target("http://hooks.example.com/").authority == "hooks.example.com"
    assert allowed.target("https://hooks.example.com/").port == 443
    assert allowed.target("http://other.example:8443/").authority == "other.example:8443"
    assert allowed.target("https://[2606:4700::1]:444/").authority == "[2606:4700::1]:444"
    for url in (
        "https://example.com/",
        "https://hooks.example.com:8443/",
        "http://hooks.example.com:443/",
        "https://other.example/",
        "https://[2606:4700::1]/",
        "https://x.hooks.example.com/",
    ):
        with pytest.raises(ValueError, match="a host and port that are allowed"):
            allowed.target(url)
    assert not allowed.takes(ipaddress.ip_address("10.0.0.1"))


def test_networks_that_are_named_count_as_public_and_narrow_nothing() -> None:
    """So can a receiver within the house be reached, beside those outside."""
    allowed = Allowed(["10.0.0.0/8", "fd00::/8"])
    assert allowed.takes(ipaddress.ip_address("10.1.2.3"))
    assert allowed.takes(ipaddress.ip_address("::ffff:10.1.2.3"))
    assert allowed.takes(ipaddress.ip_address("fd00::1"))
    assert not allowed.takes(ipaddress.ip_address("127.0.0.1"))
    assert allowed.target("https://10.0.0.1/").address == ipaddress.ip_address("10.0.0.1")
    assert allowed.target("https://example.com/")
    with pytest.raises(ValueError, match="must begin with https"):
        allowed.target("http://10.0.0.1/")


def test_an_address_that_is_named_is_a_host_and_public() -> None:
    """A receiver beside this server, named as it is called."""
    allowed = Allowed(["127.0.0.1:9000", "::1"])
    assert allowed.target("http://127.0.0.1:9000/").port == 9000
    assert allowed.target("https://[::1]/").address == ipaddress.ip_address("::1")
    assert not allowed.takes(ipaddress.ip_address("127.0.0.2"))


@pytest.mark.parametrize(
    ("allow", "kind", "message"),
    [
        ("example.com", TypeError, "allow must be a list of hosts or None, got 'example.com'"),
        (5, TypeError, "allow must be a list of hosts or None, got 5"),
        ([5], TypeError, "allow must have hosts as str, got 5"),
        (["10.0.0.1/8"], ValueError, "allow: 10.0.0.1/8 has host bits set"),
        (["https://example.com"], ValueError, "allow: 'https://example.com' does not"),
        (["a b"], ValueError, "allow: 'a b': must have a host's name"),
        (["127.1"], ValueError, "allow: '127.1': must have an IPv4 address"),
    ],
)
def test_what_is_no_host_is_refused_in_allow(allow, kind, message) -> None:
    """A list that was mistyped would allow something else."""
    with pytest.raises(kind) as caught:
        Allowed(allow)
    assert str(caught.value).startswith(message)
