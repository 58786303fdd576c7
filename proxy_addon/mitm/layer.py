"""Our streams in mitmproxy's HTTP layer."""

from __future__ import annotations

from typing import Any, cast

from mitmproxy.proxy import events
from mitmproxy.proxy.layer import CommandGenerator, NextLayer
from mitmproxy.proxy.layers.http import GetHttpConnection, HttpLayer, RegisterHttpConnection

from proxy_addon.mitm import heads
from proxy_addon.mitm.paying import Paying
from proxy_addon.mitm.stream import PayingStream
from proxy_addon.mitm.uplink import GetFreshConnection


class PayingHttpLayer(HttpLayer):
    """Never made, only swapped in: everything that mitmproxy has set up stays."""

    paying: Paying

    def make_stream(self, stream_id: int) -> CommandGenerator[None]:
        heads.bound(self.connections.get(self.context.client))
        stream = PayingStream(self.context.fork(), stream_id, self, self.paying)
        self.streams[stream_id] = stream
        yield from self.event_to_child(stream, events.Start())

    def get_connection(self, event: GetHttpConnection, *, reuse: bool = True) -> CommandGenerator[None]:
        yield from super().get_connection(event, reuse=reuse and not isinstance(event, GetFreshConnection))

    def register_connection(self, command: RegisterHttpConnection) -> CommandGenerator[None]:
        found = self.connections.get(command.connection)
        heads.bound(None if found is None else found.context.layers[-1])
        yield from super().register_connection(command)


def swap(nextlayer: NextLayer, paying: Paying) -> None:
    """Let our streams serve this connection, if mitmproxy has decided that it is HTTP."""
    if nextlayer.context.options.proxy_debug:
        return  # it logs every byte that is sent, credentials too
    found: Any = nextlayer.layer
    while found is not None:  # the HTTP layer may be the child of a TLS layer
        if type(found) is HttpLayer:
            found.__class__ = PayingHttpLayer
            cast(PayingHttpLayer, found).paying = paying
        found = getattr(found, "child_layer", None)
