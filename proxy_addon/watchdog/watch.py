"""Brings deposits home by itself: looks at the channels now and then, and does the next step for each.

It works on channels that nobody uses, one after the other, beside the traffic: a request may take a channel from it
until the moment in which its close begins. Channels in use are only looked up on the chain, so that nothing is
signed on one whose close somebody else has begun. What it does is in the store before it is done, so that whoever
comes after a crash, here or in another process, goes on from there; and in the ledger, with the way out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from proxy_addon.audit import iso
from proxy_addon.core.errors import BursarError, ChainUnavailable
from proxy_addon.methods.contract import ChainState
from proxy_addon.payer import noticing
from proxy_addon.payer.closing import close_channel, give_back, settle_pending
from proxy_addon.payer.forcing import GraceRunning, force_close
from proxy_addon.payer.parts import Parts
from proxy_addon.payer.till import Till
from proxy_addon.watchdog.ends import Ends
from proxy_addon.watchdog.rules import Rules, Step, decide
from store import account
from store.account import IllegalMove
from store.channels import ChannelBusy, Fenced
from store.contract import StoreError
from store.lifecycle import ChannelStatus, IllegalTransition
from store.records import Channel

log: Final = logging.getLogger("bursar")

FIRST_LOOK_S: Final = 5.0
LONGEST_PAUSE_MS: Final = 3_600_000
LOOKS_UNTIL_MISSING: Final = 3
"""So often in a row must the chain not have an open channel, without an event of its end, before it is set aside: a
node that is behind does not show the newest ones."""


@dataclass(slots=True)
class Tries:
    """What this process has tried for one channel, and told about it."""

    since: int = 0  # of the record that they are about: it has been used since then, and they count no more
    failed: int = 0
    next_at: int = 0  # ms
    missing: int = 0  # looks in a row without it
    told: str = ""


class Watchdog:
    """`run` until cancelled. After a crash anywhere the record says where to go on."""

    def __init__(self, parts: Parts, rules: Rules, tills: Callable[[], Iterable[Till]]) -> None:
        self._parts = parts
        self._rules = rules
        self._tills = tills  # of this process, in use
        self._tries: dict[str, Tries] = {}
        self._ends = Ends(parts)
        self._silent: set[str] = set()  # chains that did not answer at the last look

    async def run(self) -> None:
        await asyncio.sleep(min(self._rules.every_s, FIRST_LOOK_S))
        while True:
            await self.look()
            await asyncio.sleep(self._rules.every_s)

    async def look(self) -> None:
        """One round. What fails is written down, and tried again later; nothing is raised."""
        if self._parts.store.commits.sealed_against is not None:
            return  # an older copy of the store was put back: nothing is done with it until it is reconciled
        try:
            channels = await self._parts.store.unfinished()
        except StoreError as error:
            log.warning("bursar: the watchdog cannot read the store: %s", error)
            return
        self._tries = {one.channel_id: self._tries_for(one) for one in channels}
        await self._ends.check({channel.channel_id for channel in channels})
        payer = self._parts.need_signer().address
        silent: set[str] = set()
        for channel in channels:
            if channel.scope.payer != payer or channel.scope.chain in silent:
                continue
            try:
                await self._look_at(channel, self._tries[channel.channel_id])
            except ChainUnavailable as error:
                silent.add(channel.scope.chain)
                if channel.scope.chain not in self._silent:
                    log.warning("bursar: the watchdog waits for the chain: %s", error)
            except (ChannelBusy, Fenced):
                pass  # somebody has use for it
            except (BursarError, StoreError, IllegalMove, IllegalTransition) as error:
                self._failed(channel, str(error))
            except Exception as error:
                log.exception("bursar: the watchdog failed at %s", channel.channel_id)
                self._failed(channel, f"{type(error).__name__} inside")
        self._silent = silent

    def _tries_for(self, channel: Channel) -> Tries:
        known = self._tries.get(channel.channel_id)
        return known if known is not None and known.since == channel.updated_at else Tries(channel.updated_at)

    async def _look_at(self, channel: Channel, tries: Tries) -> None:
        if channel.owner == self._parts.store.owner_id:
            till = next((one for one in self._tills() if one.channel.channel_id == channel.channel_id), None)
            if till is not None and till.usable and channel.pending is None:
                await self._compare(till, state=await self._read(channel), tries=tries)
        elif not self._parts.store.is_busy(channel) and self._parts.now() >= tries.next_at:
            await self._work_on(channel, tries)

    # -- channels that nobody uses

    async def _work_on(self, channel: Channel, tries: Tries) -> None:
        state, left = None, channel.owner is not None
        if channel.pending is None:
            state = await self._read(channel)
            missing = not state.exists and not await self._ended(channel, state, tries)
            if _news(channel, state, tries):
                channel = await self._with_till(channel, partial(self._compare, state=state, tries=tries))
            if missing:
                return  # nobody knows what became of it: nothing to be done but to look again
        step = decide(
            channel,
            self._rules,
            now=self._parts.now(),
            left=left,
            gone=state is not None and not state.exists,
            requested=state is not None and state.close_requested_at is not None,
            tries=tries.failed,
        )
        self._tell(step, channel, state, tries)
        match step:
            case Step.LEAVE:
                return
            case Step.RESOLVE:
                await self._with_till(channel, partial(settle_pending, self._parts))
            case Step.RECOVER:  # how long it has been idle counts from now on
                await self._with_till(channel, _nothing, used=True)
            case Step.CLOSE:
                await close_channel(self._parts, channel.channel_id)
            case Step.FORCE:
                fee = self._rules.max_fee(channel)
                result = await force_close(self._parts, channel.channel_id, most_fee=fee)
                if isinstance(result, GraceRunning):
                    tries.next_at = self._parts.now() + result.wait_s * 1000
        tries.failed = 0

    async def _with_till(
        self, channel: Channel, work: Callable[[Till], Awaitable[object]], *, used: bool = False
    ) -> Channel:
        """Do something with a channel as its owner, and give it back; its record after that."""
        till = self._parts.till(await self._parts.claim(channel.channel_id, also_ours=False))
        try:
            await work(till)
        finally:
            if used:
                await till.release()
            await give_back(self._parts, till)
        return replace(till.channel, owner=None)

    # -- what the chain says

    async def _read(self, channel: Channel) -> ChainState:
        method = self._parts.method(channel)
        return await method.read_channel(self._parts.chain(channel.scope.chain), channel)

    async def _compare(self, till: Till, *, state: ChainState, tries: Tries) -> None:
        """What the chain says of a channel of ours, in use or not: nothing is signed on one that has no future."""
        if not state.exists and tries.missing < LOOKS_UNTIL_MISSING:
            if await self._ended(till.channel, state, tries):
                await noticing.notice(self._parts, till, state)
            return
        settled = min(state.settled, till.channel.issued)  # no more can have been: an endpoint may lie
        if not await noticing.notice(self._parts, till, state) and settled > till.channel.settled:
            idle_since = till.channel.updated_at
            await till.commit(
                change=lambda record: replace(account.proven_settled(record, settled), updated_at=idle_since)
            )

    async def _ended(self, channel: Channel, state: ChainState, tries: Tries) -> bool:
        """Does an event say what became of a channel that is not there? Else it is counted as missing once more."""
        chain = self._parts.chain(channel.scope.chain)
        if await self._parts.method(channel).read_closing(chain, channel, state.block) is not None:
            tries.missing = 0
            return True
        tries.missing += 1
        return False

    # -- telling

    def _tell(self, step: Step, channel: Channel, state: ChainState | None, tries: Tries) -> None:
        """Once for each thing that is done, or left to a person."""
        text = _message(step, channel, state, self._rules, self._parts.now())
        if text is None or text == tries.told:
            return
        tries.told = text
        self._parts.audit.note(
            "watchdog",
            text,
            level=logging.WARNING if step is Step.LEAVE else logging.INFO,
            channel_id=channel.channel_id,
            host=channel.scope.host,
            step=step.value,
        )

    def _failed(self, channel: Channel, reason: str) -> None:
        tries = self._tries[channel.channel_id]
        tries.failed += 1
        pause = min(int(self._rules.every_s * 1000) << min(tries.failed, 20), LONGEST_PAUSE_MS)
        tries.next_at = self._parts.now() + pause
        again = f"tried again from {iso(tries.next_at)} on"
        if reason == tries.told:
            log.info("bursar: %s (%s)", reason, again)
            return
        tries.told = reason
        self._parts.audit.note(
            "watchdog",
            f"{reason}; {again}",
            level=logging.WARNING,
            channel_id=channel.channel_id,
            host=channel.scope.host,
            failed=tries.failed,
        )


def _news(channel: Channel, state: ChainState, tries: Tries) -> bool:
    """Does the chain say of an open channel what its record does not? An end that an event tells is booked instead."""
    if channel.status is not ChannelStatus.OPEN:
        return False
    if not state.exists:
        return tries.missing >= LOOKS_UNTIL_MISSING
    return noticing.begun(state) or min(state.settled, channel.issued) > channel.settled


async def _nothing(till: Till) -> None:
    """To own it is enough."""


def _message(step: Step, channel: Channel, state: ChainState | None, rules: Rules, now: int) -> str | None:
    """What is done, or why it is left to a person; None for what needs no words."""
    name, host = channel.channel_id, channel.scope.host
    match step:
        case Step.CLOSE if state is not None and not state.exists:
            return f"channel {name} of {host} is closed on the chain: booking what became of its deposit"
        case Step.CLOSE if channel.status is ChannelStatus.OPEN:
            since = f"since {iso(channel.updated_at)}" if channel.updated_at else "for long"
            return f"closing channel {name} of {host}: nothing was paid with it {since}"
        case Step.CLOSE:
            return f"going on with the close of channel {name} of {host}"
        case Step.FORCE:
            return (
                f"bringing the deposit of channel {name} home without {host}, at the cost of the network's fees"
                " ([watchdog].force_close_after_s)"
            )
        case Step.LEAVE if not rules.may_force and _waits_for_force(channel, state):
            ready = noticing.ready_at(state) if state is not None else None
            when = "" if ready is None else f" from {iso(ready * 1000)} on"
            return (
                f"the deposit of channel {name} of {host} waits in the escrow: bring it home{when} with bursar channels"
                f" close --force {name[:10]}, or allow the proxy to spend network fees on that with"
                " [watchdog].force_close_after_s"
            )
        case _:
            return None


def _waits_for_force(channel: Channel, state: ChainState | None) -> bool:
    forced = channel.status is ChannelStatus.CLOSING and channel.close_amount is None
    requested = state is not None and state.close_requested_at is not None
    return forced or requested or channel.status is ChannelStatus.ASIDE
