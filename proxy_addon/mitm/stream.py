"""The replay: an `HttpStream` that can send its request again before the client has got anything.

`PayingStream` sits between mitmproxy's own stream and the server. Downwards, what the stream sends goes
through an `Uplink`, which can repeat it. Upwards, an answer that asks for money is kept from the stream until
the gate has decided: then either it is fed in as if it had just come, or the request goes once more. All
else — hooks, streaming, trailers, upgrades, errors — is mitmproxy's own code.
"""

from __future__ import annotations

import logging
from enum import Enum, auto
from typing import Any

from mitmproxy import flow, http
from mitmproxy.net.http.validate import validate_headers
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
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
    ResponseTrailers,
)
from mitmproxy.proxy.layers.http._hooks import HttpErrorHook, HttpRequestHeadersHook

from proxy_addon.mitm import compat
from proxy_addon.mitm.answer import Answer
from proxy_addon.mitm.case import Case
from proxy_addon.mitm.filtering import Filtering, filtering
from proxy_addon.mitm.gate import NOTHING, Again, Deliver, Outcome, Outgoing
from proxy_addon.mitm.guard import describe
from proxy_addon.mitm.hooks import (
    AnsweredErrand,
    BursarAnsweredHook,
    BursarPrepareHook,
    BursarTickHook,
    PrepareErrand,
)
from proxy_addon.mitm.paying import Paying
from proxy_addon.mitm.uplink import Sent, Uplink
from proxy_addon.mitm.upload import EMPTY_SHA256, Upload, is_short, sha256_of

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 16  # of one request; the gate stops much earlier
GLANCE_SECONDS = 0.1  # nearly every answer is complete by then: no long timer for those

_UPSTREAM = (RequestHeaders, RequestData, RequestTrailers, RequestEndOfMessage, RequestProtocolError)
_ANSWER = (ResponseHeaders, ResponseData, ResponseTrailers, ResponseEndOfMessage, ResponseProtocolError)


class Phase(Enum):
    AWAITING = auto()  # no answer yet
    DRAINING = auto()  # an answer that may ask for money is coming in, kept from the stream
    DECIDING = auto()  # the gate has it
    PASSING = auto()  # the final answer: the stream gets all events


class PayingStream(HttpStream):
    """See the module. Streams that the gate has no ticket for run mitmproxy's own code, uninterrupted."""

    def __init__(self, context: Context, stream_id: int, layer: HttpLayer, paying: Paying) -> None:
        super().__init__(context, stream_id)
        self._paying = paying
        self._layer = layer
        self._uplink: Uplink | None = None
        self._case = Case(paying.gate)
        self._filtering: Filtering | None = None
        self._phase = Phase.AWAITING
        self._answer: Answer | None = None
        self._withhold = False  # nothing leaves until the body is complete: the gate wants its digest
        self._spools = False  # the body goes through the uplink's file, not through memory
        self._attempts = 0
        self._retried = False
        self._gone = False
        self._ending = False  # all is done but for the rest of an upload, which waits to be sent
        self._certain: Outcome | None = None

    # -- events in -----------------------------------------------------------------------------------------

    def _handle_event(self, event: events.Event) -> CommandGenerator[None]:
        if self._uplink is None:
            unwatched: CommandGenerator[None] = super()._handle_event(event)
            return unwatched
        return self._guarded(self._watched(self._uplink, event))

    def _take_event(self, event: events.Event) -> CommandGenerator[None]:
        """In the place of `handle_event` on a watched stream: what must not wait in memory while it pauses."""
        uplink = self._uplink
        assert uplink is not None
        if isinstance(event, events.Wakeup) and self._handle_event == self.passthrough:
            return  # upgraded meanwhile: the timers were ours
        if self._paused:
            if self._phase is Phase.DECIDING and isinstance(event, _ANSWER):
                assert self._answer is not None
                self._answer.take(event, self._paying.limits.answer_flood)
                return
            if self._spools and isinstance(event, RequestData):
                try:
                    uplink.upload.append(event.data)
                except OSError as error:
                    logger.error("A request's body cannot be stored: %s", describe(error))
                    uplink.upload.close()
                    self._gone = True
                return
        yield from super().handle_event(event)

    def _watched(self, uplink: Uplink, event: events.Event) -> CommandGenerator[None]:
        if isinstance(event, _ANSWER):
            if self._phase is Phase.PASSING:
                yield from self._passing(event)
            else:
                yield from self._answering(uplink, event)
        elif isinstance(event, events.Wakeup):
            yield from self._woken(uplink, event.command)
        else:
            yield from self._through(super()._handle_event(event))
        if uplink.busy:
            yield from uplink.pump()
        if self._ending and not uplink.busy:
            self._ending = False
            yield from super().flow_done()

    def _guarded(self, generator: CommandGenerator[None]) -> CommandGenerator[None]:
        """An exception in a layer would leave the client hanging for ever: end the stream instead."""
        try:
            yield from generator
        except Exception as error:
            logger.error("Serving a watched request failed: %s", describe(error))
            yield from self._break_off()
        if not self._case.ended and self._over():
            yield from self._release()
            self.finish()

    def _over(self) -> bool:
        return not self.flow.live or self.state_errored in (self.client_state, self.server_state)

    def _woken(self, uplink: Uplink, timer: commands.RequestWakeup) -> CommandGenerator[None]:
        answer = self._answer
        if self._over():
            return
        if self._filtering is not None and timer is self._filtering.timer:
            yield from self._look_again(uplink, self._filtering)
        elif answer is None or timer is not answer.timer:
            yield from uplink.woken(timer)
        elif self._phase is Phase.DRAINING:
            if answer.glanced:
                yield from self._decide(uplink, answer)
            else:
                answer.glanced = True
                answer.timer = commands.RequestWakeup(self._paying.limits.answer_seconds - GLANCE_SECONDS)
                yield answer.timer

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
            self._paused_event_queue.clear()
            for waiting in queued:
                if isinstance(waiting, RequestData):
                    upload.append(waiting.data)
                else:
                    self._paused_event_queue.append(waiting)

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

    # -- the answer ----------------------------------------------------------------------------------------

    def _answering(self, uplink: Uplink, event: HttpEvent) -> CommandGenerator[None]:
        """An upstream event before it is clear which answer is the final one."""
        answer = self._answer
        if answer is None:
            if isinstance(event, ResponseProtocolError):
                yield from self._lost(uplink, event)
                return
            assert isinstance(event, ResponseHeaders)
            if self._wanted(uplink, event.response):
                self._phase = Phase.DRAINING
                uplink.held = True  # no more of an upload that has been answered, until it is clear what for
                answer = self._answer = Answer(event)
                if not event.end_stream:
                    answer.timer = commands.RequestWakeup(GLANCE_SECONDS)
                    yield answer.timer
                return
            self._receive(uplink, event.response)
            yield from self._passing(event)
            return
        limits = self._paying.limits
        answer.take(event, limits.answer_flood)
        over = answer.size > limits.answer_bytes
        if over or isinstance(event, (ResponseEndOfMessage, ResponseProtocolError)):
            yield from self._decide(uplink, answer)

    def _wanted(self, uplink: Uplink, response: http.Response) -> bool:
        if self._attempts >= MAX_ATTEMPTS:
            return False
        if self.context.options.validate_inbound_headers:
            try:
                validate_headers(response)
            except ValueError:
                return False  # mitmproxy is about to refuse it
        if not self._case.wants(response):
            return False
        if not uplink.upload.repeatable:
            logger.warning(
                "%s %s was answered %d, but its body cannot be sent again (over %d bytes, "
                "repeatable_body; or the disk is full): the answer passes",
                self.flow.request.method,
                self.flow.request.pretty_host,
                response.status_code,
                self._paying.limits.repeatable_body,
            )
            return False
        return True

    def _receive(self, uplink: Uplink, response: http.Response) -> None:
        self._phase = Phase.PASSING
        uplink.upload.forget()
        body_filter = self._case.received(response)
        if body_filter is not None:
            self._filtering = filtering(self.flow.request, response, body_filter)
        if not response.stream:
            response.stream = True

    def _passing(self, event: HttpEvent) -> CommandGenerator[None]:
        """An event of the final answer, on its way to the client."""
        if self._ending and isinstance(event, ResponseProtocolError):
            assert self._uplink is not None
            self._uplink.open = False  # the answer is complete; nobody wants the rest of the upload
            return
        match event:
            case ResponseTrailers():
                self._case.trailers(event.trailers)
            case ResponseData() if self._filtering is not None:
                yield from self._filtered(self._filtering, self._filtering.feed(event.data))
                return
            case ResponseEndOfMessage() | ResponseProtocolError() if self._filtering is not None:
                yield from self._filtered(self._filtering, self._filtering.end())
        if isinstance(event, ResponseEndOfMessage):
            self.finish(Outcome.COMPLETE)
        yield from self._through(super()._handle_event(event))

    def _filtered(self, body: Filtering, data: bytes) -> CommandGenerator[None]:
        if data:
            yield from self._through(super()._handle_event(ResponseData(self.stream_id, data)))
        if timer := body.look_again():
            yield timer

    def _look_again(self, uplink: Uplink, body: Filtering) -> CommandGenerator[None]:
        """The server waits for the gate, which may have given up on this answer: then it ends here."""
        body.timer = None
        last = body.stopped
        if last is None:
            yield from self._filtered(body, b"")
            return
        self._filtering = None
        self.finish(Outcome.CUT)
        yield from uplink.abandon(drained=False, close=True)
        if last:
            yield from self._passing(ResponseData(self.stream_id, last))
        yield from self._passing(ResponseEndOfMessage(self.stream_id))

    def _decide(self, uplink: Uplink, answer: Answer) -> CommandGenerator[None]:
        """The gate sees the whole answer. Waiting for it also lets the connection's own layer come to rest."""
        ticket = self._case.ticket
        assert ticket is not None
        self._phase = Phase.DECIDING
        response = answer.head.response
        errand = AnsweredErrand(ticket, response, answer.body if answer.ended else None)
        yield BursarAnsweredHook(errand)
        match errand.decision:
            case Again() as again:
                fresh = again.fresh or not (ticket.repeatable_method or uplink.multiplexed)
                yield from self._again(uplink, again.outgoing, fresh=fresh)
            case Deliver() as deliver:
                yield from self._deliver(uplink, answer, deliver)
            case None:
                self._case.failed = True
                yield from self._deliver(uplink, answer, Deliver())

    def _again(self, uplink: Uplink, outgoing: Outgoing, *, fresh: bool) -> CommandGenerator[None]:
        """Send the request once more. What the former attempt still gets from its server is dropped."""
        drained = self._answer is not None and self._answer.ended
        yield from uplink.abandon(drained=drained, close=fresh)
        uplink.left = False  # the next attempt's has not
        self._answer = None
        self._phase = Phase.AWAITING
        self._attempts += 1
        if (yield from self.check_killed(True)):
            return
        while True:
            if not (yield from self._connect(uplink, fresh=fresh)):
                return
            if (yield from self.check_killed(True)):
                return
            if self.context.server.connected:
                break
        yield from uplink.restart(outgoing)

    def _deliver(self, uplink: Uplink, answer: Answer, deliver: Deliver) -> CommandGenerator[None]:
        """The stored answer goes to the client, as if it had just come in."""
        response = answer.head.response
        for name, value in deliver.adds:
            response.headers.add(name.lower() if response.is_http2 or response.is_http3 else name, value)
        self._phase = Phase.PASSING
        self._answer = None
        uplink.upload.forget()
        uplink.held = False
        yield from uplink.pump()
        if not answer.ended and not response.stream:
            response.stream = True
        if answer.flooded:
            answer.rest.append(compat.proxy_failed(self.stream_id, "the answer was too long to be kept"))
            yield from uplink.abandon(drained=False, close=True)
        for event in [answer.head, *answer.rest]:
            yield from self._passing(event)

    def _lost(self, uplink: Uplink, error: ResponseProtocolError) -> CommandGenerator[None]:
        """No answer. Once more if that cannot do anything twice that matters."""
        unsent = uplink.unsent(error)
        ticket = self._case.ticket
        if ticket is not None and not self._retried and uplink.upload.repeatable:
            if unsent:  # proven: the same attempt goes on, elsewhere
                self._retried = True
                yield BursarTickHook()  # the connection's layer is still in the middle of telling us
                yield from self._again(uplink, uplink.outgoing, fresh=not uplink.multiplexed)
                return
            if ticket.repeatable_method and uplink.nothing_received and not self._case.failed:
                self._retried = True
                errand = PrepareErrand(ticket, lost=True)
                yield BursarPrepareHook(errand)
                if errand.outgoing is not None:
                    yield from self._again(uplink, errand.outgoing, fresh=not uplink.multiplexed)
                    return
        if unsent:
            self._certain = Outcome.NOT_SENT
        yield from self._through(super()._handle_event(error))

    # -- the end -------------------------------------------------------------------------------------------

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
        self._case.end(outcome or self._progress())

    def _progress(self) -> Outcome:
        uplink = self._uplink
        if self._certain is not None:
            return self._certain
        if uplink is None or (self._phase is Phase.AWAITING and uplink.unsent(None)):
            return Outcome.NOT_SENT
        if self._answer is not None and self._answer.ended:
            return Outcome.COMPLETE
        return Outcome.LOST if self._phase is Phase.AWAITING else Outcome.CUT

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
        yield from self._release()
        self.flow.error = flow.Error("The proxy failed to serve this request.")
        yield HttpErrorHook(self.flow)
        yield SendHttp(compat.proxy_failed(self.stream_id, self.flow.error.msg), self.context.client)
        self.flow.live = False
        self.client_state = self.server_state = self.state_errored
        yield DropStream(self.stream_id)
