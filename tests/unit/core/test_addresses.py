"""Which addresses are public, and what an entry of ``[egress].allow`` covers."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy_addon.core.addresses import Address, address_of, parse_permit, parse_ports, plain_host, special

KINDS = {
    # address: why it is not public, or None
    "0.0.0.0": "unspecified",
    "0.1.2.3": "unspecified",
    "10.0.0.0": "private",
    "10.255.255.255": "private",
    "100.63.255.255": None,
    "100.64.0.0": "carrier-grade NAT",
    "100.100.100.200": "carrier-grade NAT",  # Alibaba's metadata
    "100.127.255.255": "carrier-grade NAT",
    "100.128.0.0": None,
    "127.0.0.1": "loopback",
    "127.255.255.254": "loopback",
    "128.0.0.0": None,
    "168.63.129.15": None,
    "168.63.129.16": "a cloud's own service",
    "169.253.255.255": None,
    "169.254.169.254": "link-local",
    "169.255.0.0": None,
    "172.15.255.255": None,
    "172.16.0.0": "private",
    "172.31.255.255": "private",
    "172.32.0.0": None,
    "192.0.0.192": "reserved",  # Oracle's metadata
    "192.0.1.0": None,
    "192.0.2.1": "documentation",
    "192.88.99.1": "reserved",
    "192.167.255.255": None,
    "192.168.0.1": "private",
    "192.169.0.0": None,
    "198.17.255.255": None,
    "198.18.0.0": "benchmarking",
    "198.19.255.255": "benchmarking",
    "198.51.100.7": "documentation",
    "203.0.113.7": "documentation",
    "1.1.1.1": None,
    "93.184.215.14": None,
    "223.255.255.255": None,
    "224.0.0.1": "multicast",
    "239.255.255.255": "multicast",
    "240.0.0.0": "reserved",
    "255.255.255.255": "reserved",
    "::": "unspecified",
    "::1": "loopback",
    "::2": "reserved",
    "::127.0.0.1": "reserved",  # IPv4-compatible
    "::ffff:127.0.0.1": "loopback",
    "::ffff:10.1.2.3": "private",
    "::ffff:169.254.169.254": "link-local",
    "::ffff:1.1.1.1": None,
    "::ffff:0:127.0.0.1": "reserved",  # SIIT
    "64:ff9b::7f00:1": "loopback",
    "64:ff9b::a00:1": "private",
    "64:ff9b::a9fe:a9fe": "link-local",
    "64:ff9b::1.1.1.1": None,
    "64:ff9b:1::1.1.1.1": "reserved",
    "100::1": "reserved",
    "2000::1": None,
    "2001::1": "reserved",  # Teredo
    "2001:0:7f00:1::": "reserved",
    "2001:20::1": "reserved",
    "2001:200::1": None,
    "2001:db8::1": "documentation",
    "2002:7f00:1::": "6to4",
    "2002:101:101::": "6to4",
    "2606:4700:4700::1111": None,
    "3ffe:ffff::1": None,
    "3fff::1": "documentation",
    "4000::1": "reserved",
    "5f00::1": "reserved",
    "fc00::1": "private",
    "fd00:ec2::254": "private",  # Amazon's metadata
    "fe80::1": "link-local",
    "fe80::1%eth0": "link-local",
    "febf::1": "link-local",
    "fec0::1": "private",
    "ff02::1": "multicast",
    "ffff::1": "multicast",
}


@pytest.mark.parametrize("text", KINDS)
def test_what_kind_of_address(text: str) -> None:
    address = address_of(text)
    assert address is not None
    assert special(address) == KINDS[text]


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6, network="2000::/3")))
def test_public_is_at_least_as_narrow_as_pythons(address: Address) -> None:
    if special(address) is None:
        assert address.is_global
        assert not address.is_multicast


@given(st.ip_addresses(v=4))
def test_an_address_within_another_is_judged_by_itself(inner: IPv4Address) -> None:
    mapped = ip_address(f"::ffff:{inner}")
    assert address_of(str(mapped)) == inner
    assert special(mapped) == special(inner)
    assert special(IPv6Address(int(IPv6Address("64:ff9b::")) + int(inner))) == special(inner)
    high, low = divmod(int(inner), 1 << 16)
    for text in (f"::{inner}", f"::ffff:0:{inner}", f"2002:{high:x}:{low:x}::", f"2001:0:{high:x}:{low:x}::"):
        assert special(ip_address(text)) is not None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "localhost",
        "127.1",
        "2130706433",
        "0177.0.0.1",
        "0x7f.0.0.1",
        "127.0.0.1.",
        "127.0.0.01",
        "[::1]",
        "1.2.3.4:5",
    ],
)
def test_what_is_no_address(text: str) -> None:
    assert address_of(text) is None


PERMITS: list[tuple[str, list[tuple[str, str]], list[tuple[str, str]]]] = [
    # entry; (host, address) that it covers; and that it does not
    ("127.0.0.1", [("127.0.0.1", "127.0.0.1"), ("x.test", "::ffff:127.0.0.1")], [("127.0.0.1", "127.0.0.2")]),
    ("10.0.0.0/8", [("x.test", "10.9.8.7")], [("x.test", "11.0.0.0"), ("10.0.0.1", "64:ff9b::a00:1")]),
    ("::1", [("::1", "::1")], [("::1", "::2"), ("::1", "127.0.0.1")]),
    ("fd00::/8", [("x.test", "fd12::1")], [("x.test", "fc00::1"), ("x.test", "10.0.0.1")]),
    (
        "localhost",
        [("localhost", "127.0.0.1"), ("localhost", "::1")],
        [("localhost", "10.0.0.1"), ("a.localhost", "::1")],
    ),
    ("Intranet.Example", [("intranet.example", "10.0.0.1")], [("x.intranet.example", "10.0.0.1")]),
    (
        "*.corp.example",
        [("a.corp.example", "10.0.0.1"), ("a.b.corp.example", "::1")],
        [
            ("corp.example", "::1"),
            ("xcorp.example", "::1"),
            ("another-corp.example", "::1"),
            (".corp.example", "::1"),
            ("a.long.name.of.somebody.else.example", "::1"),
        ],
    ),
]


@pytest.mark.parametrize(("entry", "inside", "outside"), PERMITS, ids=[one[0] for one in PERMITS])
def test_what_an_entry_covers(entry: str, inside: list[Any], outside: list[Any]) -> None:
    permit = parse_permit(entry)
    assert permit.port is None
    assert all(permit.covers(host, ip_address(address)) for host, address in inside)
    assert not any(permit.covers(host, ip_address(address)) for host, address in outside)


@pytest.mark.parametrize(
    ("entry", "port", "network", "name"),
    [
        ("127.0.0.1:3000", 3000, "127.0.0.1/32", ""),
        ("[::1]:8080", 8080, "::1/128", ""),
        ("[::1]", None, "::1/128", ""),
        ("[fd00::/8]:1", 1, "fd00::/8", ""),
        ("fd00::1", None, "fd00::1/128", ""),
        ("10.0.0.0/8:5432", 5432, "10.0.0.0/8", ""),
        ("localhost:3000", 3000, None, "localhost"),
        ("*.corp.example:443", 443, None, "*.corp.example"),
        ("metadata", None, None, "metadata"),
    ],
)
def test_how_an_entry_is_read(entry: str, port: int | None, network: str | None, name: str) -> None:
    permit = parse_permit(entry)
    assert (permit.port, permit.network and str(permit.network), permit.name) == (port, network, name)


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("", "expected an address, a network or a name"),
        ("*", "expected an address"),
        ("a.*.example", "expected an address"),
        ("http://x.test", "expected an address"),
        ("127.1", "expected an address"),
        ("2130706433", "expected an address"),
        ("0x7f000001", "expected an address"),
        ("127.0.0.256", "expected an address"),
        ("[x.test]:1", "expected an address"),
        ("[::1", "expected an address"),
        ("::1]", "expected an address"),
        ("[10.0.0.0/8", "expected an address"),
        ("[10.0.0.0/80", "expected an address"),
        ("x10.0.0.0/8]", "expected an address"),
        ("::1:", "expected an address"),
        ("x.test:", "expected an address"),
        ("x.test:0", "port 0 does not exist; expected 1 to 65535"),
        ("x.test:65536", "port 65536 does not exist"),
        ("10.0.0.1/8", "10.0.0.1/8 has host bits set; expected 10.0.0.0/8"),
        ("10.0.0.0/33", "expected an address"),
        ("bücher.example", "expected an address"),
    ],
)
def test_an_entry_that_is_none(entry: str, says: str) -> None:
    with pytest.raises(ValueError, match=says.replace("*", r"\*")):
        parse_permit(entry)


@given(st.text(max_size=40))
def test_any_text_is_an_entry_or_a_value_error(text: str) -> None:
    try:
        permit = parse_permit(text)
    except ValueError:
        return
    assert (permit.network is None) != (permit.name == "")


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1, (1, 1)), (65535, (65535, 65535)), ("80", (80, 80)), ("8000-8999", (8000, 8999)), ("5-5", (5, 5))],
)
def test_ports(value: object, expected: tuple[int, int]) -> None:
    assert parse_ports(value) == expected


@pytest.mark.parametrize(
    "value", [0, -1, 65536, True, 80.0, None, "", "0", "9-8", "1-70000", "80-", "x", "٣", [80]]
)
def test_no_ports(value: object) -> None:
    with pytest.raises(ValueError, match="expected a port from 1 to 65535"):
        parse_ports(value)


@pytest.mark.parametrize(
    ("host", "plain"),
    [
        ("LocalHost", "localhost"),
        ("api.example.com.", "api.example.com"),
        ("[::1]", "::1"),
        ("x..", "x"),
        ("", ""),
    ],
)
def test_a_host_as_rules_compare_it(host: str, plain: str) -> None:
    assert plain_host(host) == plain


@pytest.mark.parametrize("port", [1, 443, 65535])
def test_every_port_that_there_is(port: int) -> None:
    assert parse_permit(f"10.0.0.1:{port}").port == port
