"""Who is asking: a payment is made only for a client on this machine, or one that has authenticated."""

from __future__ import annotations

from functools import lru_cache

from mitmproxy import http, options
from mitmproxy.connection import Client

from proxy_addon.core.addresses import address_of


def is_loopback(client: Client) -> bool:
    """Does this client's connection come from this machine's loopback address?

    mitmdump may bind wider than the user thinks, so the peer of each connection is looked at, not the option.
    """
    return bool(client.peername) and on_loopback(str(client.peername[0]))


@lru_cache(maxsize=1024)  # asked for each request
def on_loopback(host: str) -> bool:
    """Is this a loopback address, and no name that may lead to one?"""
    address = address_of(host)
    return address is not None and address.is_loopback


def asks_password(chosen: options.Options) -> bool:
    """Must a client know something? ``proxyauth=any`` is content with whatever it says."""
    return bool(chosen.proxyauth) and chosen.proxyauth != "any"


def user_of(flow: http.HTTPFlow, chosen: options.Options) -> str | None:
    """As whom the client has shown itself to the proxy, if it had to."""
    known = flow.metadata.get("proxyauth") if asks_password(chosen) else None
    return str(known[0]) if known else None
