"""The request's half of the replay: how a request leaves, once or more often, and how a stream ends."""

from __future__ import annotations

import logging
from abc import abstractmethod
from typing import Any

from mitmproxy import flow
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layer import CommandGenerator
from mitmproxy.proxy.layers.http import DropStream, HttpLayer, HttpStream, SendHttp
from mitmproxy.proxy.layers.http._base import HttpEvent
from mitmproxy.proxy.layers.http._events import (
    RequestData,
    RequestEndOfMessage,
    RequestHeaders,
    RequestProtocolError,
    RequestTrailers,
)
from mitmproxy.proxy.layers.http._hooks import HttpErrorHook, HttpRequestHeadersHook

from proxy_addon.mitm import compat
from proxy_addon.mitm.case import Case
from proxy_addon.mitm.gate import NOTHING, Outcome, Outgoing
from proxy_addon.mitm.guard import describe
from proxy_addon.mitm.hooks import BursarPrepareHook, PrepareErrand
from proxy_addon.mitm.paying import Paying
from proxy_addon.mitm.uplink import Sent, Uplink
from proxy_addon.mitm.upload import EMPTY_SHA256, Upload, is_short, sha256_of

logger = logging.getLogger(__name__)

_UPSTREAM = (RequestHeaders, RequestData, RequestTrailers, RequestEndOfMessage, RequestProtocolError)


class SendingStream(HttpStream):
    """What leaves goes through an uplink. Streams without a ticket run mitmproxy's own code, uninterrupted."""

    def __init__(self, context: Context, stream_id: int, layer: HttpLayer, paying: Paying) -> None:
        super().__init__(context, stream_id)
        self._paying = paying
        self._layer = layer
        self._uplink: Uplink | None = None
        self._case = Case(paying.gate)
        self._withhold = False  # nothing leaves until the body is complete: the gate wants its digest
        self._spools = False  # the body goes through the uplink's file, not through memory
        self._gone = False
        self._ending = False  # all is done but for the rest of an upload, which waits to be sent
        self._certain: Outcome | None = None

    @abstractmethod
    def _take_event(self, event: events.Event) -> CommandGenerator[None]:
        """In the place of `handle_event` on a watched stream."""

    @abstractmethod
    def _progress(self) -> Outcome:
        """How it has ended, if it ends now."""

    # -- the request ---------------------------------------------------------------------------------------

    def state_wait_for_request_headers(self, event: RequestHeaders) -> CommandGenerator[None]:
        generator = super().state_wait_for_request_headers(event)
        if event.request.method == "CONNECT":
            yield from generator
            return
        for command in generator:  # up to the hook, nothing that it yields has an answer
            yield command
            if isinstance(command, HttpRequestHeadersHook):
                # All addons have had their say on where it goes. What follows depends on the gate.
                self._consider(event)
                break
        if self._uplink is None:
            yield from generator
        else:
            yield from self._guarded(self._through(generator))

    def _consider(self, event: RequestHeaders) -> None:
        if self.flow.error or self.flow.response or not self.flow.live:
            return
        try:
            self._watch(event)
        except Exception as error:
            logger.error("A request is not paid for, it goes on without: %s", describe(error))
            self._unwatch()

    def _unwatch(self) -> None:
        """Before anything of it has left: from here on it is mitmproxy's alone."""
        self._uplink, self._withhold, self._spools = None, False, False
        self.__dict__.pop("handle_event", None)
        self._case.failed = True
        self.finish(Outcome.NOT_SENT)

    def _watch(self, event: RequestHeaders) -> None:
        self._case.open(self.flow)
        ticket = self._case.ticket
        if ticket is None:
            return
        limits = self._paying.limits
        request = self.flow.request
        if not request.stream and not event.end_stream:
            # A limit on bodies of unknown length is kept by mitmproxy's own buffering only.
            limited = bool(self.context.options.body_size_limit)
            request.stream = not limited and not is_short(request, limits.buffered_body)
        buffered = event.end_stream or not request.stream
        upload = Upload(memory=limits.spool_memory, cap=limits.repeatable_body, hashing=not buffered)
        self._uplink = Uplink(self._layer, self.stream_id, upload, self._paying.backlog)
        self._paying.begun(self.context.client, self)
        self.handle_event = self._take_event  # type: ignore[method-assign]
        if event.end_stream:
            self._case.knows_body(EMPTY_SHA256)
        if not buffered:
            self._withhold = ticket.watches_body
            stores = getattr(self.context.options, "store_streamed_bodies", False)
            self._spools = request.stream is True and not stores
        if self._spools:  # what has come in during the hooks is the body's beginning
            queued = tuple(self._paused_event_queue)
            for waiting in queued:
                if isinstance(waiting, RequestData):
                    upload.append(waiting.data)
            self._paused_event_queue.clear()
            self._paused_event_queue.extend(one for one in queued if not isinstance(one, RequestData))

    def make_server_connection(self) -> CommandGenerator[bool]:
        uplink = self._uplink
        if uplink is None:
            return (yield from super().make_server_connection())
        if self._withhold:
            return True  # not before the body is complete
        return (yield from self._ready(uplink))

    def _ready(self, uplink: Uplink) -> CommandGenerator[bool]:
        """Connect, learn what to add, and make sure that somebody still waits. True: the header may leave now."""
        case = self._case
        if case.elsewhere(self.flow):
            digest = case.ticket.body_sha256 if case.ticket else None
            self.finish()
            case.open(self.flow)
            case.knows_body(digest)
            if case.ticket is not None:
                self._paying.begun(self.context.client, self)
        if not self.flow.request.stream:
            case.knows_body(sha256_of(self.flow.request.raw_content))
        outgoing: Outgoing | None = None
        while True:
            if not (yield from self._connect(uplink, fresh=False)):
                return False
            if outgoing is None:
                outgoing = yield from self._prepare(case)
            if (yield from self.check_killed(True)):
                return False
            if self.context.server.connected:  # it may have been closed while the gate was busy
                uplink.outgoing = outgoing
                return True

    def _prepare(self, case: Case) -> CommandGenerator[Outgoing]:
        if case.ticket is None or case.failed:
            return NOTHING
        outgoing = case.prepare_now()
        if outgoing is None and not case.failed:
            errand = PrepareErrand(case.ticket)
            yield BursarPrepareHook(errand)
            outgoing = errand.outgoing
            case.failed = outgoing is None
        return outgoing or NOTHING

    def _connect(self, uplink: Uplink, *, fresh: bool) -> CommandGenerator[bool]:
        known = uplink.known_connections()
        command = uplink.command(self.flow.request, self.flow.server_conn, fresh=fresh)
        found, error = yield command
        if error:
            yield from self.handle_protocol_error(compat.connect_failed(self.stream_id, error))
            return False
        self.context.server = self.flow.server_conn = found
        uplink.attach(found, known=found in known)
        return True

    def _through(self, generator: CommandGenerator[Any]) -> CommandGenerator[Any]:
        """Run mitmproxy's own code; what it sends to the server goes through the uplink."""
        reply = None
        while True:
            try:
                command = generator.send(reply)
            except StopIteration as stop:
                return stop.value
            reply = None
            if isinstance(command, SendHttp) and isinstance(command.event, _UPSTREAM):
                if isinstance(command, Sent):
                    yield command
                else:
                    assert self._uplink is not None
                    yield from self._upstream(self._uplink, command.event)
            elif not isinstance(command, commands.Log):  # "Streaming response from …", for each of them
                reply = yield command

    def _upstream(self, uplink: Uplink, event: HttpEvent) -> CommandGenerator[None]:
        match event:
            case RequestHeaders():
                uplink.keep_head(event.request)
                if not self._withhold:
                    yield from uplink.start(uplink.outgoing, end_stream=event.end_stream)
            case RequestData():
                uplink.upload.append(event.data)
                if self._withhold and uplink.upload.over_cap:
                    yield from self._let_go(uplink)  # too long to wait for: its digest stays unknown
                yield from uplink.pump()
            case RequestTrailers():
                uplink.upload.trailers = event.trailers
            case RequestEndOfMessage():
                uplink.upload.complete = True
                self._case.knows_body(uplink.upload.sha256)
                if self._withhold:
                    yield from self._let_go(uplink)
                yield from uplink.pump()
            case RequestProtocolError():
                # The client gave up.
                yield from self._release()

    def _let_go(self, uplink: Uplink) -> CommandGenerator[None]:
        self._withhold = False
        if (yield from self._ready(uplink)):
            yield from uplink.start(uplink.outgoing, end_stream=False)

    # -- the end -------------------------------------------------------------------------------------------

    def _guarded(self, generator: CommandGenerator[None]) -> CommandGenerator[None]:
        """An exception in a layer would leave the client hanging for ever: end the stream instead."""
        try:
            yield from generator
            if not self._case.ended and self._over():
                yield from self._release()
                self.finish()
        except Exception as error:
            _tell(error)
            yield from self._break_off()

    def _over(self) -> bool:
        return not self.flow.live or self.state_errored in (self.client_state, self.server_state)

    def flow_done(self) -> CommandGenerator[None]:
        # The connection is free for another request only when this one has left.
        if self._uplink is not None and self._uplink.busy:
            self._ending = True
            return
        yield from super().flow_done()

    def check_killed(self, emit_error_hook: bool) -> CommandGenerator[bool]:
        if self._gone:
            self.flow.error = flow.Error(flow.Error.KILLED_MESSAGE)
        return (yield from super().check_killed(emit_error_hook))

    def client_gone(self) -> None:
        self._gone = True
        if not self._paused:
            self.finish()

    def shut(self) -> None:
        """The proxy ends: from here on nothing leaves, and the gate hears how far it has got."""
        self._gone = True
        self.finish()

    def finish(self, outcome: Outcome | None = None) -> None:
        self._paying.ended(self.context.client, self)
        ticket = self._case.ticket
        if ticket is not None and not self._case.ended:
            ticket.client_left = self._gone or self.client_state == self.state_errored
        self._case.end(outcome or self._progress())

    def _release(self) -> CommandGenerator[None]:
        """Nobody wants this attempt's answer any more."""
        uplink = self._uplink
        if uplink is not None:
            if self._certain is None:
                self._certain = self._progress()
            if uplink.open or self.context.client.alpn == b"h2":
                # mitmproxy gives an h2 client's h1 connection to nobody else: do not leave it behind unused.
                yield from uplink.abandon(drained=False, close=True)
            uplink.upload.close()

    def _break_off(self) -> CommandGenerator[None]:
        """The client is told, and the gate, whatever else fails."""
        try:
            yield from self._release()
        except Exception as error:
            _tell(error)
        if self.flow.live:
            self.flow.error = flow.Error("The proxy failed to serve this request.")
            yield HttpErrorHook(self.flow)
            yield SendHttp(compat.proxy_failed(self.stream_id, self.flow.error.msg), self.context.client)
            self.flow.live = False
            self.client_state = self.server_state = self.state_errored
            yield DropStream(self.stream_id)
        try:
            self.finish()
        except Exception as error:
            _tell(error)
            self._case.end(Outcome.LOST)  # the worst that it can be: it stays counted as spent


def _tell(error: Exception) -> None:
    logger.error("Serving a watched request failed: %s", describe(error))
