"""What every part of the payer is given: the store, the signer, the chains, the ledger, the clock."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from proxy_addon.audit import Audit, Clock
from proxy_addon.chain import ChainClient
from proxy_addon.core.errors import LocalRefusal
from proxy_addon.core.policy import Origin
from proxy_addon.methods.contract import Method
from proxy_addon.methods.registry import method_of
from proxy_addon.outbound import Outbound
from proxy_addon.payer.calendar import Calendar
from proxy_addon.payer.clients import ClientDays
from proxy_addon.payer.clocks import ServerClocks, ticks_ms
from proxy_addon.payer.till import Till
from proxy_addon.signer import Signer
from store import account
from store.account import UNKNOWN_MARGIN_MS, IllegalMove
from store.amounts import Token
from store.channels import ChannelBusy, ChannelStore
from store.journal import moves_after
from store.records import Channel

LONGEST_CHALLENGE_MS: Final = 3_600_000
"""Challenges that live longer are refused: until they expire, a lost request could still become charged."""


def random_salt() -> bytes:
    return os.urandom(32)


@dataclass(frozen=True, slots=True)
class Parts:
    """Handed down, never reached for: tests put in their own clock, store, chain."""

    store: ChannelStore
    signer: Signer | None  # None: nothing can be signed (shadow mode, or a command that only reads)
    chains: Mapping[str, ChainClient]
    audit: Audit
    ledger: Path
    now: Clock
    token: Callable[[str, str], Token]
    outbound: Outbound
    salt: Callable[[], bytes] = random_salt
    ticks: Clock = ticks_ms  # for how long something takes: no moment of the day, never set
    clocks: ServerClocks = field(default_factory=ServerClocks)
    closing: set[str] = field(default_factory=set)  # channels that this process closes, or resolves, just now
    clients: ClientDays = field(default_factory=ClientDays)
    pins: dict[str, str] = field(
        default_factory=dict
    )  # by origin, the payee that it is held to, as last read
    calendar: Calendar = field(init=False)

    def __post_init__(self) -> None:
        calendar = Calendar(self.now, self.store.newest_day, self._block_time, self.ticks)
        object.__setattr__(self, "calendar", calendar)

    async def _block_time(self, caip2: str) -> int:
        return (await self.chain(caip2).head()).timestamp

    def latest(self, origin: Origin) -> int:
        """Now (ms) by whichever clock is ahead, ours or the server's: what has expired by one is never paid."""
        return self.now() + self.clocks.ahead(origin)

    def chain(self, caip2: str) -> ChainClient:
        try:
            return self.chains[caip2]
        except KeyError:
            raise LocalRefusal("no-chain", f'no RPC endpoint for {caip2}; add [chains."{caip2}"]') from None

    def need_signer(self) -> Signer:
        if self.store.sealed_against is not None:
            raise LocalRefusal(
                "store-is-old",
                f"{self.store.sealed_against}; nothing is signed until it is reconciled: bursar reconcile",
            )
        if self.signer is None:
            raise LocalRefusal(
                "no-key",
                "no key to pay with; set [wallet].keystore or [wallet].private_key_env (bursar init makes one)",
            )
        return self.signer

    def need_payer_key(self, what: str) -> Signer:
        """The signer, if it signs transactions. Raises `LocalRefusal`: `what` needs the payer's own key."""
        signer = self.need_signer()
        if not signer.signs_transactions:
            raise LocalRefusal(
                "no-payer-key",
                f"{what} needs the key of the payer {signer.address}, and here is only that of its vouchers"
                f" ({signer.voucher_signer}); do it where the payer's key is",
            )
        return signer

    def method(self, channel: Channel) -> Method:
        try:
            return method_of(channel.scope.family, channel.scope.version)
        except KeyError:
            raise LocalRefusal(
                "unknown-method",
                f"channel {channel.channel_id} is of {channel.scope.family}/{channel.scope.version},"
                " which this version does not know; a newer one wrote it",
            ) from None

    def till(self, channel: Channel) -> Till:
        return Till(
            channel,
            store=self.store,
            method=self.method(channel),
            signer=self.need_signer(),
            audit=self.audit,
            now=self.now,
            ticks=self.ticks,
            calendar=self.calendar,
            clients=self.clients,
        )

    async def claim(self, channel_id: str, *, also_ours: bool = True) -> Channel:
        """Own a channel, with what its last owner left in its journal folded in. Raises `ChannelBusy`.

        That is also raised for one that this process is closing; and, unless `also_ours`, for one that it owns at all:
        a request may take a channel from where nothing was begun with it, nobody may take it from a request.
        """
        found: list[tuple[Channel, Channel, bool]] = []

        def recover(channel: Channel) -> Channel:
            if channel.owner == self.store.owner_id and (not also_ours or channel_id in self.closing):
                raise ChannelBusy(channel)
            recovered, whole = self.recover(channel)
            found[:] = [(channel, recovered, whole)]
            return replace(recovered, folded=self.audit.journal.mark)

        channel = await self.store.claim(channel_id, recover, mark=self.audit.journal.mark)
        for before, after, whole in found:
            if before.owner == self.store.owner_id:
                continue  # this process let go of it, or had not begun with it: nothing was left behind
            doubt = after.uncertain - before.uncertain
            told = (
                "its journal was folded in"
                if whole
                else "the machine was restarted: all that was not paid is uncertain"
            )
            self.audit.note(
                "recovered",
                f"channel {channel_id} was left by another process; {told}"
                f" ({self.token(channel.scope.chain, channel.scope.token).show(doubt)} more uncertain)",
                channel_id=channel_id,
                host=channel.scope.host,
                reason="unattributed" if not whole else None,
                amount=str(doubt),
            )
        return channel

    def recover(self, channel: Channel) -> tuple[Channel, bool]:
        """The record as its dead owner's journal completes it; False if that journal cannot be relied on."""
        mark = channel.folded
        if mark is not None and mark.boot_id == self.audit.journal.boot:
            try:
                return account.fold(channel, moves_after(self.ledger, mark, channel.channel_id)), True
            except IllegalMove:
                pass  # the lines contradict the record: believe neither
        return account.doubt_everything(channel, self.now() + LONGEST_CHALLENGE_MS + UNKNOWN_MARGIN_MS), False
