"""The desk of one payment scope: which channel pays, and when one is opened.

In this order: a channel that this process has and that has room; one that a top-up gives room; one on record
that no living process owns; a new one, within the limits; else wait for an opening that is on its way, or for
another process to give its channel back; else refuse, with the reason.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final

from proxy_addon.core.errors import ChainUnavailable, LocalRefusal
from proxy_addon.core.messages import Challenge
from proxy_addon.core.terms import Terms
from proxy_addon.methods.contract import Method
from proxy_addon.payer import opening, topping
from proxy_addon.payer.parts import Parts
from proxy_addon.payer.tasks import background
from proxy_addon.payer.till import Grant, Till
from proxy_addon.payer.wants import ChannelUnusable, OpeningLimited, Want
from store.channels import ChannelBusy, ScopeFull
from store.contract import StoreError
from store.lifecycle import PENDING_OPEN, REUSABLE, ChannelStatus
from store.records import Channel, PaymentScope

log: Final = logging.getLogger("bursar")

PATIENCE_S: Final = 40.0
"""How long a request waits for a pending opening (its validity is 25 s) or a channel that another process has."""
RETRY_S: Final = 0.25
TOP_UP_PAUSE_MS: Final = 30_000
SETTLE_AT_END_S: Final = 2.0
"""How long the end of this process waits for the chain's word on what a server has confirmed; most answer at once."""


@dataclass(slots=True, eq=False)
class Opening:
    """An opening on its way, and everyone who waits for what the chain says."""

    till: Till
    told: bool = False  # the server has said success
    decided: asyncio.Event = field(default_factory=asyncio.Event)
    settling: asyncio.Task[None] | None = None


class Desk:
    """All tills of one scope in this process."""

    def __init__(
        self,
        parts: Parts,
        scope: PaymentScope,
        method: Method,
        *,
        in_use: Callable[[Desk], None] = lambda desk: None,
    ) -> None:
        """`in_use` is called whenever it gets a till: whoever keeps desks must keep it while it has one."""
        self.scope = scope
        self.tills: list[Till] = []
        self._in_use = in_use
        self._parts = parts
        self._method = method
        self._finding = asyncio.Lock()
        self._opening: Opening | None = None
        self._topping: dict[Till, asyncio.Task[bool]] = {}
        self._top_up_again_at = 0  # ticks; after one that failed, in the background
        self._not_taken_until = 0  # ticks; after one that the server would not take, for anybody

    @property
    def till(self) -> Till | None:
        """The channel that the next request would use, if it is here already."""
        return next((till for till in self.tills if till.usable and till.exclusive is None), None)

    @property
    def opening(self) -> Opening | None:
        return self._opening

    @property
    def at_rest(self) -> bool:
        """It has nothing, and nothing is under way that would give it something."""
        return not (self.tills or self._opening or self._topping or self._finding.locked())

    def _add(self, till: Till) -> None:
        self._in_use(self)
        self.tills.append(till)

    async def take(self, want: Want, terms: Terms, challenge: Challenge, resource: str) -> Grant:
        """A grant on some channel of the scope. Raises `LocalRefusal`; then nothing was signed for `want`.

        If the grant's channel is still pending, its voucher goes out with the opening itself.
        """
        deadline = asyncio.get_running_loop().time() + PATIENCE_S
        while True:
            for till in self._with_room(want):
                if want.metered and not till.reserve(want.facts.request_id):
                    continue
                till.heed(terms.min_delta)
                try:
                    return await till.take(want)
                except ChannelUnusable:
                    till.vacate(want.facts.request_id)
                except BaseException:
                    till.vacate(want.facts.request_id)
                    raise
            if await self._top_up_for(want, terms, challenge):
                continue
            grant = await self._find(want, terms, resource)
            if grant is not None:
                return grant
            if asyncio.get_running_loop().time() > deadline:
                raise LocalRefusal(
                    "scope-busy",
                    f"no channel for {want.facts.host} got free in {PATIENCE_S:g} s (streams, another process, or an"
                    f" opening that the chain has not decided on); see `bursar channels list`, or try again",
                )
            await self._wait()

    async def till_of(self, channel_id: str, want: Want, terms: Terms) -> Till | None:
        """The till of this very channel, claimed if nobody has it; None if it is not to be had. Raises `StoreError`."""
        mine = self._mine(channel_id)
        if mine is None:
            async with self._finding:
                record = await self._parts.store.find(channel_id)
                if record is not None and record.scope == self.scope and record.status is ChannelStatus.OPEN:
                    await self._claim_one((record,), want, terms)
            mine = self._mine(channel_id)
        return mine

    def _mine(self, channel_id: str) -> Till | None:
        return next(
            (one for one in self.tills if one.channel.channel_id == channel_id and not one.fenced), None
        )

    def _free_for(self, want: Want) -> list[Till]:
        """Tills that this request may use: no stream has them; and for a stream, nothing else is on them."""
        self.tills = [till for till in self.tills if not till.fenced]
        return [
            till
            for till in self.tills
            if till.usable and till.exclusive is None and (till.idle or not want.metered)
        ]

    def _with_room(self, want: Want) -> list[Till]:
        return [till for till in self._free_for(want) if till.has_room(want)]

    async def _wait(self) -> None:
        if self._opening is None:
            await asyncio.sleep(RETRY_S)
            return
        try:
            async with asyncio.timeout(1.0):
                await self._opening.decided.wait()
        except TimeoutError:
            pass

    async def _find(self, want: Want, terms: Terms, resource: str) -> Grant | None:
        """Claim or open, one request at a time. None: look again (something has changed, or must)."""
        async with self._finding:
            if self._with_room(want):
                return None
            if self._opening is not None:
                return None
            try:
                on_record = await self._parts.store.of_scope(self.scope)
                taken = {one.channel_id for one in on_record if self._parts.store.is_busy(one)}
                if await self._claim_one(on_record, want, terms):
                    return None
                if sum(channel.status in REUSABLE for channel in on_record) >= want.caps.channels_per_scope:
                    # The store has the last word; this spares the chain a question for each that waits.
                    raise ScopeFull(f"max_channels_per_scope = {want.caps.channels_per_scope}, all in use")
                till = await opening.propose(self._parts, self.scope, self._method, terms, want, resource)
            except ScopeFull as error:
                occupied = any(till.usable and till.has_room(want) for till in self.tills)
                if occupied or await self._others_at_work(on_record, taken):
                    return None  # by a stream that ends, or by others who give it back
                raise LocalRefusal("scope-full", f"{want.facts.host}: {error} ({want.caps.rule})") from None
            except OpeningLimited:
                if await self._others_at_work(on_record, taken):
                    return None
                raise
            except ChainUnavailable as error:
                raise LocalRefusal("chain-unavailable", str(error)) from None
            except StoreError as error:
                raise LocalRefusal("store", str(error)) from None
            if want.metered:
                till.exclusive = want.facts.request_id
            self._add(till)
            self._opening = Opening(till)
            try:
                return till.opening_grant(want)
            except BaseException:
                till.vacate(want.facts.request_id)
                self.opening_ended(till, sent=False, told=False)
                raise

    @staticmethod
    def _can_pay(till: Till, want: Want, terms: Terms) -> bool:
        if till.has_room(want) or till.channel.pending is not None:
            return True
        return topping.size(till.channel, want.caps, terms, topping.shortfall(till.channel, want.demand)) > 0

    async def _claim_one(self, on_record: tuple[Channel, ...], want: Want, terms: Terms) -> bool:
        mine = {till.channel.channel_id for till in self.tills}
        for channel in on_record:
            if channel.channel_id in mine or self._parts.store.is_busy(channel):
                continue
            if channel.status not in PENDING_OPEN | {ChannelStatus.OPEN, ChannelStatus.DRAINING}:
                continue
            try:
                claimed = await self._parts.claim(channel.channel_id)
            except ChannelBusy:
                continue
            till = self._parts.till(claimed)
            if claimed.status in PENDING_OPEN:
                self._add(till)
                self._opening = Opening(till)
                self.opening_ended(till, sent=True, told=False)
                return True
            if claimed.status is ChannelStatus.DRAINING or not self._can_pay(till, want, terms):
                # Somebody is closing it, or it is used up: leave it to them, and to the close.
                await till.release()
                continue
            self._add(till)
            if claimed.pending is not None:  # a top-up that another process began
                self._run_top_up(till, topping.settle(self._parts, till)).add_done_callback(self._note_top_up)
            return True
        return False

    # -- top-ups

    async def _top_up_for(self, want: Want, terms: Terms, challenge: Challenge) -> bool:
        """Give a channel room for `want`, together with all who wait for the same. False: it cannot be had so."""
        for till in [] if want.topped_up else self._free_for(want):
            need = topping.shortfall(till.channel, want.demand)
            topping_up = self._topping.get(till) or self._start_top_up(till, want, terms, challenge, need)
            if topping_up is None:
                continue
            try:
                await asyncio.shield(topping_up)
            except (LocalRefusal, StoreError) as error:
                log.warning("bursar: no top-up of %s: %s", till.channel.channel_id, error)
            want.topped_up = not till.has_room(want)
            return True
        return False

    async def decided(self, till: Till) -> None:
        """Wait until the chain has decided on this channel's opening, if that is still open."""
        if self._opening is not None and self._opening.till is till:
            await self._opening.decided.wait()

    async def make_room(self, till: Till, want: Want, terms: Terms, challenge: Challenge, more: int) -> bool:
        """A top-up so that the deposit covers `more` on this very channel (a stream's)."""
        need = till.channel.authorised + more - till.channel.ceiling
        running = self._topping.get(till) or self._start_top_up(till, want, terms, challenge, need)
        if running is not None:
            try:
                await asyncio.shield(running)
            except (LocalRefusal, StoreError) as error:
                log.warning("bursar: no top-up of %s: %s", till.channel.channel_id, error)
        return till.channel.authorised + more <= till.channel.ceiling

    def top_up_soon(self, till: Till, want: Want, terms: Terms, challenge: Challenge) -> None:
        """Start a top-up in the background where the deposit runs low, so that no request has to wait for it."""
        if till in self._topping or not till.usable or self._parts.ticks() < self._top_up_again_at:
            return
        if topping.is_low(till.channel, want.caps, terms, want.price):
            need = topping.shortfall(till.channel, want.demand)
            started = self._start_top_up(till, want, terms, challenge, need)
            if started is not None:
                started.add_done_callback(self._note_top_up)

    def _start_top_up(
        self, till: Till, want: Want, terms: Terms, challenge: Challenge, need: int
    ) -> asyncio.Task[bool] | None:
        """A top-up by at least `need`; None where the limits, or a top-up that is or was on its way, forbid it."""
        if self._parts.ticks() < self._not_taken_until:
            return None  # each try takes until it is past its validity: nobody waits for the next one at once
        amount = topping.size(till.channel, want.caps, terms, need)
        if not amount or till.channel.pending is not None:
            return None
        return self._run_top_up(
            till,
            topping.top_up(
                self._parts,
                till,
                want.caps,
                challenge,
                amount=amount,
                fee_payer=terms.fee_payer,
                host=want.facts.host,
                resource=want.resource,
            ),
        )

    def _run_top_up(self, till: Till, work: Coroutine[Any, Any, bool]) -> asyncio.Task[bool]:
        task = background(work, "bursar-top-up")
        self._topping[till] = task
        task.add_done_callback(lambda task: self._top_up_ended(till, task))
        return task

    def _top_up_ended(self, till: Till, task: asyncio.Task[bool]) -> None:
        self._topping.pop(till, None)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, LocalRefusal) and error.reason == "top-up-failed":
            self._not_taken_until = self._parts.ticks() + TOP_UP_PAUSE_MS

    def _note_top_up(self, task: asyncio.Task[bool]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._top_up_again_at = self._parts.ticks() + TOP_UP_PAUSE_MS
            log.warning("bursar: no top-up for now: %s", error)

    async def _others_at_work(self, before: tuple[Channel, ...], taken: set[str]) -> bool:
        """Has another process a channel of this scope, or had one (`taken`, or a new one) since `before` was read?"""
        try:
            now = await self._parts.store.of_scope(self.scope)
        except StoreError as error:
            raise LocalRefusal("store", str(error)) from None
        known = {channel.channel_id for channel in before}
        # One that was given back a moment ago can be claimed at the next look.
        return any(
            one.channel_id not in known or one.channel_id in taken or self._parts.store.is_busy(one)
            for one in now
        )

    # -- the end of an opening

    def opening_ended(self, till: Till, *, sent: bool, told: bool) -> None:
        """The request that carried the opening has its answer, or never will: now the chain decides.

        `sent`: a byte of it may have left. `told`: the server said success.
        """
        current = self._opening
        if current is None or current.till is not till or current.settling is not None:
            return
        current.told = told
        current.settling = background(self._settle(current, sent=sent), "bursar-opening")

    async def _settle(self, current: Opening, *, sent: bool) -> None:
        try:
            if not sent:
                await opening.fail(self._parts, current.till, "it was never sent")
            else:
                if not current.told:
                    await opening.doubt(current.till)
                await opening.settle(self._parts, current.till)
        except StoreError as error:
            log.error("bursar: the opening of %s is not settled: %s", current.till.channel.channel_id, error)
            current.till.fenced = True
        except Exception:
            log.exception("bursar: the opening of %s is not settled", current.till.channel.channel_id)
            current.till.fenced = True
        finally:
            if self._opening is current:
                self._opening = None
            self.tills = [till for till in self.tills if till.usable or till is not current.till]
            current.decided.set()

    # -- idle and the end

    async def release_idle(self, before: int) -> None:
        """Give back the channels whose last use was before `before` (ticks)."""
        for till in list(self.tills):
            if (
                till.idle
                and till.last_used < before
                and (self._opening is None or self._opening.till is not till)
            ):
                try:
                    if not await till.release():
                        continue
                    _tell_tally(till)
                except StoreError as error:
                    log.warning("bursar: %s was not given back: %s", till.channel.channel_id, error)
                # A request that came meanwhile may have put it away already.
                self.tills = [one for one in self.tills if one is not till]

    async def close(self) -> None:
        """Stop settling and give everything back. What is still in flight stays counted in the record."""
        tills = list(self.tills)  # a settlement that is cancelled puts its till away
        tasks: list[asyncio.Task[Any]] = list(self._topping.values())
        if self._opening is not None and self._opening.settling is not None:
            tasks.append(self._opening.settling)
            if self._opening.told:
                await asyncio.wait([self._opening.settling], timeout=SETTLE_AT_END_S)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for till in tills:
            _tell_tally(till)
            try:
                if till.channel.status in PENDING_OPEN:
                    await till.commit()  # that it was sent: only what is on record is given back
                if not await till.release() and not till.fenced:
                    await till.commit()
            except StoreError as error:
                log.warning("bursar: %s was not given back: %s", till.channel.channel_id, error)
        self.tills = []


def _tell_tally(till: Till) -> None:
    log.info("bursar: %s was used for %s", till.channel.channel_id, till.tally)
