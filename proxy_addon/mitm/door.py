"""The front door: who may come in, where, and with what; and that a proxy that stands open says so."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from mitmproxy import ctx, http, options
from mitmproxy.proxy import mode_specs

from proxy_addon.mitm.peers import asks_password, is_loopback, on_loopback

logger = logging.getLogger(__name__)


class Door:
    """An addon."""

    def running(self) -> None:
        proxyserver: Any = ctx.master.addons.get("proxyserver")  # type: ignore[no-untyped-call]
        if doors := open_doors(proxyserver.listen_addrs(), ctx.options):
            logger.warning(
                "bursar: other machines reach this proxy at %s, and it asks them for no password: they are not paid"
                " for, and reach public addresses only. Set proxyauth, or listen on 127.0.0.1",
                doors,
            )

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        # mitmproxy notes with which password a client came; what is on a flow is in dumps and scripts.
        if known := flow.metadata.get("proxyauth"):
            flow.metadata["proxyauth"] = (known[0], "")

    http_connect = requestheaders


def why_unpaid(flow: http.HTTPFlow, chosen: options.Options) -> str | None:
    """Why this client is not paid for, by who it is and how the proxy was started."""
    if not is_loopback(flow.client_conn) and not asks_password(chosen):
        return (
            "the client is on another machine and the proxy asks for no password; anyone there could spend from this"
            " wallet. Set proxyauth, or listen on 127.0.0.1 only"
        )
    if chosen.ssl_insecure and flow.request.scheme == "https":
        return "ssl_insecure is set, so nobody knows who would get the money"
    return None


def open_doors(listening: Iterable[tuple[Any, ...]], chosen: options.Options) -> str:
    """Where other machines reach a proxy that asks for no password; empty if nowhere."""
    if asks_password(chosen):
        return ""
    wide = [address[:2] for address in listening if not on_loopback(str(address[0]))]
    return ", ".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in wide)


def to_listen(chosen: options.Options) -> list[tuple[str, int]]:
    """Where a proxy with these options is about to listen."""
    specs = [mode_specs.ProxyMode.parse(mode) for mode in chosen.mode]
    hosts = [(spec.listen_host(chosen.listen_host), spec.listen_port(chosen.listen_port)) for spec in specs]
    everywhere = "0.0.0.0"  # noqa: S104 (said, not done)
    # As mitmproxy has it, localhost is loopback, in whatever family.
    return [
        ("127.0.0.1" if host == "localhost" else host or everywhere, port)
        for host, port in hosts
        if port is not None
    ]
