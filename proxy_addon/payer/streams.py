"""Paying for a metered stream while its bytes flow.

The server pauses the stream and says what it needs; we authorise exactly that, within the stream's own limits
and then the budgets, and send the voucher by HEAD beside the stream. A voucher is durable before it is
signed, and on the ledger before it leaves, as everywhere. A stream has its channel to itself.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from proxy_addon.core.errors import BursarError, LocalRefusal, OutcomeUnknown, RemoteProtocolError
from proxy_addon.core.messages import NeedVoucher, Receipt, build_credential, parse_problem
from proxy_addon.core.repair import Tries, Way, way_out
from proxy_addon.core.sse import EventFilter, Malformed, PaymentEvent
from proxy_addon.methods import registry
from proxy_addon.outbound import Answer
from proxy_addon.payer import raising
from proxy_addon.payer.parts import Parts
from proxy_addon.payer.tasks import background
from proxy_addon.payer.ticket import Attempt, Offer, PayTicket
from proxy_addon.payer.till import Grant
from store import account
from store.contract import StoreError

log: Final = logging.getLogger("bursar")

REPEAT_MS: Final = 1_000
"""A need that the current voucher covers is answered with that voucher again, so often at most."""
MOST_TRIES: Final = 4
MOST_COMPLAINTS: Final = 5
"""So often is a stream's nonsense logged."""

Refresh = Callable[[PayTicket, Attempt, Answer], Offer | None]
Send = Callable[[Grant], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """What one metered stream may take. Base units."""

    step: int  # one voucher's raise
    per_second: int
    total: int


@dataclass(slots=True, eq=False)
class MeteredStream:
    """The vouchers of one open stream. Fed by the body's filter, ended by the gate; its own task sends."""

    parts: Parts
    ticket: PayTicket
    attempt: Attempt
    limits: StreamLimits
    url: str = field(repr=False)
    refresh: Refresh  # a payable offer out of an answer's fresh challenge
    send: Send | None = (
        None  # how a voucher gets there, if not by HEAD; raises `OutcomeUnknown`, `LocalRefusal`
    )
    on_stop: Callable[[], None] | None = None
    metered: bool = False  # has it asked for a voucher, or brought a receipt at its end?
    stop_reason: LocalRefusal | None = None
    receipt: Receipt | None = None
    least_spent: int = 0  # on the channel, by what the server said on the way
    _base: int = 0  # what was counted on the channel before this stream
    _need: NeedVoucher | None = None
    _task: asyncio.Task[None] | None = None
    _raises: deque[tuple[int, int]] = field(default_factory=deque)  # (ticks, base units) of the last second
    _sent_at: int = 0
    _required: int = 0  # highest that was asked for
    _delivered: int = 0  # of the channel's sum, by the time of the last need
    _taken: int = 0  # highest voucher that the server took from us on this stream
    _total: int = 0
    _closed: bool = False
    _complaints: int = 0
    _busy: bool = (
        False  # a commit or a voucher is on its way. Interrupted, they break the record, or the pool
    )

    def __post_init__(self) -> None:
        channel = self.attempt.grant.till.channel
        mine = channel.holds.get(self.attempt.grant.hold.request_id)
        self._base = (
            channel.paid + channel.uncertain + channel.held - (mine.amount if mine is not None else 0)
        )
        self._total = mine.amount if mine is not None else 0

    # -- events of the body

    @property
    def waiting(self) -> bool:
        """Does the server wait for a voucher of ours? Then nobody will wake the stream but we."""
        return self._need is not None and not self._closed

    def heard(self, event: PaymentEvent) -> None:
        """A payment event came out of the body. Never raises."""
        match event:
            case NeedVoucher():
                self._needed(event)
            case Receipt():
                channel_id = self.attempt.grant.channel.channel_id
                if event.channel_id in (None, channel_id):
                    self.metered, self.receipt, self._need = True, event, None
            case Malformed():
                self.complain(f"sent a {event.name} that cannot be read: {event.reason}")

    def _needed(self, need: NeedVoucher) -> None:
        if need.channel_id != self.attempt.grant.channel.channel_id:
            self.complain("asks for a voucher of a channel that is not this stream's")
            return
        self.metered = True
        if need.required_cumulative > self._required:
            self._required = need.required_cumulative
            # It asked for its next unit: everything before that was delivered, out of what it had a voucher for.
            before = min(self._required - self.attempt.want.price, self.attempt.grant.till.channel.issued)
            self._delivered = max(self._delivered, before)
        if self._closed or self.stop_reason is not None:
            return
        self._need = need
        if self._task is None:
            self._task = background(self._serve(), "bursar-stream")

    def complain(self, what: str) -> None:
        """A few lines for each stream: it must not fill our disk with the log."""
        self._complaints += 1
        if self._complaints <= MOST_COMPLAINTS:
            log.warning("bursar: %s %s", self._host, what)

    def progressed(self) -> None:
        """The body goes on: what was needed has been taken."""
        if self._task is None:
            self._need = None

    @property
    def _host(self) -> str:
        return self.ticket.facts.host

    # -- vouchers

    async def _serve(self) -> None:
        try:
            while (need := self._need) is not None and not self._closed:
                await self._answer(need)
                if self._need is need:
                    self._need = None
        except LocalRefusal as error:
            self._stop(error)
        except (BursarError, StoreError) as error:
            self._stop(LocalRefusal("stream", str(error)))
        except Exception as error:
            if not self._closed:
                log.exception("bursar: paying for a stream failed inside")
            self._stop(LocalRefusal("internal", f"{type(error).__name__} while paying for a stream"))
        finally:
            self._task = None

    def _stop(self, reason: LocalRefusal) -> None:
        if self._closed:
            return  # during a raise: without its hold nothing was signed, and the raise is free for the next
        self.stop_reason, self._need = reason, None
        self.parts.audit.note(
            "decision",
            f"stream ended: {reason}",
            level=logging.WARNING,
            fields={**self.ticket.facts.fields(), "outcome": "stream-ended", "reason": reason.reason},
        )
        if self.on_stop is not None:
            self.on_stop()

    async def _answer(self, need: NeedVoucher) -> None:
        """Make the server's balance reach what it needs, or raise the reason why not."""
        grant, now = await self._grant(need.required_cumulative), self.parts.ticks()
        if grant.amount <= self._taken and now - self._sent_at < REPEAT_MS:
            await asyncio.sleep((REPEAT_MS - (now - self._sent_at)) / 1000)
        await self._send(grant)

    async def _grant(self, required: int) -> Grant:
        till, want, hold = self.attempt.grant.till, self.attempt.want, self.attempt.grant.hold
        await self.attempt.offer.desk.decided(till)
        till.check_usable()  # an opening that has failed has ended our hold
        more = required - till.channel.issued
        if more <= 0:
            return till.current(hold)
        more = max(more, till.channel.min_delta)
        token = want.caps.token
        if more > self.limits.step:
            raise LocalRefusal(
                "over-stream-step",
                f"{self._host} asks {token.show(more)} at once for a stream, over max_stream_step"
                f" {token.show(self.limits.step)} ({want.caps.rule})",
            )
        if self._total + more > self.limits.total:
            raise LocalRefusal(
                "over-stream-total",
                f"{self._host} asks {token.show(self._total + more)} in all for one stream, over max_per_stream"
                f" {token.show(self.limits.total)} ({want.caps.rule})",
            )
        await self._pace(more)
        raised = max(0, more - till.channel.reserved)
        if till.channel.authorised + raised > till.channel.ceiling and not await self._make_room(raised):
            raise LocalRefusal(
                "deposit-used-up",
                f"the deposit of {till.channel.channel_id} does not cover what {self._host} asks for a stream"
                f" ({token.show(more)} more), and it was not topped up",
            )
        # All that its voucher covers on a channel that a stream has to itself is the stream's.
        self._busy = True
        try:
            grant = await raising.grow(till, hold, till.channel.spare + more, want)
        finally:
            self._busy = False
        self._total += more
        self._raises.append((self.parts.ticks(), more))
        return grant

    async def _make_room(self, more: int) -> bool:
        """A top-up so that the deposit covers so much more."""
        offer, attempt = self.attempt.offer, self.attempt
        return await offer.desk.make_room(
            attempt.grant.till, attempt.want, offer.terms, offer.challenge, more
        )

    async def _pace(self, more: int) -> None:
        """Wait until the last second's raises and this one fit units per second; one step always fits."""
        while True:
            now = self.parts.ticks()
            while self._raises and self._raises[0][0] <= now - 1000:
                self._raises.popleft()
            if not self._raises or sum(amount for _, amount in self._raises) + more <= self.limits.per_second:
                return
            await asyncio.sleep((self._raises[0][0] + 1000 - now) / 1000)

    async def _send(self, grant: Grant) -> None:
        """One voucher by HEAD; refusals are repaired (a, c, e), lost ones sent again: no new money for either."""
        till, tries = grant.till, Tries()
        for _ in range(MOST_TRIES):
            self._sent_at = self.parts.ticks()
            self._busy = True
            try:
                await self._renew()
                if self._closed:
                    return
                answer = await (self.send or self._send_head)(grant)
            except OutcomeUnknown as error:
                if self._closed:
                    return
                log.info("bursar: a voucher for a stream may be lost: %s", error)
                grant = till.current(grant.hold)
                continue
            finally:
                self._busy = False
            if self._closed:
                return
            if answer.status < 400:
                self._taken = max(self._taken, grant.amount)
                return
            grant = await self._mend(grant, answer, tries)
        raise LocalRefusal("refused-by-server", f"{self._host} does not take a voucher for its own stream")

    async def _mend(self, grant: Grant, answer: Answer, tries: Tries) -> Grant:
        """A refused HEAD has no body, and mostly no reason: try the ways that fit."""
        till, hold = grant.till, grant.hold
        self._adopt(self.refresh(self.ticket, self.attempt, answer))
        kind = _kind(answer)
        way = way_out(answer.status, kind or "verification-failed", grant.amount, till.channel, tries)
        tries.count(way)
        match way:
            case Way.RESEND | Way.ANEW:
                return till.current(hold)
            case Way.BUMP:
                if kind is None and tries.bumps == 1:
                    return till.current(
                        hold
                    )  # most likely the challenge had expired: first with the fresh one
                till.channel = account.learn_delta(
                    till.channel, grant.amount, self.attempt.want.caps.per_request
                )
                return await self._grant(till.channel.issued + till.channel.min_delta)
            case Way.DEPOSIT:
                if await self._make_room(till.channel.min_delta):
                    return till.current(hold)
            case _:
                pass
        raise LocalRefusal(
            "refused-by-server",
            f"{self._host} refused a voucher for its own stream ({answer.status}{', ' + kind if kind else ''})",
        )

    async def _renew(self) -> None:
        """A challenge that has expired is never sent: ask for another one first, without a payment."""
        if self.send is not None or self._closed:  # frames see to that themselves
            return
        if self.attempt.offer.live(self.parts.latest(self.ticket.origin)):
            return
        hint = {"Accept-Payment": registry.accept_payment()}
        fresh = self.refresh(
            self.ticket, self.attempt, await self.parts.outbound.send("HEAD", self.url, hint)
        )
        if fresh is None:
            raise LocalRefusal(
                "expired", f"the challenge of this stream has expired, and {self._host} gives no other one"
            )
        self._adopt(fresh)

    def _adopt(self, fresh: Offer | None) -> None:
        if fresh is not None:
            want = self.attempt.want
            self.attempt.offer = fresh
            want.challenge_id, want.expires_at = fresh.challenge.id, fresh.expires_at

    async def _send_head(self, grant: Grant) -> Answer:
        field = self.attempt.offer.challenge.credential_header
        return await self.parts.outbound.send("HEAD", self.url, {field: self.credential(grant)})

    def credential(self, grant: Grant) -> str:
        offer, scope = self.attempt.offer, grant.channel.scope
        payload = offer.method.voucher_payload(grant.channel, grant.amount, grant.signature)
        return build_credential(offer.challenge, payload, f"did:pkh:{scope.chain}:{scope.payer}")

    # -- the end

    def close(self) -> int:
        """The stream is over: send nothing more. What of its hold is paid for sure (base units)."""
        self._closed = True
        if self._task is not None and not self._busy:
            self._task.cancel()
        spent = self.receipt.spent if self.receipt is not None else None
        if spent is None:
            spent = max(self.least_spent, self._delivered)
        return max(0, spent - self._base)

    @property
    def taken(self) -> bool:
        """Did the server take a voucher of this stream, the first one included?"""
        return self.metered


class StreamFilter:
    """`mitm.gate.BodyFilter` of an event stream: takes the payment events out and hands them on."""

    def __init__(self, stream: MeteredStream) -> None:
        self._filter = EventFilter()
        self._stream = stream

    def feed(self, data: bytes) -> bytes:
        fed = self._filter.feed(data)
        if fed.out:
            self._stream.progressed()
        for event in fed.events:
            self._stream.heard(event)
        return fed.out

    def end(self) -> bytes:
        fed = self._filter.end()
        for event in fed.events:
            self._stream.heard(event)
        return fed.out

    @property
    def waiting(self) -> bool:
        return self._stream.waiting or self._stream.stop_reason is not None

    @property
    def stopped(self) -> bytes | None:
        """Set when the money ended: the last bytes for the client, an event that SDKs raise as an error."""
        reason = self._stream.stop_reason
        if reason is None:
            return None
        error = {"message": f"bursar stopped paying for this stream: {reason}", "code": reason.reason}
        data = json.dumps({"error": {"type": "payment_required", **error}})
        return b"event: error\ndata: " + data.encode() + b"\n\n"


def _kind(answer: Answer) -> str | None:
    try:
        problem = parse_problem(answer.get("content-type") or "", answer.body)
    except RemoteProtocolError:
        return None
    return problem.kind if problem is not None else None
