"""The replay: an `HttpStream` that can send its request again before the client has got anything.

`PayingStream` sits between mitmproxy's own stream and the server. Downwards, what the stream sends goes
through an `Uplink`, which can repeat it. Upwards, an answer that asks for money is kept from the stream until
the gate has decided: then either it is fed in as if it had just come, or the request goes once more. All
else — hooks, streaming, trailers, upgrades, errors — is mitmproxy's own code.
"""

from __future__ import annotations

import logging
from enum import Enum, auto

from mitmproxy import http
from mitmproxy.net.http.validate import validate_headers
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layer import CommandGenerator, Layer
from mitmproxy.proxy.layers.http import HttpLayer
from mitmproxy.proxy.layers.http._base import HttpEvent
from mitmproxy.proxy.layers.http._events import (
    RequestData,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
    ResponseTrailers,
)

from proxy_addon.mitm import compat
from proxy_addon.mitm.answer import Answer
from proxy_addon.mitm.filtering import Filtering, filtering
from proxy_addon.mitm.gate import Again, Deliver, Outcome, Outgoing
from proxy_addon.mitm.guard import describe
from proxy_addon.mitm.hooks import (
    AnsweredErrand,
    BursarAnsweredHook,
    BursarPrepareHook,
    BursarTickHook,
    PrepareErrand,
)
from proxy_addon.mitm.paying import Paying
from proxy_addon.mitm.sending import SendingStream
from proxy_addon.mitm.timer import Timer
from proxy_addon.mitm.uplink import Uplink

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 16  # of one request; the gate stops much earlier
_MOST_TOLD = 300  # characters of why an answer is none: for a log line and an error page
GLANCE_SECONDS = 0.1  # nearly every answer is complete by then: no long timer for those

_ANSWER = (ResponseHeaders, ResponseData, ResponseTrailers, ResponseEndOfMessage, ResponseProtocolError)


class Phase(Enum):
    AWAITING = auto()  # no answer yet
    DRAINING = auto()  # an answer that may ask for money is coming in, kept from the stream
    DECIDING = auto()  # the gate has it
    PASSING = auto()  # the final answer: the stream gets all events


class PayingStream(SendingStream):
    """See the module. Streams that the gate has no ticket for run mitmproxy's own code, uninterrupted."""

    def __init__(self, context: Context, stream_id: int, layer: HttpLayer, paying: Paying) -> None:
        super().__init__(context, stream_id, layer, paying)
        self._child: Layer | None = None
        self._filtering: Filtering | None = None
        self._phase = Phase.AWAITING
        self._answer: Answer | None = None
        self._attempts = 0
        self._retried = False

    # -- events in -----------------------------------------------------------------------------------------

    def _handle_event(self, event: events.Event) -> CommandGenerator[None]:
        if self._uplink is None:
            unwatched: CommandGenerator[None] = super()._handle_event(event)
            return unwatched
        return self._guarded(self._watched(self._uplink, event))

    def _take_event(self, event: events.Event) -> CommandGenerator[None]:
        """In the place of `handle_event` on a watched stream: what must not wait in memory while it pauses."""
        if _is_ours(event) and self._handle_event == self.passthrough:
            return _nothing()  # upgraded meanwhile
        if self._paused and self._taken(event):
            return _nothing()
        taking: CommandGenerator[None] = super().handle_event(event)
        return taking

    def _taken(self, event: events.Event) -> bool:
        """While the stream pauses: is this event kept elsewhere than in mitmproxy's queue?"""
        uplink = self._uplink
        assert uplink is not None
        if self._phase is Phase.DECIDING and isinstance(event, _ANSWER):
            assert self._answer is not None
            try:
                self._answer.take(event, self._paying.limits.answer_flood)
            except Exception as error:
                logger.error("An answer cannot be kept: %s", describe(error))
                self._answer.flooded = True
            return True
        if self._spools and isinstance(event, RequestData):
            try:
                uplink.upload.append(event.data)
            except OSError as error:
                logger.error("A request's body cannot be stored: %s", describe(error))
                uplink.upload.close()
                self._gone = True
            return True
        return False

    def _watched(self, uplink: Uplink, event: events.Event) -> CommandGenerator[None]:
        if isinstance(event, _ANSWER):
            if isinstance(event, ResponseProtocolError):
                event.message = event.message[:_MOST_TOLD]  # it may hold all that a server sent
            if self._phase is Phase.PASSING:
                yield from self._passing(event)
            else:
                yield from self._answering(uplink, event)
        elif isinstance(event, events.Wakeup):  # before an upgrade, all are ours
            yield from self._woken(uplink, event.command)
        else:
            yield from self._through(super()._handle_event(event))
        if uplink.busy:
            yield from uplink.pump()
        if self._ending and not uplink.busy:
            self._ending = False
            yield from super().flow_done()

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
                answer.timer = Timer(self._paying.limits.answer_seconds - GLANCE_SECONDS)
                yield answer.timer

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
                    answer.timer = Timer(GLANCE_SECONDS)
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

    @property
    def child_layer(self) -> Layer | None:
        return self._child

    @child_layer.setter
    def child_layer(self, child: Layer | None) -> None:
        self._child = child
        if self._paying.sockets is not None:
            self._paying.sockets.adopt(child, self.flow)  # before its start

    def _progress(self) -> Outcome:
        uplink = self._uplink
        if self._certain is not None:
            return self._certain
        if uplink is None or (self._phase is Phase.AWAITING and uplink.unsent(None)):
            return Outcome.NOT_SENT
        if self._answer is not None and self._answer.ended:
            return Outcome.COMPLETE
        return Outcome.LOST if self._phase is Phase.AWAITING else Outcome.CUT


def _nothing() -> CommandGenerator[None]:
    yield from ()


def _is_ours(event: events.Event) -> bool:
    return isinstance(event, events.Wakeup) and isinstance(event.command, Timer)
