"""The desk of one payment scope: which channel pays, and when one is opened.

In this order: a channel that this process has and that has room; one on record that no living process owns;
a new one, within the limits; else wait for an opening that is on its way, or for another process to give its
channel back; else refuse, with the reason.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Final

from proxy_addon.core.errors import ChainUnavailable, LocalRefusal
from proxy_addon.core.terms import Terms
from proxy_addon.methods.contract import Method
from proxy_addon.payer import opening
from proxy_addon.payer.parts import Parts
from proxy_addon.payer.till import ChannelUnusable, Grant, Till, Want
from store.channels import ChannelBusy, ScopeFull
from store.contract import StoreError
from store.lifecycle import PENDING_OPEN, ChannelStatus
from store.records import Channel, PaymentScope

log: Final = logging.getLogger("bursar")

PATIENCE_S: Final = 40.0
"""How long a request waits for a pending opening (its validity is 25 s) or a channel that another process has."""
RETRY_S: Final = 0.25


@dataclass(slots=True, eq=False)
class Opening:
    """An opening on its way, and everyone who waits for what the chain says."""

    till: Till
    decided: asyncio.Event = field(default_factory=asyncio.Event)
    settling: asyncio.Task[None] | None = None


class Desk:
    """All tills of one scope in this process."""

    def __init__(self, parts: Parts, scope: PaymentScope, method: Method) -> None:
        self.scope = scope
        self.tills: list[Till] = []
        self._parts = parts
        self._method = method
        self._finding = asyncio.Lock()
        self._opening: Opening | None = None

    @property
    def till(self) -> Till | None:
        """The channel that the next request would use, if it is here already."""
        return next((till for till in self.tills if till.usable), None)

    @property
    def opening(self) -> Opening | None:
        return self._opening

    async def take(self, want: Want, terms: Terms, resource: str) -> Grant:
        """A grant on some channel of the scope. Raises `LocalRefusal`; then nothing was signed for `want`.

        If the grant's channel is still pending, its voucher goes out with the opening itself.
        """
        deadline = asyncio.get_running_loop().time() + PATIENCE_S
        while True:
            for till in self._with_room(want):
                try:
                    return await till.take(want)
                except ChannelUnusable:
                    continue
            grant = await self._find(want, terms, resource)
            if grant is not None:
                return grant
            if asyncio.get_running_loop().time() > deadline:
                raise LocalRefusal(
                    "scope-busy",
                    f"the channel for {want.facts.host} is not free (an opening that the chain has not decided on,"
                    f" or another process); see `bursar channels list`, or try again",
                )
            await self._wait()

    def _with_room(self, want: Want) -> list[Till]:
        self.tills = [till for till in self.tills if not till.fenced]
        return [till for till in self.tills if till.usable and till.has_room(want.price)]

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
                if await self._claim_one(on_record, want):
                    return None
                till = await opening.propose(self._parts, self.scope, self._method, terms, want, resource)
            except ScopeFull as error:
                if any(self._parts.store.is_busy(channel) for channel in on_record):
                    return None  # another process has it: it gives it back, or its opening is decided
                raise LocalRefusal("scope-full", f"{want.facts.host}: {error} ({want.caps.rule})") from None
            except ChainUnavailable as error:
                raise LocalRefusal("chain-unavailable", str(error)) from None
            except StoreError as error:
                raise LocalRefusal("store", str(error)) from None
            self.tills.append(till)
            self._opening = Opening(till)
            try:
                return till.opening_grant(want)
            except BaseException:
                self.opening_ended(till, sent=False, told=False)
                raise

    async def _claim_one(self, on_record: tuple[Channel, ...], want: Want) -> bool:
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
                self.tills.append(till)
                self._opening = Opening(till)
                self.opening_ended(till, sent=True, told=False)
                return True
            if claimed.status is ChannelStatus.DRAINING or not till.has_room(want.price):
                # Somebody is closing it, or it is used up: leave it to them, and to the close.
                await till.release()
                continue
            self.tills.append(till)
            return True
        return False

    # -- the end of an opening

    def opening_ended(self, till: Till, *, sent: bool, told: bool) -> None:
        """The request that carried the opening has its answer, or never will: now the chain decides.

        `sent`: a byte of it may have left. `told`: the server said success.
        """
        current = self._opening
        if current is None or current.till is not till or current.settling is not None:
            return
        current.settling = asyncio.get_running_loop().create_task(
            self._settle(current, sent=sent, told=told), name="bursar-opening"
        )

    async def _settle(self, current: Opening, *, sent: bool, told: bool) -> None:
        try:
            if not sent:
                await opening.fail(self._parts, current.till, "it was never sent")
            else:
                if not told:
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
        """Give back the channels whose last use was before `before` (ms)."""
        for till in list(self.tills):
            if (
                till.idle
                and till.last_used < before
                and (self._opening is None or self._opening.till is not till)
            ):
                try:
                    if await till.release():
                        self.tills.remove(till)
                except StoreError as error:
                    self.tills.remove(till)
                    log.warning("bursar: %s was not given back: %s", till.channel.channel_id, error)

    async def close(self) -> None:
        """Stop settling and give everything back. What is still in flight stays counted in the record."""
        if self._opening is not None and self._opening.settling is not None:
            self._opening.settling.cancel()
            await asyncio.gather(self._opening.settling, return_exceptions=True)
        for till in self.tills:
            try:
                if not await till.release() and not till.fenced:
                    await till.commit()
            except StoreError as error:
                log.warning("bursar: %s was not given back: %s", till.channel.channel_id, error)
        self.tills = []
