"""Who is asking: a payment is made only for a client on this machine, or one that has authenticated."""

from __future__ import annotations

import ipaddress

from mitmproxy.connection import Client


def is_loopback(client: Client) -> bool:
    """Does this client's connection come from this machine's loopback address?

    mitmdump may bind wider than the user thinks, so the peer of each connection is looked at, not the option.
    """
    if not client.peername:
        return False
    try:
        address = ipaddress.ip_address(client.peername[0].partition("%")[0])
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
