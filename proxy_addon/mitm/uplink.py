"""One client request's way upstream: which attempt is on which connection, and how far it has got.

The stream (`layer.py`) believes that it talks to the server; what it sends comes here. Here it is kept, and
sent on: once, or more often. Only here does anything of the gate's meet the request, on a copy that no flow
ever sees.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from mitmproxy import http
from mitmproxy.connection import Client, Connection, Server
from mitmproxy.proxy.commands import RequestWakeup
from mitmproxy.proxy.layer import CommandGenerator, Layer
from mitmproxy.proxy.layers.http import GetHttpConnection, HttpLayer, SendHttp
from mitmproxy.proxy.layers.http._events import (
    RequestData,
    RequestEndOfMessage,
    RequestHeaders,
    RequestTrailers,
    ResponseProtocolError,
)
from mitmproxy.proxy.layers.http._http1 import Http1Client
from mitmproxy.proxy.layers.http._http2 import Http2Client

from proxy_addon.mitm import compat
from proxy_addon.mitm.gate import NOTHING, Outgoing
from proxy_addon.mitm.heads import Fields, clean
from proxy_addon.mitm.timer import Timer
from proxy_addon.mitm.upload import Upload

Backlog = Callable[[Client, Connection], int | None]
"""Bytes that wait in a connection's write buffer; None if that cannot be known."""

CHUNK = 256 * 1024  # of a stored body, handed on at once
HIGH_WATER = 1024 * 1024  # with so much waiting to be written, nothing is added
PACE_SECONDS = 0.005  # until the next look
FORGOTTEN = -1  # a stream id that no stream has: what is sent to it is dropped

_LAST_STREAM = re.compile(r"last_stream_id:(\d+)")


class GetFreshConnection(GetHttpConnection):
    """As its base, but never an existing connection that has been used before."""


class Sent(SendHttp):
    """A command of the uplink's own: on its way, not to be taken in again."""


class Uplink:
    def __init__(self, layer: HttpLayer, stream_id: int, upload: Upload, backlog: Backlog) -> None:
        self._layer = layer
        self._stream_id = stream_id
        self._backlog = backlog
        self._timer: RequestWakeup | None = None
        self.upload = upload
        self.head: http.Request | None = None  # as the client and the addons made it; nothing of ours in it
        self.outgoing = NOTHING
        self.connection: Connection | None = None
        self.reused = False  # the connection has carried another request before this attempt
        self.left = False  # this attempt's header has been handed on: from here on, what it did is not known
        self.open = False  # and more may follow it
        self.ended = False  # its body's end too has been handed on
        self.held = False  # keep what comes from the client, send none of it now

    def command(self, request: http.Request, via: Server, *, fresh: bool) -> GetHttpConnection:
        """How to ask for a connection to where the request went, or goes, first."""
        target = self.head or request
        kind = GetFreshConnection if fresh else GetHttpConnection
        return kind(
            (target.host, target.port),
            target.scheme == "https",
            via.via,
            via.transport_protocol,
        )

    def known_connections(self) -> set[Connection]:
        return {c for c in self._layer.connections if c.connected}

    def attach(self, connection: Connection, *, known: bool) -> None:
        self.connection = connection
        client = self._client_layer()
        # An h2 connection may be known only for the server's first settings.
        unused = isinstance(client, Http2Client) and not client.h2_conn.highest_outbound_stream_id
        self.reused = known and not unused
        self.left = self.open = self.ended = False

    def keep_head(self, request: http.Request) -> None:
        self.head = with_fields(request, NOTHING)
        self.head.headers.fields = clean(request.headers.fields)

    def start(self, outgoing: Outgoing, *, end_stream: bool) -> CommandGenerator[None]:
        """Begin an attempt: the very step at which what the gate gave leaves."""
        assert self.head is not None
        assert self.connection is not None
        self.outgoing = outgoing
        self.left = self.open = True
        self.held = False
        yield Sent(
            RequestHeaders(self._stream_id, with_fields(self.head, outgoing), end_stream), self.connection
        )

    def restart(self, outgoing: Outgoing) -> CommandGenerator[None]:
        self.upload.rewind()
        empty = self.upload.complete and not self.upload.size and not self.upload.trailers
        yield from self.start(outgoing, end_stream=empty)
        yield from self.pump()

    @property
    def busy(self) -> bool:
        """An attempt is open, and its request has not left to its end."""
        return self.open and not self.ended

    def pump(self) -> CommandGenerator[None]:
        """Send what has been kept and not sent, as far as the connection takes it.

        Layers have no back-pressure: a write is never refused. So look at what already waits, and come back.
        """
        connection = self.connection
        if connection is None or not self.open or self.held or self.ended or self._timer:
            return
        if not connection.connected:
            self.open = False  # the stream will be told
            return
        upload = self.upload
        while upload.pending:
            waiting = self._waiting()
            if waiting is None or waiting > HIGH_WATER:
                self._timer = Timer(PACE_SECONDS)
                yield self._timer
                if waiting is not None:
                    return
            yield Sent(RequestData(self._stream_id, upload.take(CHUNK)), connection)
            if waiting is None:
                return
        if upload.complete:
            self.ended = True
            if upload.trailers:
                yield Sent(RequestTrailers(self._stream_id, upload.trailers), connection)
            yield Sent(RequestEndOfMessage(self._stream_id), connection)

    def woken(self, timer: RequestWakeup) -> CommandGenerator[None]:
        if timer is self._timer:
            self._timer = None
            yield from self.pump()

    def abandon(self, *, drained: bool, close: bool) -> CommandGenerator[None]:
        """Be done with this attempt: its connection is free or gone, and nothing more of it reaches the stream."""
        connection, client = self.connection, self._client_layer()
        if connection is None or client is None:
            return
        clean = drained and self.ended
        self.open = False
        if isinstance(client, Http2Client):
            client.stream_queue.pop(self._stream_id, None)  # waited for a free stream: never sent
            if not clean and self._stream_id in client.our_stream_id:
                yield Sent(compat.cancelled(self._stream_id, "not needed any more"), connection)
            # A later event on the old h2 stream must not be taken for the next attempt's.
            # `streams` is not touched: we may be called from within a loop over it.
            ours = client.our_stream_id.pop(self._stream_id, None)
            if ours is not None:
                client.their_stream_id[ours] = FORGOTTEN
        elif close or not clean:
            yield Sent(compat.cancelled(self._stream_id, "not needed any more"), connection)
            if isinstance(client, Http1Client) and client.stream_id == self._stream_id:
                client.stream_id = FORGOTTEN

    @property
    def multiplexed(self) -> bool:
        return isinstance(self._client_layer(), Http2Client)

    @property
    def nothing_received(self) -> bool:
        """No byte of an answer has come on a connection that was there before, and now is gone."""
        client = self._client_layer()
        gone = self.reused and self.connection is not None and not self.connection.connected
        return gone and not (isinstance(client, Http1Client) and len(client.buf))

    def unsent(self, error: ResponseProtocolError | None) -> bool:
        """Is it certain that the server has not acted on this attempt?"""
        if not self.left:
            return True
        client = self._client_layer()
        if not isinstance(client, Http2Client):
            return False
        if self._stream_id in client.stream_queue:
            return True  # still waiting for a free stream on the connection
        if error is None:
            return False
        if "(REFUSED_STREAM)" in error.message:
            return True
        ours = client.our_stream_id.get(self._stream_id)
        last = _LAST_STREAM.search(error.message) if "ConnectionTerminated" in error.message else None
        return ours is not None and last is not None and int(last[1]) < ours

    def _client_layer(self) -> Layer | None:
        """The protocol layer of our connection, at the end of its stack (TLS, upstream proxy, …)."""
        if self.connection is None or self.connection not in self._layer.connections:
            return None
        return self._layer.connections[self.connection].context.layers[-1]

    def _waiting(self) -> int | None:
        """Bytes handed on that have not reached the kernel."""
        assert self.connection is not None
        waiting = self._backlog(self._layer.context.client, self.connection)
        client = self._client_layer()
        if isinstance(client, Http2Client):
            if self._stream_id in client.stream_queue:
                return HIGH_WATER + 1
            ours = client.our_stream_id.get(self._stream_id, 0)
            buffered = client.h2_conn.stream_buffers.get(ours, ())
            waiting = (waiting or 0) + sum(len(frame.data) for frame in buffered)
        return waiting


def _with(fields: Fields, name: str, value: str, *, replacing: bool) -> Fields:
    """With a field of that name: in the place of those that are there, or only if there is none."""
    raw, text = name.encode(), value.encode("utf-8", "surrogateescape")
    same = raw.lower()
    places = [place for place, (found, _) in enumerate(fields) if found.lower() == same]
    if not places:
        return (*fields, (raw, text))
    if not replacing:
        return fields
    first = places[0]
    rest = (field for field in fields[first + 1 :] if field[0].lower() != same)
    return (*fields[:first], (fields[first][0], text), *rest)


def with_fields(request: http.Request, outgoing: Outgoing) -> http.Request:
    """A copy of the request's header with `outgoing` in it; the body is shared."""
    fields = request.headers.fields
    lower = request.is_http2 or request.is_http3  # there, field names must be
    for name, value in outgoing.sets:
        fields = _with(fields, name.lower() if lower else name, value, replacing=True)
    for name, value in outgoing.adds:
        fields = _with(fields, name.lower() if lower else name, value, replacing=False)
    headers = http.Headers.__new__(http.Headers)
    headers.fields = fields
    # By hand: mitmproxy's own `copy` is a serialisation and back (200 µs), its constructor checks types (70 µs).
    clone = http.Request.__new__(http.Request)
    clone.data = http.RequestData.__new__(http.RequestData)
    vars(clone.data).update(vars(request.data), headers=headers)
    return clone
