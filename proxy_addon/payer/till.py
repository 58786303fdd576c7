"""One channel that this process owns. All that concerns it happens here, in one order.

The order of a payment: hold what the voucher that is out covers, or commit a raise for all that wait; when the
commit is durable, sign exactly ``issued``; write the ledger's line; only then hand out the voucher. After a crash
between any two of these, the store allows at least what has left, and the ledger names what was on its way. What a
commit has reserved beyond that needs none of its own: then the order begins with the signature.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from proxy_addon.audit import Audit, Clock
from proxy_addon.core.dispatch import can_reuse, needed, share, voucher_steps
from proxy_addon.core.errors import LocalRefusal
from proxy_addon.methods.contract import Method
from proxy_addon.payer.calendar import Calendar
from proxy_addon.payer.clients import ClientDays
from proxy_addon.payer.lines import voucher_fields, write_ending, write_written_off
from proxy_addon.payer.overtaking import Unanswered
from proxy_addon.payer.queue import Queue
from proxy_addon.payer.tasks import background
from proxy_addon.payer.wants import ChannelUnusable, Want
from proxy_addon.signer import Signer
from store import account
from store.account import UNKNOWN_MARGIN_MS, Ended, Ending, Grown, Sent, WrittenOff
from store.channels import ChannelStore, Fenced
from store.contract import StoreError
from store.lifecycle import FINAL, ChannelStatus, advance
from store.records import Channel, CounterMove, Hold

log: Final = logging.getLogger("bursar")


@dataclass(frozen=True, slots=True, eq=False)
class Grant:
    """A hold, and the voucher that goes with it. `channel` is the record that the signature was checked against."""

    till: Till
    channel: Channel
    hold: Hold
    amount: int  # cumulative
    signature: bytes = field(repr=False)


class Till:
    """The account of one owned channel, with those who wait for it."""

    def __init__(
        self,
        channel: Channel,
        *,
        store: ChannelStore,
        method: Method,
        signer: Signer,
        audit: Audit,
        now: Clock,
        ticks: Clock,
        calendar: Calendar,
        clients: ClientDays,
    ) -> None:
        self.channel = channel
        self.method = method
        self._store = store
        self._signer = signer
        self._audit = audit
        self._now = now
        self.ticks = ticks
        self.calendar = calendar
        self.clients = clients
        self.unanswered = Unanswered(ticks)
        self._queue = Queue(self)
        self._write = asyncio.Lock()  # one commit of this record at a time
        self._durable = channel.authorised  # nothing above this is ever signed
        self._signed: tuple[int, bytes] | None = None
        self.fenced = False
        self.halted: str | None = None  # why nothing more is signed, whatever its record still says
        self.runs_probes = False  # the server takes a HEAD for a request to serve, and to charge for
        self.exclusive: str | None = None  # the request whose metered stream has this channel to itself
        self.last_used = ticks()
        self._closes_at = 0  # ms by the server's clock: until then what was lost can still become charged
        self.signatures = 0
        self.commits = 0
        self._dispatched_before = channel.seq

    # -- dispatch

    @property
    def usable(self) -> bool:
        return self.channel.status is ChannelStatus.OPEN and not self.fenced and self.halted is None

    @property
    def tally(self) -> str:
        """What its requests have cost this process."""
        requests = self.channel.seq - self._dispatched_before
        return f"{requests} requests, {self.signatures} signatures, {self.commits} commits"

    @property
    def busy(self) -> bool:
        """Do others wait for a commit? Then whoever comes now waits with them."""
        return self._queue.busy

    @property
    def idle(self) -> bool:
        return not (self.channel.holds or self._queue.busy)

    def has_room(self, want: Want) -> bool:
        """Does the deposit still cover what `want` needs, once all that is in flight is charged?"""
        return self.channel.authorised + needed(self.channel, want.demand) <= self.channel.ceiling

    def take_now(self, want: Want) -> Grant | None:
        """A grant with the voucher that is signed already, or with one out of the reserve; None if it has to wait."""
        if (
            self._queue.busy
            or not self.usable
            or self.exclusive is not None
            or want.metered
            or want.bump
            or want.write_off
        ):
            return None
        signed = self._signed is not None and self._signed[0] == self.channel.issued
        step = 0
        if not (signed and can_reuse(self.channel, want.price)):
            step = self._step_now(want)
            if not step:
                return None
        if not self.cover_now(want):
            return None
        try:
            grant = self.grant(want, step)
        except BaseException:
            want.let_go(charged=False)
            raise
        want.tries.new_money += share(self.channel, want.price, step)
        return grant

    def _step_now(self, want: Want) -> int:
        """How much higher a voucher out of the reserve is that may leave at once; 0 if none may."""
        channel = self.channel
        if not channel.reserved or channel.equal_refused:
            return 0
        (step,) = voucher_steps(channel, (want.demand,), others_in_flight=0, ahead_limit=0)
        if (
            step > channel.reserved
            or self.unanswered.passes_any(channel.issued + step)
            or want.tries.new_money + share(channel, want.price, step) > want.caps.per_request
        ):
            return 0
        return step

    def cover_now(self, want: Want) -> bool:
        """Count `want`'s price on its client's day, if that needs no commit."""
        if want.client_cap is None:
            return True
        return self.clients.take_now(want, self.calendar.date(), self.ticks())

    async def take(self, want: Want) -> Grant:
        """A grant, after a commit shared with all that wait. Raises `LocalRefusal`; then nothing was signed for it."""
        self.check_usable()
        self.check_shared(want)
        future = self._queue.join(want)
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self.end(future.result().hold, Ending.FREE, want)
            raise

    def opening_grant(self, want: Want) -> Grant:
        """The first grant of a channel that is opened: it rides on the opening itself."""
        self.channel = replace(self.channel, status=advance(self.channel.status, ChannelStatus.SENT))
        return self.grant(want)

    def resend(self, grant: Grant, want: Want) -> Grant:
        """Repairs a and b: the same hold with the current voucher. No new money. Raises `LocalRefusal`.

        Not with a higher one than is under way already, if that is enough: it would overtake in its turn.
        """
        if self.fenced:
            raise ChannelUnusable("fenced", f"channel {self.channel.channel_id} went to another process")
        self._check_running()
        voucher = self._signed[0] if self._signed is not None else 0
        if voucher > grant.amount:
            self.unanswered.overtaken(grant.hold.request_id)
        else:
            voucher = self.channel.issued
        self.channel, hold = account.restamp(
            self.channel, grant.hold.request_id, voucher=voucher, expires_at=want.expires_at
        )
        return self._attach(hold, want)

    def hold_back_for(self, request_id: str) -> None:
        """Raise nothing more until this request has its answer, unless another is being waited for already."""
        self._queue.hold_back_for(request_id)

    def answer_came(self, request_id: str) -> None:
        """The server took this request's voucher; its body may go on for long."""
        self.unanswered.answered(request_id)
        self._queue.answered(request_id)

    def heed(self, min_delta: int) -> None:
        """A challenge says how much each voucher must add to the last one."""
        if min_delta > self.channel.min_delta:
            self.channel = replace(self.channel, min_delta=min_delta)

    def check_usable(self) -> None:
        if self.fenced:
            raise ChannelUnusable("fenced", f"channel {self.channel.channel_id} went to another process")
        self._check_running()
        if self.channel.status is not ChannelStatus.OPEN:
            raise ChannelUnusable(
                "channel-not-open", f"channel {self.channel.channel_id} is {self.channel.status}"
            )

    def halt(self, why: str) -> None:
        """From this moment on nothing is signed on the channel by this process, not even what is durable."""
        self.halted = why
        self._signed = None
        self._queue.clear(ChannelUnusable("halted", f"channel {self.channel.channel_id}: {why}"))

    def _check_running(self) -> None:
        if self.halted is not None:
            raise ChannelUnusable("halted", f"channel {self.channel.channel_id}: {self.halted}")

    def check_shared(self, want: Want) -> None:
        if self.exclusive != (want.facts.request_id if want.metered else None):
            raise ChannelUnusable("stream", f"channel {self.channel.channel_id} pays for a metered stream")

    def reserve(self, request_id: str) -> bool:
        """Give the channel to one metered stream alone. False if anything else is on it."""
        if not self.idle or self.exclusive is not None:
            return False
        self.exclusive = request_id
        return True

    def vacate(self, request_id: str) -> None:
        """The stream has ended, or never began: the channel is for everyone again."""
        if self.exclusive == request_id:
            self.exclusive = None
            self._queue.kick()

    def grow(self, hold: Hold, amount: int, step: int, want: Want) -> Grant:
        """A voucher for `amount` more on a stream's hold, `step` higher than the last; see `raising.grow`.

        The ledger has the voucher's line before the signature is handed out. Raises `LocalRefusal`.
        """
        before = self.channel
        channel = account.issue(before, min(step, before.reserved))
        move = Grown(hold.request_id, amount, channel.issued)
        self.channel = account.grow(channel, move)
        self.last_used = self.ticks()
        try:
            signature = self._sign(move.voucher)
            fields = voucher_fields(want, cumulative=move.voucher, amount=amount)
            self._audit.move("voucher", fields, channel_id=self.channel.channel_id, move=move)
        except BaseException as error:
            self.channel = before  # nothing left: it never grew
            self._signed = None
            if isinstance(error, StoreError):
                raise LocalRefusal("ledger", f"{error}; nothing was paid") from error
            raise
        return Grant(self, self.channel, self.channel.holds[hold.request_id], move.voucher, signature)

    def reserve_for_stream(self, step: int, want: Want) -> int:
        """How much to reserve beyond a stream's next step, if that takes a commit."""
        return self._queue.reserve_for_stream(step, want)

    def current(self, hold: Hold) -> Grant:
        """The current voucher once more, for a stream: no new money."""
        held, amount = self.channel.holds[hold.request_id], self.channel.issued
        return Grant(self, self.channel, held, amount, self.sign_current())

    def write_off(self, want: Want) -> None:
        """What we thought free may have been charged; see `account.write_off`."""
        amount = self.channel.spare
        if amount <= 0:
            return
        move = WrittenOff(amount, self._now())
        self.channel = account.apply(self.channel, move)
        write_written_off(self._audit, want, move, channel_id=self.channel.channel_id)

    # -- signing

    def grant(self, want: Want, step: int = 0) -> Grant:
        """A hold, and the voucher for it, which is `step` higher than the last: so much of the reserve is issued."""
        now = self._now()
        self.last_used = self.ticks()
        before = self.channel
        channel = account.issue(before, step) if step else before
        self.channel, hold = account.hold(
            channel,
            want.facts.request_id,
            want.price,
            voucher=channel.issued,
            sent_at=now,
            expires_at=want.expires_at,
            fingerprint=want.fingerprint,
        )
        try:
            return self._attach(hold, want)
        except BaseException:
            self.channel = before  # nothing left: the hold never was
            self._signed = None  # nor is it out, so that `resend` must not send it: it may be above `issued`
            raise

    def _attach(self, hold: Hold, want: Want) -> Grant:
        """Sign (once per amount), write the ledger's line, hand out."""
        amount = hold.voucher
        signature = self._sign(amount)
        fields = voucher_fields(want, cumulative=amount, amount=hold.amount)
        try:
            self._audit.move("sent", fields, channel_id=self.channel.channel_id, move=Sent(hold))
        except StoreError as error:
            raise LocalRefusal("ledger", f"{error}; nothing was paid") from error
        self.unanswered.left(hold.request_id, amount)
        return Grant(self, self.channel, hold, amount, signature)

    def _sign(self, amount: int) -> bytes:
        """Once per amount; nothing that is not durable. Raises `LocalRefusal`, `SignerRefused`."""
        self._check_running()
        if self._signed is None or self._signed[0] != amount:
            if amount > self._durable:
                raise LocalRefusal("internal", f"{amount} is not durable yet; nothing was signed")
            digest = self.method.voucher_digest(self.channel, amount)
            self._signed = (amount, self._signer.sign_voucher(digest, self.channel, amount))
            self.signatures += 1
        return self._signed[1]

    def sign_current(self) -> bytes:
        """The highest voucher that may have left, once more: no new money. Raises `LocalRefusal`, `SignerRefused`."""
        return self._sign(self.channel.issued)

    # -- endings

    def end(
        self,
        hold: Hold,
        ending: Ending,
        want: Want,
        *,
        spent: int | None = None,
        accepted: bool = False,
        status: int | None = None,
        reason: str | None = None,
        charged: int = 0,
        dated: int | None = None,
        unanswered: str | None = None,
    ) -> None:
        """Book what became of a hold. Safe to call late; a hold that is gone is left alone.

        `charged` is for a metered stream: so much of the hold is paid, the rest uncertain. `dated`: the server's
        time (ms) at its answer, if it said so. A receipt that came before what was lost has expired by that clock
        says nothing, whatever ours says. `unanswered`: the fingerprint by which its client's own retry is known.
        """
        want.let_go(charged=ending is not Ending.FREE)
        self.unanswered.answered(hold.request_id)
        if hold.request_id not in self.channel.holds:
            return
        now = self._now()
        if not self.closed_there(dated):
            spent = None
        hold = self.channel.holds[hold.request_id]  # it may have grown
        voucher = hold.voucher
        if spent is not None:  # more than was signed cannot be; and a replay must see what we saw
            spent = min(spent, self.channel.issued)
        move = Ended(hold.request_id, ending, now, spent, voucher if accepted else 0, charged)
        before, self.channel = self.channel, account.end(self.channel, move)
        if ending is Ending.UNKNOWN:
            self._closes_at = max(self._closes_at, want.expires_there + UNKNOWN_MARGIN_MS)
        self.last_used = self.ticks()
        write_ending(
            self._audit,
            want,
            hold,
            move,
            channel_id=self.channel.channel_id,
            status=status,
            reason=reason,
            unanswered=unanswered,
            uncertain=self.channel.uncertain if self.channel.uncertain < before.uncertain else None,
        )
        self._queue.answered(hold.request_id)
        self._queue.kick()

    def closed_there(self, dated: int | None) -> bool:
        """Can nothing that was lost become charged any more by the server's own clock, `dated` (ms) at its answer?"""
        if not self.channel.uncertain:
            self._closes_at = 0
        return dated is None or dated >= self._closes_at

    # -- the record

    async def commit(
        self,
        *,
        raised: int = 0,
        counters: Sequence[CounterMove] = (),
        change: Callable[[Channel], Channel] | None = None,
        pin: bool = False,
    ) -> None:
        """Make the record of this moment durable, with a raise or a change of status (and a `pin` of its payee).

        Endings that happen while the commit is on its way stay in the ledger for the next one. After a crash
        inside, the raise is in the record or it is not; nothing was signed for it yet. Who is cancelled leaves
        it to run to its end: what is durable must not be news to the memory. Raises `StoreError`, and
        `ChannelUnusable` where another commit has ended what a raise needs.
        """
        await asyncio.shield(background(self._commit(raised, counters, change, pin), "bursar-commit"))

    async def written(self) -> None:
        """Until what is on its way to the disk is part of `channel`, whoever it was for: what is planned next builds
        on it. A commit outlives the client that it was for."""
        async with self._write:
            pass

    async def _commit(
        self,
        raised: int,
        counters: Sequence[CounterMove],
        change: Callable[[Channel], Channel] | None,
        pin: bool,
    ) -> None:
        async with self._write:
            if raised:
                self.check_usable()
            # Endings while waiting for the lock are included; those from here on are in the ledger only.
            target = replace(self.channel, folded=self._audit.journal.mark, updated_at=self._now())
            if change is not None:
                target = change(target)
            target = account.raise_authorised(target, raised)
            try:
                if target.status in FINAL:
                    await self._store.delete(target, counters)
                else:
                    await self._store.set(target, counters, pin)
            except Fenced:
                self._fence()
                raise
            self.commits += 1
            self._durable = target.authorised
            # What moved meanwhile (endings) stays; what the commit changed is taken over.
            if change is not None:
                self.channel = change(self.channel)
            self.channel = account.raise_authorised(self.channel, raised)
            if not self.usable:
                self._queue.clear(
                    ChannelUnusable("channel-not-open", f"the channel is {self.channel.status}")
                )
            self._queue.kick()

    async def release(self, *, used: bool = True) -> bool:
        """Give an idle channel back, so that another process may take it. False if it is not idle after all.

        `used`: it has paid, or was meant to; else how long it has been idle does not begin anew.
        """
        async with self._write:
            if not self.idle or self.fenced:
                return False
            updated_at = self._now() if used else self.channel.updated_at
            target = replace(self.channel, folded=self._audit.journal.mark, updated_at=updated_at)
            self.fenced = True  # from here on nothing is dispatched; a new request claims the channel again
            try:
                await self._store.release(target)
            except Fenced:
                self._fence()
            return True

    def _fence(self) -> None:
        """Another process owns the channel: sign nothing more, fail whoever waits."""
        self.fenced = True
        self._signed = None
        self._queue.clear(
            ChannelUnusable("fenced", f"channel {self.channel.channel_id} went to another process")
        )
