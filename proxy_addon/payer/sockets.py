"""Paying for WebSockets: by frames, inside the connection. Implements `mitm.websocket.SocketGate`.

A server of this protocol upgrades whoever asks and then waits for a credential in silence. So the config names
the paths, and each handshake is preceded by a GET of the same address, without anything of the client's, whose
402 is decided on like any other. What may not be paid is answered to the client with that 402: better than
silence. Then the money is a metered stream's, with vouchers as frames.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from mitmproxy import http

from proxy_addon.core import frames
from proxy_addon.core.errors import LocalRefusal, OutcomeUnknown
from proxy_addon.core.messages import NeedVoucher, Receipt
from proxy_addon.core.policy import SpendPolicy
from proxy_addon.methods import registry
from proxy_addon.mitm.gate import Again, Deliver, Outcome, Ticket
from proxy_addon.outbound import Answer
from proxy_addon.payer import booking
from proxy_addon.payer.offers import Offers
from proxy_addon.payer.parts import Parts
from proxy_addon.payer.streams import MeteredStream, StreamLimits
from proxy_addon.payer.ticket import Attempt, Offer, PayTicket, facts_of, origin_of, pays_itself
from proxy_addon.payer.till import Grant
from store.account import Ending

log: Final = logging.getLogger("bursar")

FRAME_SECONDS: Final = 20.0
"""So long may the receipt for a frame of ours take, as long as the answer to a request of ours."""
REFRESH_MS: Final = 30_000
"""A refused frame costs the connection: long before its challenge expires, a new one is asked for."""

_NOT_COPIED: Final = frozenset(
    {
        "connection",
        "content-encoding",
        "content-length",
        "keep-alive",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


class Payments(Protocol):
    """How a 402 is decided on."""

    async def answered(self, ticket: Ticket, response: http.Response, body: bytes | None) -> Again | Deliver:
        """As in `mitm.gate.Gate`."""

    def refresh(self, ticket: PayTicket, attempt: Attempt, answer: Answer) -> Offer | None:
        """A payable offer on the same channel out of an answer's own challenge."""

    def booked(self, ticket: PayTicket, outcome: Outcome) -> None:
        """Its last attempt is booked: what does it say about the server?"""


class Sockets:
    """Handshakes that were paid for, by their flows, until their connections end."""

    def __init__(
        self,
        parts: Parts,
        policy: SpendPolicy,
        offers: Offers,
        payments: Payments,
        why_not: Callable[[http.HTTPFlow], str | None],
        user_of: Callable[[http.HTTPFlow], str | None] = lambda flow: None,
    ) -> None:
        self._parts = parts
        self._policy = policy
        self._offers = offers
        self._payments = payments
        self._why_not = why_not
        self._user_of = user_of
        self._sockets: dict[str, Socket] = {}

    def pays_for(self, flow: http.HTTPFlow) -> bool:
        request = flow.request
        if request.method != "GET" or request.headers.get("upgrade", "").lower() != "websocket":
            return False
        if request.headers.get("sec-websocket-version") != "13":
            return False  # mitmproxy passes it on as bytes
        rule = self._policy.rule_for(origin_of(request))
        path = request.path.partition("?")[0]
        return rule is not None and path in rule.websocket_paths and not pays_itself(request)

    async def prepare(self, flow: http.HTTPFlow) -> None:
        origin = origin_of(flow.request)
        ticket = PayTicket(
            facts=facts_of(flow, origin, self._user_of(flow)),
            origin=origin,
            url=f"{origin}{flow.request.path}",
            repeatable_method=True,
            own_authorization=False,  # the credential goes into a frame, not into the client's header
            refused=self._why_not(flow),
            in_band=True,
        )
        try:
            answer = await self._parts.outbound.send("GET", ticket.url, self._hints(ticket))
        except OutcomeUnknown as error:
            log.warning("bursar: a WebSocket is not paid for: %s", error)
            return
        if answer.status != 402 or not answer.all("www-authenticate"):
            log.info("bursar: %s asks no money for %s", ticket.facts.host, ticket.facts.path)
            return
        ticket.status = answer.status
        response = http.Response.make(
            answer.status,
            answer.body,
            [
                (name.encode(), value.encode("utf-8", "surrogateescape"))
                for name, value in answer.headers
                if name not in _NOT_COPIED
            ],
        )
        decision = await self._payments.answered(ticket, response, answer.body)
        if isinstance(decision, Deliver):
            if not self._policy.shadow:
                for name, value in decision.adds:
                    response.headers[name] = value
                flow.response = response
            return
        attempt = ticket.attempt
        if attempt is None or not decision.outgoing.sets:
            return  # the challenge expired meanwhile
        credential = decision.outgoing.sets[0][1]
        socket = Socket(self._parts, self._payments, self._offers, ticket, attempt, credential)
        socket.on_end = lambda: self._forget(flow.id, socket)
        socket.client_id = flow.client_conn.id
        self._sockets[flow.id] = socket
        if not flow.client_conn.connected:
            socket.finished(Outcome.CUT)

    def _hints(self, ticket: PayTicket) -> dict[str, str]:
        channel_id = self._offers.live_channel(ticket.origin)
        hints = {"Accept-Payment": registry.accept_payment()}
        return hints if channel_id is None else {**hints, "Payment-Session": channel_id}

    def of(self, flow: http.HTTPFlow) -> Socket | None:
        return self._sockets.get(flow.id)

    def dropped(self, flow: http.HTTPFlow) -> None:
        if (socket := self._sockets.get(flow.id)) is not None:
            socket.finished(Outcome.CUT)

    def client_gone(self, client_id: str) -> None:
        for socket in [one for one in self._sockets.values() if one.client_id == client_id]:
            socket.finished(Outcome.CUT)

    def shut(self) -> None:
        for socket in tuple(self._sockets.values()):
            socket.finished(Outcome.CUT)

    def _forget(self, flow_id: str, socket: Socket) -> None:
        if self._sockets.get(flow_id) is socket:
            del self._sockets[flow_id]


class Socket:
    """The money of one connection: a `MeteredStream` whose vouchers are frames."""

    def __init__(
        self,
        parts: Parts,
        payments: Payments,
        offers: Offers,
        ticket: PayTicket,
        attempt: Attempt,
        credential: str,
    ) -> None:
        self.outgoing: deque[str] = deque()
        self.stopped: frames.Close | None = None
        self.on_end: Callable[[], None] = lambda: None
        self.client_id = ""
        self._parts = parts
        self._payments = payments
        self._offers = offers
        self._ticket = ticket
        self._attempt = attempt
        self._credential = credential
        self._wake: Callable[[], None] = lambda: None
        self._begun = False
        self._ended = False
        self._accepted = False  # the server took the first credential
        self._refused = False
        self._receipt: asyncio.Future[Receipt] | None = None
        caps = attempt.want.caps
        self._stream = attempt.stream = MeteredStream(
            parts=parts,
            ticket=ticket,
            attempt=attempt,
            limits=StreamLimits(caps.stream_step, caps.stream_per_second, caps.per_stream),
            url=ticket.url,
            refresh=payments.refresh,
            send=self._send,
            on_stop=self._out_of_money,
        )

    # -- the connection's events

    def begin(self, wake: Callable[[], None]) -> None:
        self._wake, self._begun = wake, not self._ended
        if self._begun:
            self.outgoing.append(frames.authorization(self._credential))

    def heard(self, text: str) -> str | bool:
        try:
            return self._heard(text)
        except Exception:
            log.exception("bursar: a frame of %s could not be dealt with", self._host)
            return False

    def _heard(self, text: str) -> str | bool:
        frame = frames.read(text)
        match frame:
            case None:
                return True
            case frames.Data(data):
                self._stream.progressed()
                return data
            case NeedVoucher():
                self._stream.heard(frame)
            case Receipt():
                self._paid(frame)
            case frames.CloseReady(receipt):
                if self._own(receipt):
                    self._stream.heard(receipt)
                self.stopped = frames.close(frames.NORMAL)
            case frames.Failed(status, message):
                self._failed(status, message)
            case frames.Unreadable(name, reason):
                self._stream.complain(f"sent a {name} frame that cannot be read: {reason}")
        return False

    def _own(self, receipt: Receipt) -> bool:
        own = receipt.channel_id in (None, self._attempt.grant.channel.channel_id)
        if not own:
            self._stream.complain("sent a receipt for another channel than this connection's")
        return own

    def _paid(self, receipt: Receipt) -> None:
        if not self._own(receipt):
            return
        self._stream.least_spent = max(self._stream.least_spent, receipt.spent or 0)
        if not self._accepted:
            self._accepted = self._stream.metered = True
            attempt, till = self._attempt, self._attempt.grant.till
            if attempt.opening:
                attempt.offer.desk.opening_ended(till, sent=True, told=True)
            till.answer_came(self._ticket.facts.request_id)
            self._offers.taken(self._ticket.route, attempt.offer, streams=True)
        if self._receipt is not None and not self._receipt.done():
            self._receipt.set_result(receipt)

    def _failed(self, status: int, message: str) -> None:
        """The server means to close the connection next. Its words go to the log, not into any decision on money.

        A server that gives its whole problem as the reason of the close cannot send it (a reason has 123 bytes), and
        then neither closes nor answers a ping: so we do, or the client would wait for ever.
        """
        self._stream.complain(f"ends a paid WebSocket ({status}): {message[:200]!r}")
        self._refused = not self._accepted and status == 402
        if self._receipt is not None and not self._receipt.done():
            self._receipt.set_exception(
                LocalRefusal("refused-by-server", f"{self._host} refused a voucher frame ({status})")
            )
        else:
            self.stopped = frames.close(frames.POLICY, "bursar stopped paying: refused-by-server")

    @property
    def _host(self) -> str:
        return self._ticket.facts.host

    # -- vouchers

    async def _send(self, grant: Grant) -> Answer:
        """A voucher as a frame; its receipt is the answer. `MeteredStream` sends one at a time."""
        if self._ended:  # while the raise was made durable, which is never interrupted
            return Answer(204, (), b"")  # nothing leaves, and nobody waits for it
        await self._fresh_challenge()
        self._receipt = asyncio.get_running_loop().create_future()
        self.outgoing.append(frames.authorization(self._stream.credential(grant)))
        self._wake()
        try:
            async with asyncio.timeout(FRAME_SECONDS):
                while True:
                    receipt = await self._receipt
                    if receipt.accepted_cumulative is None or receipt.accepted_cumulative >= grant.amount:
                        return Answer(204, (), b"")
                    self._receipt = asyncio.get_running_loop().create_future()  # an earlier frame's
        except TimeoutError:
            raise OutcomeUnknown(f"{self._host} sent no receipt for a voucher frame") from None
        finally:
            self._receipt = None

    async def _fresh_challenge(self) -> None:
        offer = self._attempt.offer
        if offer.live(self._parts.latest(self._ticket.origin) + REFRESH_MS):
            return
        answer = await self._parts.outbound.send(
            "GET", self._ticket.url, {"Accept-Payment": registry.accept_payment()}
        )
        fresh = self._payments.refresh(self._ticket, self._attempt, answer)
        if fresh is not None:
            want = self._attempt.want
            self._attempt.offer = fresh
            want.challenge_id, want.expires_at = fresh.challenge.id, fresh.expires_at

    def _out_of_money(self) -> None:
        reason = self._stream.stop_reason
        self.stopped = frames.close(
            frames.POLICY, f"bursar stopped paying: {reason.reason if reason is not None else 'internal'}"
        )
        self._wake()

    # -- the end

    def finished(self, outcome: Outcome) -> None:
        """Book it, once."""
        if self._ended:
            return
        self._ended = True
        self.on_end()
        self.outgoing.clear()
        if self._receipt is not None and not self._receipt.done():
            self._receipt.cancel()
        if not self._begun:
            outcome = Outcome.NOT_SENT
        elif not self._accepted:
            outcome = Outcome.LOST
        elif self._stream.receipt is not None:
            outcome = Outcome.COMPLETE
        try:
            self._book(outcome)
            # Who ended the connection is not known: only what the server said for sure counts against it.
            self._ticket.client_left = not self._refused
            self._payments.booked(self._ticket, Outcome.CUT if self._accepted else outcome)
        except Exception:
            log.exception(
                "bursar: the end of a paid WebSocket could not be booked; it stays counted as spent"
            )

    def _book(self, outcome: Outcome) -> None:
        attempt = self._attempt
        if self._refused:
            self._stream.close()
            if attempt.opening:
                attempt.offer.desk.opening_ended(attempt.grant.till, sent=True, told=False)
            booking.end(self._ticket, attempt, Ending.FREE, "refused")
            return
        booking.finish(self._ticket, attempt, outcome)
