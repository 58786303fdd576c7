"""Which addresses are on the public internet, and how the config names others that may be reached all the same.

The table is our own, not `ipaddress.is_global`: that changed between Python versions, and counts multicast in.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Final

Address = IPv4Address | IPv6Address


class Asker(StrEnum):
    """On whose account a connection is made."""

    NEAR = "a client on this machine"
    FAR = "a client on another machine"
    OURSELVES = "an errand of our own"


# RFC 6890 and its updates (IANA's registries of special-purpose addresses).
_SPECIAL_V4: Final = tuple(
    (IPv4Network(network), kind)
    for network, kind in (
        ("0.0.0.0/8", "unspecified"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "carrier-grade NAT"),
        ("127.0.0.0/8", "loopback"),
        ("168.63.129.16/32", "a cloud's own service"),  # Azure's, within public space
        ("169.254.0.0/16", "link-local"),  # where clouds keep a machine's credentials
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "reserved"),
        ("192.0.2.0/24", "documentation"),
        ("192.88.99.0/24", "reserved"),
        ("192.168.0.0/16", "private"),
        ("198.18.0.0/15", "benchmarking"),
        ("198.51.100.0/24", "documentation"),
        ("203.0.113.0/24", "documentation"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),
    )
)
_SPECIAL_V6: Final = tuple(
    (IPv6Network(network), kind)
    for network, kind in (
        ("::1/128", "loopback"),
        ("::/128", "unspecified"),
        ("fc00::/7", "private"),
        ("fe80::/10", "link-local"),
        ("fec0::/10", "private"),
        ("ff00::/8", "multicast"),
        ("2001::/23", "reserved"),  # Teredo, which carries an IPv4 address, among others
        ("2001:db8::/32", "documentation"),
        ("2002::/16", "6to4"),  # carries an IPv4 address
        ("3fff::/20", "documentation"),
    )
)
_GLOBAL_UNICAST: Final = IPv6Network("2000::/3")
_NAT64: Final = IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are the IPv4 address that is reached


def address_of(text: str) -> Address | None:
    """An address as the operating system writes it, with or without a scope (``fe80::1%eth0``); None for a name.

    Short, decimal and hexadecimal forms of IPv4 are none: what they mean is the resolver's to say.
    """
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return _unmapped(address)


@lru_cache(maxsize=4096)
def special(address: Address) -> str | None:
    """What kind of address this is that is not on the public internet; None if it is on it."""
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or (
            IPv4Address(int(address) & 0xFFFF_FFFF) if address in _NAT64 else None
        )
        if inner is None:
            named = next((kind for network, kind in _SPECIAL_V6 if address in network), None)
            return named or (None if address in _GLOBAL_UNICAST else "reserved")
        address = inner
    return next((kind for network, kind in _SPECIAL_V4 if address in network), None)


def _unmapped(address: Address) -> Address:
    """``::ffff:10.0.0.1`` is 10.0.0.1: the same packets leave."""
    return getattr(address, "ipv4_mapped", None) or address


@dataclass(frozen=True, slots=True)
class Permit:
    """One entry of ``[egress].allow``: a place that may be reached though it is not on the public internet."""

    network: IPv4Network | IPv6Network | None  # else `name`
    name: str  # "host" or "*.host"; wherever it leads
    port: int | None

    def covers(self, host: str, address: Address) -> bool:
        """`host` as it was asked for (`plain_host`), `address` as it was found."""
        if self.network is not None:
            address = _unmapped(address)
            return address.version == self.network.version and address in self.network
        if self.name.startswith("*."):
            return host.endswith(self.name[1:]) and len(host) >= len(self.name)
        # No resolver has a say in what this machine is.
        return host == self.name and (host != "localhost" or special(address) == "loopback")


_PORT: Final = re.compile(r"(.+):([0-9]{1,5})\Z", re.DOTALL)
_NAME: Final = re.compile(r"(?:\*\.)?[a-z0-9_](?:[a-z0-9_.-]*[a-z0-9_])?\Z")
_NUMERIC: Final = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)\Z")  # resolvers take these for addresses
_EXPECTED: Final = (
    'expected an address, a network or a name, with or without a port, such as "127.0.0.1:3000", "10.0.0.0/8",'
    ' "[fd00::1]:8080", "localhost" or "*.corp.example"'
)


def parse_permit(text: str) -> Permit:
    """Raises ``ValueError`` that says what to write."""
    rest, port = text.strip().lower(), None
    network = _network(rest)
    if network is None and (found := _PORT.match(rest)) and (":" not in found[1] or rest.startswith("[")):
        rest, port = found[1], int(found[2])
        if not 1 <= port <= 65535:
            raise ValueError(f"port {port} does not exist; expected 1 to 65535")
    if rest.startswith("[") and rest.endswith("]"):
        network = _network(rest[1:-1])
        if network is None:
            raise ValueError(_EXPECTED)
    network = network or _network(rest)
    if network is not None:
        return Permit(network, "", port)
    if not _NAME.match(rest) or _NUMERIC.match(rest):
        raise ValueError(_EXPECTED)
    return Permit(None, rest, port)


def _network(text: str) -> IPv4Network | IPv6Network | None:
    try:
        return ip_network(text)
    except ValueError as error:
        if "host bits" in str(error):
            raise ValueError(f"{error}; expected {ip_network(text, strict=False)}") from None
        return None


def parse_ports(value: object) -> tuple[int, int]:
    """A port, or a range such as ``"8000-8999"``: the first and the last. Raises ``ValueError``."""
    match value:
        case bool():
            first = last = 0
        case int():
            first = last = value
        case str() if found := re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", value):
            first, last = int(found[1]), int(found[2] or found[1])
        case _:
            first = last = 0
    if not 1 <= first <= last <= 65535:
        raise ValueError(f'expected a port from 1 to 65535, or a range such as "8000-8999", not {value!r}')
    return first, last


def plain_host(host: str) -> str:
    """A host as rules compare it: small letters, without brackets and the root's dot."""
    return host.strip("[]").lower().rstrip(".")
