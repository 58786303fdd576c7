"""Our streams in mitmproxy's HTTP layer."""

from __future__ import annotations

import logging
from typing import Any, cast

from mitmproxy.proxy import events
from mitmproxy.proxy.layer import CommandGenerator, Layer, NextLayer
from mitmproxy.proxy.layers.http import GetHttpConnection, HttpLayer, HttpStream, RegisterHttpConnection

from proxy_addon.mitm import heads
from proxy_addon.mitm.guard import describe
from proxy_addon.mitm.paying import Paying
from proxy_addon.mitm.stream import PayingStream
from proxy_addon.mitm.uplink import GetFreshConnection

logger = logging.getLogger(__name__)


class PayingHttpLayer(HttpLayer):
    """Never made, only swapped in: everything that mitmproxy has set up stays."""

    paying: Paying

    def _handle_event(self, event: events.Event) -> CommandGenerator[None]:
        handling: CommandGenerator[None] = super()._handle_event(event)
        return self._started(handling) if isinstance(event, events.Start) else handling

    def _started(self, handling: CommandGenerator[None]) -> CommandGenerator[None]:
        yield from handling
        self._bound(self.connections.get(self.context.client))

    def make_stream(self, stream_id: int) -> CommandGenerator[None]:
        try:
            stream: HttpStream = PayingStream(self.context.fork(), stream_id, self, self.paying)
        except Exception as error:
            logger.error("A request is not paid for, it goes on without: %s", describe(error))
            stream = HttpStream(self.context.fork(), stream_id)
        self.streams[stream_id] = stream
        yield from self.event_to_child(stream, events.Start())

    def get_connection(self, event: GetHttpConnection, *, reuse: bool = True) -> CommandGenerator[None]:
        yield from super().get_connection(event, reuse=reuse and not isinstance(event, GetFreshConnection))

    def register_connection(self, command: RegisterHttpConnection) -> CommandGenerator[None]:
        found = self.connections.get(command.connection)
        self._bound(None if found is None else found.context.layers[-1])
        yield from super().register_connection(command)

    @staticmethod
    def _bound(connection: Layer | None) -> None:
        try:
            heads.bound(connection)
        except Exception as error:  # here nobody would ever answer the client
            logger.error("A connection's headers have no limit: %s", describe(error))


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
