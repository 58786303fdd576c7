"""Where connections may go: resolve, check, and hand out the very addresses that were checked.

A proxy looks names up for others, so what a client has checked (a browser, an agent's fetch tool) proves
nothing about where the proxy connects. Whoever dials must use an address from `resolve`, never look up again.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from ipaddress import IPv4Address
from typing import Any, Final

from proxy_addon.core.addresses import (
    Address,
    Asker,
    address_of,
    parse_permit,
    plain_host,
    special,
)
from proxy_addon.core.errors import LocalRefusal
from proxy_addon.core.policy import Origin, SpendPolicy

AddressInfo = tuple[int, int, int, str, tuple[Any, ...]]
"""As ``getaddrinfo`` has it."""

REASON: Final = "destination-not-allowed"
_LOOPBACK: Final = IPv4Address("127.0.0.1")
_NOBODY: Final = SpendPolicy(hosts=(), chains={}, max_per_day="0", max_lifetime="0")


class Egress:
    """What the config says of destinations.

    The public internet may be reached. What is not on it may be reached if ``[egress].allow`` names it.
    Besides, a host that is written in ``[[policy.hosts]]`` as an address, or as localhost, is what is
    written: clients on this machine, and our own errands, may go there.

    A client on this machine could make its connections itself, so its others are not checked, unless
    ``check_local_clients`` is set. What the config pays is checked for every client: a credential goes to
    no place that is not allowed.
    """

    def __init__(
        self,
        policy: SpendPolicy = _NOBODY,
        *,
        allow: Iterable[str] = (),
        ports: Iterable[tuple[int, int]] = ((80, 80), (443, 443)),
        check_local_clients: bool = False,
    ) -> None:
        self._policy = policy
        self._permits = tuple(parse_permit(text) for text in allow)
        self._ports = tuple(ports)
        self._check_local_clients = check_local_clients

    def checks(self, host: str, port: int, asker: Asker) -> bool:
        """Is this destination checked? If not, it need not be resolved by us."""
        return asker is not Asker.NEAR or self._check_local_clients or self._paid(host, port)

    async def resolve(self, host: str, port: int, asker: Asker) -> list[AddressInfo]:
        """The addresses of ``host:port`` that may be dialled, in the resolver's order; at least one.

        Raises `LocalRefusal` if there is none, and ``OSError`` if the name cannot be resolved.
        """
        if self._off_list(port, asker) and not (
            self._paid(host, port) or any(permit.port == port for permit in self._permits)
        ):
            raise LocalRefusal(
                REASON,
                f"{_shown(host, port)} is on a port that {asker} may not use; if it should: add it to"
                " [egress].ports, or to [egress].allow together with its host",
            )
        found: list[Any] = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        allowed = [info for info in found if self._allowed(host, port, _address(info), asker)]
        if not allowed:
            raise _refusal(host, port, _address(found[0]), asker)
        return allowed

    def refusal_unresolved(self, host: str, port: int, asker: Asker) -> LocalRefusal | None:
        """What can be said of a destination that somebody else looks up, such as an upstream proxy. No I/O."""
        if not self.checks(host, port, asker):
            return None
        bad = [one for one in _literal(host, port) if not self._allowed(host, port, one, asker)]
        return _refusal(host, port, bad[0], asker) if bad else None

    # -- the rules

    def _paid(self, host: str, port: int) -> bool:
        """Is there a rule to pay at this place, whatever is spoken there?"""
        plain = plain_host(host)
        return any(self._policy.rule_for(Origin(scheme, plain, port)) for scheme in ("https", "http"))

    def _off_list(self, port: int, asker: Asker) -> bool:
        """Does this client depend on the list of ports, and is this one not on it?"""
        listed = asker is Asker.FAR or (asker is Asker.NEAR and self._check_local_clients)
        return listed and not any(first <= port <= last for first, last in self._ports)

    def _allowed(self, host: str, port: int, address: Address, asker: Asker) -> bool:
        plain, off_list = plain_host(host), self._off_list(port, asker)
        for permit in self._permits:
            if permit.port not in (port, None) or (permit.port is None and off_list):
                continue
            if permit.covers(plain, address):
                return True
        if special(address) is None:
            return not off_list or self._paid(host, port)
        # What [[policy.hosts]] says is whom we pay, not what other machines may reach here.
        return asker is not Asker.FAR and self._written(plain, port, address, asker)

    def _written(self, plain: str, port: int, address: Address, asker: Asker) -> bool:
        """Is this address itself written in ``[[policy.hosts]]``?

        The URL of an errand comes from a channel's record: it was, when the channel was opened.
        """
        if asker is Asker.NEAR and not self._paid(plain, port):
            return False
        if plain == "localhost":
            return special(address) == "loopback"
        return address_of(plain) == address


def _literal(host: str, port: int) -> list[Address]:
    """What a host means that is no name to look up; resolvers know more ways to write an address than we do."""
    plain = plain_host(host)
    if plain == "localhost" or plain.endswith(".localhost"):
        return [_LOOPBACK]
    try:
        found = socket.getaddrinfo(plain, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return []
    return [_address(info) for info in found]


def _address(info: Any) -> Address:
    address = address_of(str(info[4][0]))
    assert address is not None, "a resolver gives addresses"
    return address


def _refusal(host: str, port: int, address: Address, asker: Asker) -> LocalRefusal:
    return LocalRefusal(
        REASON,
        f"{_shown(host, port)} is at {address} ({special(address) or 'public'}), where {asker} may not go;"
        f' if it should: [egress].allow = ["{_shown(str(address), port)}"]',
    )


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
